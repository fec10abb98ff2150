from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crossband.medical.data.dicom_series import index_series, look_at, read_dicom_slice
from crossband.medical.data.slices import Slice
from crossband.shared.errors import ConfigError, DataError

LEVEL = ([1, 0, 0], [0, 1, 0])  # rows to the left, columns to the back: the normal goes up


def planes(count: int = 5) -> np.ndarray:
    """CT in HU + 1024, as stored; every slice has another brightness and an own place."""
    rng = np.random.default_rng(0)
    found = rng.integers(900, 1000, (count, 16, 12))
    for number in range(count):
        found[number, number : number + 8, 2:9] = 1024 + 40 * number
    return found.astype(np.int16)


@pytest.fixture
def series(put_dicom):
    """Write a CT series whose file names are in another order than its slices."""

    def write(stored: np.ndarray, prefix: str = "", **elements: object) -> list[Path]:
        files = []
        for number, plane in enumerate(stored):
            settings = {
                "Modality": "CT",
                "SeriesInstanceUID": "2.25.77",
                "InstanceNumber": 100 - number,
                "ImagePositionPatient": [0, 0, 2.5 * number],
                "ImageOrientationPatient": [*LEVEL[0], *LEVEL[1]],
                "RescaleSlope": 1,
                "RescaleIntercept": -1024,
            } | elements
            name = f"{prefix}{(7 * number) % 11}.dcm"
            files.append(put_dicom(plane, name, **settings))
        return files

    return write


def nothing(path: Path, error: DataError) -> None:
    raise AssertionError(error)


def test_slices_are_in_the_order_of_their_places_and_in_hounsfield_units(series) -> None:
    stored = planes()
    files = [look_at(path) for path in sorted(series(stored))]
    assert not any(file.radiograph for file in files) and {f.frames for f in files} == {1}
    items = index_series(files, window=(40, 400), skipped=nothing)
    assert len(items) == 5
    for item, plane in zip(items, stored, strict=True):
        wanted = np.rint(((plane - 1024.0 + 160) / 400).clip(0, 1) * 255)
        assert np.array_equal(read_dicom_slice(item), wanted.astype(np.uint8))


def test_without_places_the_number_in_the_series_counts(series) -> None:
    files = [look_at(p) for p in series(planes(), ImagePositionPatient=[])]
    items = index_series(files, skipped=nothing)
    assert [item.path for item in items] == [file.path for file in files[::-1]]


def test_the_range_is_one_for_the_series_and_padding_does_not_count(series) -> None:
    stored = planes()
    inner = stored[:, 2:-2, 2:-2].astype(float) - 1024
    stored[:, :2] = stored[:, -2:] = stored[..., :2] = stored[..., -2:] = -2000
    files = [look_at(p) for p in series(stored, PixelPaddingValue=-2000, PixelRepresentation=1)]
    items = index_series(files, skipped=nothing)
    assert len({(item.low, item.high) for item in items}) == 1
    assert inner.min() <= items[0].low < inner.min() + 12 and items[0].high <= inner.max()
    assert (read_dicom_slice(items[0])[:2] == 0).all()


def test_empty_slices_are_left_out(series) -> None:
    stored = planes()
    stored[[0, 3]] = 0
    items = index_series([look_at(p) for p in series(stored)], window=(0, 400), skipped=nothing)
    assert len(items) == 3


def test_a_broken_slice_is_told_and_the_others_stay(series) -> None:
    paths = series(np.concatenate([planes(), planes()]).astype(np.int16))
    files = [look_at(path) for path in paths]
    paths[2].write_bytes(paths[2].read_bytes()[:-200])
    told = []
    items = index_series(files, skipped=lambda path, error: told.append((path, str(error))))
    assert len(items) == 9 and [path for path, _ in told] == [paths[2]]
    assert "damaged" in told[0][1] and "Secret" not in told[0][1] and "MRN" not in told[0][1]
    for path in paths:
        path.write_bytes(b"gone")
    with pytest.raises(DataError, match="show nothing"):
        index_series(files, skipped=lambda path, error: None)


def test_frames_of_a_file_are_slices_too(put_dicom) -> None:
    frames = planes(3)
    path = put_dicom(frames[0], "a.dcm", Modality="MR", NumberOfFrames=3,
                     PixelData=frames.tobytes())  # fmt: skip
    file = look_at(path)
    assert file.frames == 3 and not file.radiograph
    items = index_series([file], window=(1024, 400), skipped=nothing)
    assert [item.index for item in items] == [0, 1, 2]
    wanted = np.rint(((frames[2] - 824.0) / 400).clip(0, 1) * 255).astype(np.uint8)
    assert np.array_equal(read_dicom_slice(items[2]), wanted)


def test_colours_stay_and_dark_is_bright_where_the_file_says_so(put_dicom) -> None:
    rgb = np.random.default_rng(1).integers(0, 255, (8, 9, 3)).astype(np.uint8)
    path = put_dicom(rgb, "us.dcm", Modality="US")
    (item,) = index_series([look_at(path)], skipped=nothing)
    assert np.array_equal(read_dicom_slice(item), rgb)
    grey = rgb[..., 0]
    path = put_dicom(grey, "mg.dcm", Modality="MG", PhotometricInterpretation="MONOCHROME1")
    found = read_dicom_slice(Slice(path, 0))
    assert np.array_equal(found, 255 - grey)


def test_radiographs_are_known_and_what_is_no_image_is_an_error(put_dicom, tmp_path) -> None:
    assert look_at(put_dicom(planes()[0], "dx.dcm")).radiograph
    report = put_dicom(planes()[0], "sr.dcm", Rows=None, Columns=None, PixelData=None)
    with pytest.raises(DataError, match="without an image"):
        look_at(report)
    (tmp_path / "no.dcm").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no DICOM file"):
        look_at(tmp_path / "no.dcm")


def test_a_wrong_window_is_named(series) -> None:
    with pytest.raises(ConfigError, match="centre and a width"):
        index_series([look_at(p) for p in series(planes(1))], window=(1,), skipped=nothing)
