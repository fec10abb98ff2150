"""Volumes as pictures: which slices, turned how, in which grey levels."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from crossband.medical.data.slices import Slice
from crossband.medical.data.volumes import index_volume, is_volume, read_slice
from crossband.shared.errors import ConfigError, DataError


def body(shape: tuple[int, ...] = (24, 20, 16)) -> np.ndarray:
    """A volume from the patient's left, back and below: x, y and z can be read off its values."""
    x, y, z = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return (5 * x + 2 * y + 1 * z + 20).astype(np.float32)


def write(path: Path, values: np.ndarray, spacing=(1.0, 1.0, 1.0), codes: str = "RAS") -> Path:
    """Write values, given along (right, front, above), as a file of another orientation."""
    affine = np.diag([*spacing, 1.0])
    image = nibabel.Nifti1Image(values, affine)
    wanted = nibabel.orientations.axcodes2ornt(codes)
    image = image.as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), wanted)
    )
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_pictures_are_as_one_looks_at_them_whatever_the_file(tmp_path, codes, suffix) -> None:
    values = body()
    path = write(tmp_path / f"a{suffix}", values, codes=codes)
    window = (128 - 0.5, 255.0)  # grey levels are the values
    wanted = {
        # rows from the front, or from above; columns from the patient's right, or from the front
        "axial": values[::-1, ::-1, 3].T,
        "coronal": values[::-1, 4, ::-1].T,
        "sagittal": values[6, ::-1, ::-1].T,
    }
    place = {"axial": (2, 3, 16), "coronal": (1, 4, 20), "sagittal": (0, 6, 24)}
    for axis, picture in wanted.items():
        items = index_volume(path, axis=axis, window=window)
        _, index, count = place[axis]
        assert len(items) == count
        found = [read_slice(item) for item in items]
        assert sum(np.array_equal(f, picture.astype(np.uint8)) for f in found) == 1
        direct = found[index] if np.array_equal(found[index], picture) else found[-1 - index]
        assert np.array_equal(direct, picture.astype(np.uint8))


def test_the_axis_of_acquisition_is_taken_and_axial_where_there_is_none(tmp_path) -> None:
    thick = write(tmp_path / "thick.nii", body(), (1.0, 5.0, 1.0))
    assert len(index_volume(thick)) == 20
    assert read_slice(index_volume(thick)[0]).shape == (16, 24)
    even = write(tmp_path / "even.nii", body(), (1.0, 1.0, 1.2))
    assert len(index_volume(even)) == 16
    single = write(tmp_path / "single.nii", body((24, 1, 16)))
    assert len(index_volume(single)) == len(index_volume(single, axis="axial")) == 1
    # Across the acquired slices pixels are made square.
    assert read_slice(index_volume(thick, axis="axial")[0]).shape == (100, 24)


def test_empty_slices_are_left_out(tmp_path) -> None:
    values = np.full((20, 20, 12), -1000, np.int16)
    values[5:12, 5:12, 3:9] = 40
    values[6:8, 6:8, 3:9] = 120
    path = write(tmp_path / "ct.nii.gz", values)
    items = index_volume(path, window=(40, 400))
    assert [item.index for item in items] == [3, 4, 5, 6, 7, 8]
    assert {item.low for item in items} == {-160} and {item.high for item in items} == {240}
    assert np.unique(read_slice(items[0])).tolist() == [0, 128, 178]
    # Without a window the percentiles of the volume: air is black, all else is bright.
    assert read_slice(index_volume(path)[0]).max() == 255


def test_scaled_values_and_what_is_not_a_number(tmp_path) -> None:
    values = body()
    values[0, 0] = np.nan
    image = nibabel.Nifti1Image(np.nan_to_num(values, nan=0).astype(np.int16), np.eye(4))
    image.header.set_slope_inter(2.0, -100.0)
    nibabel.save(image, tmp_path / "scaled.nii")
    low, high = index_volume(tmp_path / "scaled.nii", window=(100, 200))[0].low, 200.0
    assert (low, high) == (0.0, 200.0)
    item = index_volume(tmp_path / "scaled.nii", axis="axial", window=(100, 200))[0]
    stored = np.nan_to_num(values, nan=0)[::-1, ::-1, 0].T
    wanted = np.rint(((2 * stored - 100) / 200).clip(0, 1) * 255)
    assert abs(read_slice(item).astype(int) - wanted).max() <= 1
    path = write(tmp_path / "nan.nii", values)
    assert (read_slice(index_volume(path, axis="axial")[0])[:, -1] == 0).any()


