"""Synthetic data sets of drawn chests in the real formats: `crossband medical data make`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from crossband.medical.config import MakeConfig
from crossband.medical.data import nih
from crossband.medical.data.phantoms import FINDINGS, Chest, Phantom, draw_phantom
from crossband.medical.data.records import Record
from crossband.medical.data.splits import patients_split
from crossband.shared.cli.output import print_json
from crossband.shared.errors import ConfigError
from crossband.shared.files import atomic_path, write_text

# Of the made-up people in DICOM headers; tests look for it where no name may be.
FAMILY_NAME = "Nobodyson"
_MOST_IMAGES = 3  # of a patient
_SMALLEST = 32
_VAL, _TEST = 0.15, 0.2  # parts of the patients
_GREY = 4095  # white of the 12-bit DICOM files


@dataclass(frozen=True)
class _Image:
    """A drawn image and who it is of."""

    stem: str
    patient: int
    number: int
    sex: str
    age: int
    phantom: Phantom


def make_synthetic(
    root: str | Path,
    count: int = 120,
    *,
    seed: int = 0,
    size: int = 256,
    layout: Literal["nih", "csv"] = "nih",
    format: Literal["png", "dicom"] = "png",
) -> Path:
    """Write a data set; the same arguments write the same files.

    `nih`: `Data_Entry_2017.csv`, `train_val_list.txt`, `test_list.txt` and `images/` with the 14
    findings, of which five are drawn. `csv`: `labels.csv`, `images/` and `lung_masks/` with those
    five, and splits; as DICOM every second file is MONOCHROME1, and headers hold made-up names.

    Args:
        root: Folder to write.
        count: Images, of about half as many patients.
        seed: Of the phantoms.
        size: Side of an image, in pixels.
        layout: `nih` or `csv`.
        format: `png`, or `dicom` with `csv`.

    Returns:
        The folder.

    Raises:
        ConfigError: too few or too small images, or DICOM files in NIH's layout.
    """
    if count < _MOST_IMAGES or size < _SMALLEST:
        raise ConfigError(f"{count} images of {size} pixels: make 3 or more of {_SMALLEST} pixels.")
    if format == "dicom" and layout != "csv":
        raise ConfigError("--format dicom: NIH ChestX-ray14 has PNG files; give --layout csv.")
    root = Path(root)
    images = _draw(count, seed, size)
    splits = _splits(images, seed)
    if layout == "nih":
        _write_nih(root, images, splits)
    else:
        _write_csv(root, images, splits, format)
    return root


def run(config: MakeConfig) -> None:
    """Run `crossband medical data make`."""
    root = make_synthetic(
        config.out,
        config.count,
        seed=config.seed,
        size=config.size,
        layout=config.layout,
        format=config.format,
    )
    if config.json:
        print_json({"root": str(root), "count": config.count, "layout": config.layout})
    else:
        print(f"{root}: {config.count} drawn chests, layout {config.layout}, {config.format} files")


def _draw(count: int, seed: int, size: int) -> list[_Image]:
    images: list[_Image] = []
    patient = 0
    while len(images) < count:
        patient += 1
        random = np.random.default_rng((seed, patient))
        chest = Chest.draw(random)
        sex, age = "FM"[int(random.integers(2))], int(random.integers(20, 90))
        for number in range(min(int(random.integers(1, _MOST_IMAGES + 1)), count - len(images))):
            stem = f"{patient:08d}_{number:03d}"
            phantom = draw_phantom(chest, size, random)
            images.append(_Image(stem, patient, number, sex, age, phantom))
    return images


def _splits(images: Sequence[_Image], seed: int) -> list[str]:
    records = [
        Record(Path(image.stem), image.stem, patient=f"phantom-{image.patient}") for image in images
    ]
    return [str(record.split) for record in patients_split(records, seed, _VAL, _TEST)]


def _write_nih(root: Path, images: Sequence[_Image], splits: Sequence[str]) -> None:
    rows = []
    for image in images:
        _save(image.phantom.pixels, root / "images" / f"{image.stem}.png")
        present = [n for n, there in zip(FINDINGS, image.phantom.labels, strict=True) if there]
        present.sort(key=nih.FINDINGS.index)
        rows.append(
            {
                "Image Index": f"{image.stem}.png",
                "Finding Labels": "|".join(present) or "No Finding",
                "Follow-up #": image.number,
                "Patient ID": image.patient,
                "Patient Age": image.age,
                "Patient Gender": image.sex,
                "View Position": image.phantom.view,
            }
        )
    _write_table(root / "Data_Entry_2017.csv", rows)
    for name, wanted in (("train_val_list.txt", ("train", "val")), ("test_list.txt", ("test",))):
        lines = [
            f"{image.stem}.png\n"
            for image, split in zip(images, splits, strict=True)
            if split in wanted
        ]
        write_text(root / name, "".join(lines))


def _write_csv(root: Path, images: Sequence[_Image], splits: Sequence[str], format: str) -> None:
    rows = []
    suffix = "png" if format == "png" else "dcm"
    for place, (image, split) in enumerate(zip(images, splits, strict=True)):
        file = f"images/{image.stem}.{suffix}"
        mask = f"lung_masks/{image.stem}.png"
        if format == "png":
            _save(image.phantom.pixels, root / file)
        else:
            _save_dicom(image, root / file, inverted=place % 2 == 1)
        _save(image.phantom.lungs.astype(np.uint8) * 255, root / mask)
        rows.append(
            {
                "image": file,
                "split": split,
                "patient_id": f"{image.patient:08d}",
                "view": image.phantom.view,
                "sex": image.sex,
                "age": image.age,
                **dict(zip(FINDINGS, image.phantom.labels, strict=True)),
                "lung_mask": mask,
            }
        )
    _write_table(root / "labels.csv", rows)


def _write_table(path: Path, rows: Iterable[dict[str, object]]) -> None:
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _save(pixels: np.ndarray, path: Path) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary)


def _save_dicom(image: _Image, path: Path, *, inverted: bool) -> None:
    """Write 12 bits with a window over all of them, and a header that names somebody."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

    stored = np.rint(image.phantom.pixels.astype(np.float32) * (_GREY / 255)).astype("<u2")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    # 2.25 is the root of identifiers made from numbers.
    meta.MediaStorageSOPInstanceUID = f"2.25.{image.patient}{image.number:03d}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = Dataset()
    header.file_meta = meta
    header.SOPClassUID = meta.MediaStorageSOPClassUID
    header.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    header.PatientName = f"{FAMILY_NAME}^{image.patient}"
    header.PatientID = f"MRN{image.patient:08d}"
    header.PatientSex, header.PatientAge = image.sex, f"{image.age:03d}Y"
    header.Modality, header.ViewPosition = "DX", image.phantom.view
    header.Rows, header.Columns = stored.shape
    header.SamplesPerPixel = 1
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 12, 11
    header.PixelRepresentation = 0
    header.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    header.RescaleSlope, header.RescaleIntercept = 1, 0
    header.WindowCenter, header.WindowWidth = (_GREY + 1) / 2, _GREY + 1
    header.PixelData = (_GREY - stored if inverted else stored).tobytes()
    with atomic_path(path) as temporary:
        header.save_as(temporary, enforce_file_format=True)
