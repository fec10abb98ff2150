"""Volumes slice by slice: pictures as in pre-training, masks back on the voxels of the file."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
from pathlib import Path

import nibabel
import numpy as np
import pytest

from crossband.medical.data.masks import MaskClasses
from crossband.medical.data.records import Record
from crossband.medical.data.scans import SlicePairs, open_scan
from crossband.medical.data.volumes import index_volume, read_slice
from crossband.medical.privacy import Names
from crossband.shared.errors import ConfigError, DataError

THREE = MaskClasses(("background", "liver", "tumour"))
SHAPE = (14, 11, 9)
# Turned by 0.3 about the first axis and by 0.2 about the third.
OBLIQUE = np.array(
    [
        [0.980067, -0.189796, 0.058711, 12.5],
        [0.198669, 0.936293, -0.289629, -40.25],
        [0.0, 0.295520, 0.955336, 7.0],
        [0, 0, 0, 1],
    ]
)


def affine(codes: str = "RAS", spacing: tuple[float, ...] = (1, 1, 1)) -> np.ndarray:
    """Axes of the array that run as the codes say."""
    turns = nibabel.orientations.axcodes2ornt(codes)
    found = nibabel.orientations.inv_ornt_aff(turns, (1, 1, 1))
    found[:3, :3] = np.linalg.inv(found[:3, :3])
    found[:3, :3] *= spacing
    found[:3, 3] = (-30, 12, 5)
    return found


def values(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 40, shape).astype(np.float32)


def labels(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)


def put(path: Path, array: np.ndarray, turn: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, affine() if turn is None else turn), path)
    return path


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL", "ILA"])
@pytest.mark.parametrize("axis", ["auto", "sagittal", "coronal"])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.7, 0.9, 4.0)])
def test_pictures_are_those_of_pre_training_and_masks_come_back(
    tmp_path, codes, axis, spacing
) -> None:
    path = put(tmp_path / "a.nii.gz", values(), affine(codes, spacing))
    mask = put(tmp_path / "m.nii.gz", labels(), affine(codes, spacing))
    scan = open_scan(path, axis=axis)
    items = index_volume(path, axis=axis)
    assert len(items) == len(scan) == SHAPE[scan.across]  # noise: none is empty
    for number, item in enumerate(items):
        assert item.axis == scan.across
        assert np.array_equal(scan.picture(number), read_slice(item))
        assert scan.picture(number).shape == scan.picture_shape
    truth = scan.truth(mask, THREE)
    assert truth.dtype == np.uint8 and np.array_equal(truth, labels())
    pictures = [scan.mask_picture(truth, number) for number in range(len(scan))]
    assert {picture.shape for picture in pictures} == {scan.picture_shape}
    assert np.array_equal(scan.restore(pictures), truth)
    assert np.allclose(scan.spacing, spacing) and scan.shape == SHAPE


def test_a_mask_lies_in_the_picture_where_its_organ_does(tmp_path) -> None:
    organ = np.zeros(SHAPE, np.uint8)
    organ[2:6, 1:4, 3:5] = 1
    turn = affine("PIR", (1, 1, 3))
    path = put(tmp_path / "a.nii", organ * 100.0, turn)
    scan = open_scan(path)
    truth = scan.truth(put(tmp_path / "m.nii", organ, turn), MaskClasses())
    assert scan.across == 2
    for number in (2, 3, 4):
        assert np.array_equal(scan.mask_picture(truth, number) > 0, scan.picture(number) > 127)


def test_empty_slices_are_slices_too(tmp_path) -> None:
    array = np.zeros(SHAPE, np.float32)
    array[:, :, 4] = values()[:, :, 4]
    scan = open_scan(put(tmp_path / "a.nii", array))
    assert len(scan) == 9 and not scan.picture(0).any() and scan.picture(4).any()


@pytest.mark.parametrize("codes", ["RAS", "PIR", "LSP"])
def test_logits_are_brought_to_the_voxels(tmp_path, codes) -> None:
    import torch

    path = put(tmp_path / "a.nii", values(), affine(codes, (1, 2, 5)))
    scan = open_scan(path)
    truth = labels()
    planes = []
    for number in range(len(scan)):
        picture = torch.tensor(scan.mask_picture(truth, number)).long()
        logits = torch.nn.functional.one_hot(picture, 3).permute(2, 0, 1).float()
        plane = scan.to_plane(logits)
        assert plane.shape == (3, *scan.plane_shape)
        planes.append(plane.argmax(0).to(torch.uint8).numpy())
    assert np.array_equal(np.stack(planes, scan.across), truth)
    # A ramp at half the size becomes the same ramp, not a turned one.
    height, width = scan.picture_shape
    ramp = torch.linspace(0, 1, width // 2).expand(1, height // 2, -1)
    plane = scan.to_plane(ramp)[0].numpy()
    turned = scan.look.turned(plane)
    assert (np.diff(turned, axis=1) >= 0).all() and turned[0, -1] - turned[0, 0] > 0.9


def test_sequences_become_channels_of_their_own_ranges(tmp_path) -> None:
    paths = [put(tmp_path / f"{number}.nii.gz", values(number) * 10**number) for number in range(3)]
    singles = [open_scan(path).picture(4) for path in paths]
    found = open_scan(paths[0], sequences=paths[1:]).picture(4)
    assert np.array_equal(found, np.stack(singles, -1))
    two = open_scan(paths[0], sequences=paths[1:2]).picture(4)
    assert np.array_equal(two, np.stack([singles[0], singles[1], singles[1]], -1))
    with pytest.raises(ConfigError, match="4 sequences"):
        open_scan(paths[0], sequences=[*paths[1:], paths[0]])
    other = put(tmp_path / "other.nii.gz", values(1), affine(spacing=(1, 1, 1.1)))
    with pytest.raises(DataError, match=r"affines that differ by 0\.1 voxels"):
        open_scan(paths[0], sequences=[other])
    small = put(tmp_path / "small.nii.gz", values(1)[:-1])
    with pytest.raises(DataError, match=r"shapes \(14, 11, 9\) and \(13, 11, 9\)"):
        open_scan(paths[0], sequences=[small])


@pytest.mark.parametrize(("count", "channels"), [(1, 0), (2, 3), (3, 3), (4, 3), (6, 0)])
def test_channels_of_a_file_are_colours_and_series_over_time_are_not(
    tmp_path, count, channels
) -> None:
    array = np.stack([values(number) for number in range(count)], -1)
    path = put(tmp_path / "a.nii.gz", array)
    scan = open_scan(path)
    found = scan.picture(3)
    items = [item for item in index_volume(path) if item.index == 3]
    single = [read_slice(item) for item in items]
    assert scan.shape == SHAPE
    if not channels:
        assert np.array_equal(found, single[0])
    else:
        assert np.array_equal(found, np.stack([*single, single[-1]][:3], -1))
    if channels:
        with pytest.raises(DataError, match="channels of their own"):
            open_scan(path, sequences=[path])


def test_masks_are_turned_but_not_resampled(tmp_path) -> None:
    scan = open_scan(put(tmp_path / "a.nii.gz", values(), OBLIQUE))
    image = nibabel.Nifti1Image(labels(), OBLIQUE)
    for codes in ("LPS", "SRA", "AIR"):
        wanted = nibabel.orientations.axcodes2ornt(codes)
        turns = nibabel.orientations.ornt_transform(nibabel.io_orientation(OBLIQUE), wanted)
        path = tmp_path / f"{codes}.nii.gz"
        nibabel.save(image.as_reoriented(turns), path)
        assert np.array_equal(scan.truth(path, THREE), labels())
    shifted = OBLIQUE.copy()
    shifted[:3, 3] += 0.01
    nearly = OBLIQUE.copy()
    nearly[:3, 3] += 1e-4
    scan.truth(put(tmp_path / "nearly.nii", labels(), nearly), THREE)
    for path, words in (
        (put(tmp_path / "shifted.nii", labels(), shifted), "affines"),
        (put(tmp_path / "straight.nii", labels()), "affines"),
        (put(tmp_path / "cut.nii", labels()[:, 1:], OBLIQUE), "shapes"),
    ):
        with pytest.raises(DataError, match=f"{words}.*resample it") as caught:
            scan.truth(path, THREE)
        assert str(path) in str(caught.value)


def test_masks_of_any_kind_of_number_and_those_that_are_none(tmp_path) -> None:
    scan = open_scan(put(tmp_path / "a.nii", values()))
    floats = put(tmp_path / "f.nii", labels().astype(np.float64)[..., None])
    assert np.array_equal(scan.truth(floats, THREE), labels())
    np.save(tmp_path / "m.npy", labels())
    assert np.array_equal(scan.truth(tmp_path / "m.npy", THREE), labels())
    mapped = MaskClasses(("background", "both"), (0, 2))
    assert scan.truth(put(tmp_path / "v.nii", labels() // 2 * 2), mapped).max() == 1
    with pytest.raises(DataError, match="class id 3"):
        scan.truth(put(tmp_path / "w.nii", labels() + 1), THREE)
    with pytest.raises(DataError, match="three axes"):
        scan.truth(put(tmp_path / "c.nii", np.stack([labels()] * 3, -1)), THREE)
    (tmp_path / "m.png").write_bytes(b"")
    with pytest.raises(DataError, match="not NIfTI or npy"):
        scan.truth(tmp_path / "m.png", THREE)
    with pytest.raises(DataError, match="does not exist"):
        scan.truth(tmp_path / "none.nii.gz", THREE)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_masks_are_saved_where_the_volume_lies_and_tell_nobody(tmp_path, suffix) -> None:
    image = nibabel.Nifti1Image(values(), OBLIQUE)
    image.set_sform(OBLIQUE, 2)
    image.set_qform(affine("LPS", (2, 2, 3)), 1)
    image.header["descrip"] = b"Secret Person"
    image.header.set_xyzt_units("micron", "sec")
    image.header.set_slope_inter(3.0, -7.0)
    nibabel.save(image, tmp_path / "a.nii.gz")
    scan = open_scan(tmp_path / "a.nii.gz")
    path = tmp_path / "new" / f"mask{suffix}"
    scan.save(labels(), path)
    found, source = nibabel.load(path), nibabel.load(tmp_path / "a.nii.gz")
    assert np.array_equal(np.asarray(found.dataobj), labels())
    assert found.get_data_dtype() == np.uint8
    assert np.array_equal(found.affine, source.affine)
    for name in ("sform", "qform"):
        for one, other in zip(
            getattr(found, f"get_{name}")(coded=True),
            getattr(source, f"get_{name}")(coded=True),
            strict=True,
        ):
            assert np.array_equal(one, other)
    assert found.header.get_xyzt_units()[0] == "micron"
    assert np.allclose(scan.spacing, 0.001 * np.array([2, 2, 3]))
    data = path.read_bytes()
    assert b"Secret" not in data and b"mask" not in data
    assert b"Secret" not in found.header.binaryblock
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert np.array_equal(scan.truth(path, THREE), labels())


def test_headers_without_codes_keep_their_place(tmp_path) -> None:
    image = nibabel.Nifti1Image(values(), None)
    image.header.set_zooms((1, 2, 3))
    image.header["qform_code"] = image.header["sform_code"] = 0
    nibabel.save(image, tmp_path / "a.nii")
    scan = open_scan(tmp_path / "a.nii")
    scan.save(labels(), tmp_path / "m.nii.gz")
    found, source = nibabel.load(tmp_path / "m.nii.gz"), nibabel.load(tmp_path / "a.nii")
    assert np.array_equal(found.affine, source.affine)
    assert int(found.header["qform_code"]) == int(found.header["sform_code"]) == 0


def test_arrays_and_single_slices(tmp_path) -> None:
    np.save(tmp_path / "a.npy", values())
    scan = open_scan(tmp_path / "a.npy")
    assert scan.across == 0 and scan.spacing is None and scan.affine is None
    assert np.array_equal(scan.picture(5), read_slice(index_volume(tmp_path / "a.npy")[5]))
    assert scan.suffix == ".npy"
    scan.save(labels(), tmp_path / "m.npy")
    assert np.array_equal(np.load(tmp_path / "m.npy"), labels())
    assert np.array_equal(scan.truth(tmp_path / "m.npy", THREE), labels())
    with pytest.raises(ConfigError, match="write .npy"):
        scan.save(labels(), tmp_path / "m.nii.gz")
    with pytest.raises(ConfigError, match="written as"):
        scan.save(labels(), tmp_path / "m.png")
    flat = open_scan(put(tmp_path / "flat.nii", values()[..., 0]))
    assert len(flat) == 1 and flat.shape == (14, 11, 1)
    flat.save(labels()[..., :1], tmp_path / "flat_mask.nii.gz")
    assert nibabel.load(tmp_path / "flat_mask.nii.gz").shape == (14, 11)
    assert flat.truth(tmp_path / "flat_mask.nii.gz", THREE).shape == (14, 11, 1)


def test_windows_axes_and_files_that_cannot_be(tmp_path) -> None:
    path = put(tmp_path / "a.nii.gz", values())
    items = index_volume(path, window=(100, 20))
    assert np.array_equal(open_scan(path, window=(100, 20)).picture(2), read_slice(items[2]))
    with pytest.raises(ConfigError, match="centre and a width"):
        open_scan(path, window=(40,))
    with pytest.raises(ConfigError, match="axis"):
        open_scan(path, axis="oblique")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="shows nothing"):
        open_scan(put(tmp_path / "flat.nii", np.full(SHAPE, 7.0)))
    (tmp_path / "cut.nii.gz").write_bytes(path.read_bytes()[:-900])
    for wrong in (tmp_path / "cut.nii.gz", tmp_path / "none.nii", tmp_path / "none.mha"):
        with pytest.raises(DataError) as caught:
            open_scan(wrong)
        assert str(wrong) in str(caught.value) and "\n" not in str(caught.value)
    singular = nibabel.load(path)
    header = singular.header.copy()
    header["srow_x"] = header["srow_y"] = header["srow_z"] = np.nan
    header["sform_code"], header["qform_code"] = 1, 0
    nibabel.save(nibabel.Nifti1Image(values(), None, header), tmp_path / "nan.nii")
    with pytest.raises(DataError, match=r"nan\.nii"):
        open_scan(tmp_path / "nan.nii")
    scan = open_scan(path)
    with pytest.raises(ValueError, match="9 pictures"):
        scan.restore([scan.mask_picture(labels(), 0)])


def series(put_dicom, stored: np.ndarray, folder: Path, **elements: object) -> Path:
    """Write slices (N, rows, columns) of a tilted series, file names in another order."""
    folder.mkdir(exist_ok=True)
    for number, plane in enumerate(stored):
        settings = {
            "Modality": "CT",
            "SeriesInstanceUID": "2.25.77",
            # Rows run to the patient's left and a bit to the back, columns down the body.
            "ImageOrientationPatient": [0.8, 0.6, 0, 0, 0, -1],
            # Normal: row x column = (-0.6, 0.8, 0).
            "ImagePositionPatient": [-100 - 0.6 * 2.5 * number, 50 + 0.8 * 2.5 * number, 900],
            "PixelSpacing": [0.5, 0.75],  # from row to row, from column to column
            "RescaleSlope": 1,
            "RescaleIntercept": -1024,
        } | elements
        put_dicom(plane, f"{folder.name}/{(7 * number) % 11}.dcm", **settings)
    return folder


def test_a_dicom_series_is_a_volume_with_its_place_in_the_patient(put_dicom, tmp_path) -> None:
    stored = (values(shape=(6, 10, 8)) * 3 + 900).astype(np.int16)
    scan = open_scan(series(put_dicom, stored, tmp_path / "ct"))
    assert len(scan) == 6 and scan.shape == (8, 10, 6) and scan.across == 2
    assert scan.picture(0).shape == (10, 8)
    assert np.corrcoef(scan.picture(2).ravel(), stored[2].ravel())[0, 1] > 0.98
    assert np.allclose(scan.spacing, (0.75, 0.5, 2.5))
    # Column 3, row 4, slice 2 by hand, in DICOM's mm (left, back, head):
    #   x = -100 + 3 * 0.75 * 0.8 - 0.6 * 2.5 * 2 = -101.2
    #   y = 50 + 3 * 0.75 * 0.6 + 0.8 * 2.5 * 2 = 55.35
    #   z = 900 - 4 * 0.5 = 898
    assert np.allclose(scan.affine @ [3, 4, 2, 1], [101.2, -55.35, 898, 1])
    ids = labels(shape=(8, 10, 6))
    assert np.array_equal(scan.restore([scan.mask_picture(ids, k) for k in range(6)]), ids)
    assert np.array_equal(scan.mask_picture(ids, 1), ids[:, :, 1].T)
    scan.save(ids, tmp_path / "m.nii.gz")
    saved = nibabel.load(tmp_path / "m.nii.gz")
    assert np.allclose(saved.affine, scan.affine, atol=1e-4)
    assert saved.header.get_xyzt_units()[0] == "mm"
    assert int(saved.header["sform_code"]) == int(saved.header["qform_code"]) == 1
    # A mask that another program wrote from the same series, its rows and slices turned round.
    turns = np.array([[0, 1], [1, -1], [2, -1]])
    nibabel.save(saved.as_reoriented(turns), tmp_path / "turned.nii.gz")
    assert np.array_equal(scan.truth(tmp_path / "turned.nii.gz", THREE), ids)
    with pytest.raises(DataError, match="resample"):
        scan.truth(put(tmp_path / "else.nii.gz", ids), THREE)


def test_a_tilted_gantry_shears_and_a_single_slice_is_as_thick_as_it_says(
    put_dicom, tmp_path
) -> None:
    stored = (values(shape=(1, 10, 8)) * 3 + 900).astype(np.int16)
    one = open_scan(series(put_dicom, stored, tmp_path / "one", SliceThickness=4))
    assert np.allclose(one.spacing, (0.75, 0.5, 4))
    folder = tmp_path / "tilted"
    folder.mkdir()
    for number in range(5):
        put_dicom(
            stored[0] + np.int16(number),
            f"tilted/{number}.dcm",
            Modality="CT",
            SeriesInstanceUID="2.25.8",
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[0, 0.5 * number, 3 * number],
            PixelSpacing=[1, 1],
        )
    scan = open_scan(folder)
    assert np.allclose(scan.affine[:3, 2], [0, -0.5, 3])
    ids = labels(shape=scan.shape)
    scan.save(ids, tmp_path / "m.nii.gz")
    saved = nibabel.load(tmp_path / "m.nii.gz")
    assert np.allclose(saved.affine, scan.affine)
    assert int(saved.header["qform_code"]) == 0 and int(saved.header["sform_code"]) == 1
    assert np.array_equal(scan.truth(tmp_path / "m.nii.gz", THREE), ids)


def test_what_is_no_single_volume_is_said_without_file_names(put_dicom, tmp_path) -> None:
    stored = (values(shape=(6, 10, 8)) * 3 + 900).astype(np.int16)
    gap = series(put_dicom, stored, tmp_path / "gap")
    (gap / "3.dcm").unlink()  # the third
    twice = series(put_dicom, stored, tmp_path / "twice")
    put_dicom(
        stored[0],
        "twice/more.dcm",
        Modality="CT",
        SeriesInstanceUID="2.25.77",
        ImageOrientationPatient=[0.8, 0.6, 0, 0, 0, -1],
        ImagePositionPatient=[-100, 50, 900],
        PixelSpacing=[0.5, 0.75],
    )
    mixed = series(put_dicom, stored, tmp_path / "mixed")
    put_dicom(stored[0], "mixed/other.dcm", Modality="CT", SeriesInstanceUID="2.25.78")
    damaged = series(put_dicom, stored, tmp_path / "damaged")
    (damaged / "3.dcm").write_bytes((damaged / "3.dcm").read_bytes()[:-60])
    broken = series(put_dicom, stored, tmp_path / "broken")
    (broken / "3.dcm").write_bytes(b"nothing")
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, words in (
        (gap, "not evenly spaced"),
        (twice, "not evenly spaced"),
        (mixed, "2 DICOM series"),
        (damaged, "slice [0-9] of 6 is damaged"),
        (broken, "damaged DICOM file"),
        (empty, "no DICOM series"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            open_scan(folder)
        assert str(folder) in str(caught.value) and ".dcm" not in str(caught.value)


def test_a_series_without_a_place_is_an_array(put_dicom, tmp_path) -> None:
    stored = (values(shape=(6, 10, 8)) * 3 + 900).astype(np.int16)
    folder = series(put_dicom, stored, tmp_path / "us", PixelSpacing=[], Modality="US")
    put_dicom(stored[0], "us/report.dcm", Rows=None, Columns=None, PixelData=None)
    scan = open_scan(folder)
    assert scan.shape == (6, 10, 8) and scan.affine is None and scan.suffix == ".npy"
    assert scan.picture(0).shape == (10, 8)


def study(folder: Path, seed: int, shape: tuple[int, ...] = SHAPE, **changes: object) -> Record:
    """A volume whose first slice is empty; labels are in slices 3 to 5."""
    folder.mkdir(exist_ok=True)
    array, mask = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    array[:, :, 1:] = values(seed, shape)[:, :, 1:] + 300
    mask[2:5, 3:6, 3:6] = 1 + seed % 2
    path = put(folder / f"patient{seed}.nii.gz", array)
    return Record(path, path.name, mask=put(folder / f"patient{seed}_seg.nii.gz", mask))


@pytest.mark.parametrize("cache_gb", [2.0, 0.0, 3000 / 2**30])
def test_slices_with_masks_are_the_same_in_memory_and_in_files(tmp_path, cache_gb) -> None:
    records = [study(tmp_path, 0), study(tmp_path, 1, (9, 12, 8)), study(tmp_path, 2)]
    pairs = SlicePairs(records, THREE, cache_gb=cache_gb)
    assert len(pairs) == len(pairs.records) == 8 + 7 + 8 and pairs.labelled.dtype == np.bool_
    assert [r.name for r in pairs.records[7:9]] == ["patient0.nii.gz", "patient1.nii.gz"]
    place = 0
    for record in records:
        scan = open_scan(record.path)
        truth = scan.truth(record.mask, THREE)
        for number in range(1, len(scan)):
            picture, mask = pairs.read(place)
            assert np.array_equal(picture, scan.picture(number))
            assert np.array_equal(mask, scan.mask_picture(truth, number))
            assert pairs.labelled[place] == (number in (3, 4, 5))
            place += 1


def read_all(pairs: SlicePairs, queue: object) -> None:
    queue.put([int(pairs.read(index)[0].sum()) for index in range(len(pairs))])  # type: ignore
    del pairs
    gc.collect()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_files_and_leave_them(tmp_path, monkeypatch, method) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "own"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "own").mkdir()
    pairs = SlicePairs([study(tmp_path / "set", seed) for seed in range(2)], THREE, cache_gb=0)
    wanted = [int(pairs.read(index)[0].sum()) for index in range(len(pairs))]
    (folder,) = (tmp_path / "own").iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    assert not [p for p in folder.rglob("*") if "patient" in p.name]
    assert len(pickle.dumps(pairs)) < 20_000  # the files are not in it
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    worker = context.Process(target=read_all, args=(pairs, queue))
    worker.start()
    assert queue.get() == wanted
    worker.join()
    assert worker.exitcode == 0 and folder.is_dir()
    del pairs
    gc.collect()
    assert not folder.exists()


def test_the_files_are_gone_at_exit(tmp_path) -> None:
    import subprocess
    import sys

    record = study(tmp_path / "set", 0)
    (tmp_path / "own").mkdir()
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from crossband.medical.data.scans import SlicePairs\n"
        "from crossband.medical.data.masks import MaskClasses\n"
        "from crossband.medical.data.records import Record\n"
        "record = Record(Path(sys.argv[1]), 'a', mask=Path(sys.argv[2]))\n"
        "pairs = SlicePairs([record], MaskClasses(), cache_gb=0)\n"
        "print(len(list(Path(sys.argv[3]).iterdir())))\n"
    )
    arguments = [str(record.path), str(record.mask), str(tmp_path / "own")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"TMPDIR": str(tmp_path / "own")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "1" and not list((tmp_path / "own").iterdir())


def test_what_cannot_be_read_is_skipped_and_listed(tmp_path) -> None:
    good, bad, other, bare = (study(tmp_path, seed) for seed in range(4))
    bad.path.write_bytes(bad.path.read_bytes()[:-300])
    put(other.mask, np.zeros((3, 3, 3), np.uint8))
    bare = Record(bare.path, bare.name)
    pairs = SlicePairs([bad, good, other, bare], THREE)
    assert {record.name for record in pairs.records} == {good.name} and len(pairs) == 8
    assert [word in text for word, text in zip(
        ("damaged", "shapes", "no mask"), pairs.skipped, strict=True
    )] == [True] * 3  # fmt: skip
    assert str(bad.path) in pairs.skipped[0]
    hidden = SlicePairs([bad, good, other], THREE, names=Names(keep=False)).skipped
    assert len(hidden) == 2 and not any("patient" in text for text in hidden)
    with pytest.raises(DataError, match="None of 2 volumes") as caught:
        SlicePairs([bad, other], THREE)
    assert "patient" not in str(caught.value)
    with pytest.raises(ConfigError, match="centre and a width"):
        SlicePairs([good], THREE, window=(1,))


def test_several_masks_and_sequences_of_a_record(tmp_path) -> None:
    first, second = study(tmp_path, 0), study(tmp_path, 1)
    record = Record(
        first.path, "a", mask=first.mask, more_masks=(second.mask,), sequences=(second.path,)
    )
    pairs = SlicePairs([record], THREE)
    picture, mask = pairs.read(3)
    assert picture.shape == (11, 14, 3) and mask.max() == 2


def test_frames_of_one_file_have_their_places_in_functional_groups(put_dicom, tmp_path) -> None:
    from pydicom.dataset import Dataset

    def part(**elements: object) -> Dataset:
        found = Dataset()
        for keyword, value in elements.items():
            setattr(found, keyword, value)
        return found

    frames = (values(shape=(4, 10, 8)) * 3 + 900).astype(np.uint16)
    shared = part(
        PixelMeasuresSequence=[part(PixelSpacing=[2, 3], SliceThickness=9)],
        PlaneOrientationSequence=[part(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
    )
    places = [
        part(PlanePositionSequence=[part(ImagePositionPatient=[10, 20, 30 - 4 * number])])
        for number in range(4)
    ]
    (tmp_path / "enhanced").mkdir()
    put_dicom(
        frames[0],
        "enhanced/a.dcm",
        Modality="MR",
        NumberOfFrames=4,
        PixelData=frames.tobytes(),
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=places,
    )
    scan = open_scan(tmp_path / "enhanced")
    assert scan.shape == (8, 10, 4) and np.allclose(scan.spacing, (3, 2, 4))
    assert np.allclose(scan.affine @ [1, 1, 1, 1], [-13, -22, 26, 1])


def test_masks_of_volumes_half_way_between_two_axes_are_told_apart(tmp_path) -> None:
    turn = np.eye(4)
    turn[:2, :2] = np.sqrt(0.5) * np.array([[1, -1], [1, 1]])
    scan = open_scan(put(tmp_path / "a.nii.gz", values(), turn))
    turns = np.array([[1, 1], [0, -1], [2, 1]])
    image = nibabel.Nifti1Image(labels(), turn).as_reoriented(turns)
    nibabel.save(image, tmp_path / "m.nii.gz")
    assert image.shape != SHAPE
    assert np.array_equal(scan.truth(tmp_path / "m.nii.gz", THREE), labels())