def test_channels_are_taken_and_series_over_time_are_not(tmp_path) -> None:
    four = np.stack([body() * (c + 1) for c in range(4)], -1)
    path = write(tmp_path / "brats.nii.gz", four[..., :4])
    items = index_volume(path)
    assert len(items) == 64 and {item.channel for item in items} == {0, 1, 2, 3}
    assert len({item.high for item in items}) == 4  # each has its own range
    pictures = [read_slice(items[16 * c]) for c in range(4)]
    assert all(abs(p.astype(int) - pictures[0]).max() <= 1 for p in pictures)
    long = np.repeat(body()[..., None], 6, -1)
    assert len(index_volume(write(tmp_path / "bold.nii", long))) == 16
    vector = body()[..., None, None].repeat(2, -1)
    assert len(index_volume(write(tmp_path / "five.nii", vector))) == 32


def test_two_axes_are_one_slice(tmp_path) -> None:
    nibabel.save(nibabel.Nifti1Image(body()[..., 0], np.eye(4)), tmp_path / "flat.nii")
    (item,) = index_volume(tmp_path / "flat.nii", window=(127.5, 255))
    assert np.array_equal(read_slice(item), body()[::-1, ::-1, 0].T.astype(np.uint8))


def test_arrays_are_slices_along_their_first_axis(tmp_path) -> None:
    values = np.moveaxis(body(), 2, 0)
    np.save(tmp_path / "a.npy", values)
    items = index_volume(tmp_path / "a.npy", window=(127.5, 255))
    assert len(items) == 16
    assert np.array_equal(read_slice(items[5]), values[5].astype(np.uint8))
    other = index_volume(tmp_path / "a.npy", axis="coronal", window=(127.5, 255))
    assert np.array_equal(read_slice(other[5]), values[:, 5].astype(np.uint8))
    np.save(tmp_path / "flat.npy", values[0])
    assert len(index_volume(tmp_path / "flat.npy")) == 1


@pytest.mark.parametrize("axis", ["auto", "sagittal"])
def test_unpacked_slices_are_the_same_and_are_not_decoded_again(
    tmp_path, axis, monkeypatch
) -> None:
    path = write(tmp_path / "a_patients_name.nii.gz", body(), (1, 1, 4))
    plain = index_volume(path, axis=axis)
    unpacked = index_volume(path, axis=axis, unpack=tmp_path / "fast")
    assert len(unpacked) == len(plain)
    for one, other in zip(plain, unpacked, strict=True):
        assert np.array_equal(read_slice(one), read_slice(other))
    assert not [p for p in (tmp_path / "fast").iterdir() if "patient" in p.name]
    assert index_volume(path, axis=axis, unpack=tmp_path / "fast", window=(50, 60)) != unpacked
    with monkeypatch.context() as patch:
        patch.setattr(nibabel, "load", lambda *_: pytest.fail("it was decoded again"))
        assert index_volume(path, axis=axis, unpack=tmp_path / "fast") == unpacked
    write(path, body()[:, :, ::-1] + 1, (1, 1, 4))  # a changed volume is
    assert index_volume(path, axis=axis, unpack=tmp_path / "fast") != unpacked


def test_what_cannot_be_read_is_one_sentence(tmp_path) -> None:
    good = write(tmp_path / "good.nii.gz", np.random.default_rng(0).random((24, 20, 16)))
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(good.read_bytes()[:-4000])
    wrong = tmp_path / "wrong.nii.gz"
    wrong.write_bytes(b"nothing of the kind")
    short = tmp_path / "short.nii"
    write(short, body())
    short.write_bytes(short.read_bytes()[:5000])
    text = tmp_path / "text.npy"
    text.write_bytes(b"\x93NUMPY\x01\x00")
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([{}], object), allow_pickle=True)
    words = tmp_path / "words.npy"
    np.save(words, np.array([["a"]]))
    for path in (cut, wrong, short, text, objects, words, tmp_path / "none.nii"):
        with pytest.raises(DataError) as caught:
            index_volume(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DataError, match="shows nothing"):
        index_volume(write(tmp_path / "flat.nii", np.full((9, 9, 9), 7.0)))
    with pytest.raises(DataError, match="shows nothing"):
        index_volume(good, window=(1000, 10))
    rgb = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii")
    with pytest.raises(DataError, match="not numbers"):
        index_volume(tmp_path / "rgb.nii")
    item = index_volume(good)[3]
    good.unlink()
    with pytest.raises(DataError, match="does not exist"):
        read_slice(item)


def test_wrong_options_are_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match="axis 'oblique'"):
        index_volume(tmp_path / "a.nii", axis="oblique")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="centre and a width"):
        index_volume(tmp_path / "a.nii", window=(40,))


def test_volumes_are_known_by_their_suffix() -> None:
    assert all(is_volume(Path(n)) for n in ("a.nii", "A.NII.GZ", "b.npy"))
    assert not any(is_volume(Path(n)) for n in ("a.gz", "a.png", "nii"))
    assert Slice(Path("a"), 0).high == 255
