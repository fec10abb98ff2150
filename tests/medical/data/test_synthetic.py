from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image

from crossband.medical.config import SourceConfig
from crossband.medical.data.layouts import find
from crossband.medical.data.phantoms import FINDINGS, Chest, draw_phantom
from crossband.medical.data.radiographs import read_radiograph
from crossband.medical.data.records import Collection
from crossband.medical.data.splits import leaks
from crossband.medical.data.synthetic import FAMILY_NAME, make_synthetic
from crossband.shared.errors import ConfigError


def look(root: Path) -> Collection:
    return find(SourceConfig(root=[str(root)]))[0]


def test_the_same_arguments_write_the_same_files(nih: Path, tmp_path: Path) -> None:
    again = make_synthetic(tmp_path, 32, size=64)
    files = sorted(path.relative_to(nih) for path in nih.rglob("*") if path.is_file())
    assert len(files) == 32 + 3
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((nih / name).read_bytes() == (again / name).read_bytes() for name in files)
    other = make_synthetic(tmp_path / "other", 32, size=64, seed=1)
    name = next(name for name in files if name.suffix == ".png")
    assert (nih / name).read_bytes() != (other / name).read_bytes()


def test_the_real_reader_reads_it(nih: Path, xrays: Path) -> None:
    for root, layout, splits in ((nih, "nih", 2), (xrays, "csv", 3)):
        found = look(root)
        assert found.layout == layout and len(found.records) == 32 and found.notes == []
        assert leaks(found.records) == []
        assert len({record.split for record in found.records}) == splits
        assert 10 < len({record.patient for record in found.records}) < 24
        assert all(r.view in ("PA", "AP") and r.sex and r.age for r in found.records)
    labels = np.array([record.labels for record in look(xrays).records])
    assert look(xrays).findings == FINDINGS
    assert (labels.sum(0) > 0).all() and (labels.sum(0) < 32).all()


def test_dicom_files_show_what_the_png_files_show(xrays: Path, dicoms: Path) -> None:
    kinds = set()
    for one, other in zip(look(xrays).records, look(dicoms).records, strict=True):
        image = read_radiograph(other.path)
        np.testing.assert_array_equal(image.pixels, read_radiograph(one.path).pixels)
        assert (image.view, image.bits, one.labels) == (one.view, 12, other.labels)
        header = pydicom.dcmread(other.path, stop_before_pixels=True)
        kinds.add(header.PhotometricInterpretation)
        assert FAMILY_NAME in str(header.PatientName)
    assert kinds == {"MONOCHROME1", "MONOCHROME2"}


def test_masks_are_of_the_lungs(xrays: Path) -> None:
    for record in look(xrays).records:
        assert record.mask is not None
        mask = np.asarray(Image.open(record.mask)) > 0
        pixels = read_radiograph(record.path).pixels
        assert mask.shape == pixels.shape and 0.1 < mask.mean() < 0.5
        # Lungs are darker than the belly below them.
        assert pixels[mask].mean() < pixels[-10:, 20:44].mean()


def blob(pixels: np.ndarray, lungs: np.ndarray, radius: float) -> float:
    """Return the strongest difference of two Gaussians within the lungs."""
    narrow, wide = (cv2.GaussianBlur(pixels, (0, 0), scale * radius) for scale in (1, 2))
    return float((narrow - wide)[cv2.erode(lungs.astype(np.uint8), np.ones((3, 3))) > 0].max())


@pytest.mark.parametrize("finding", FINDINGS)
def test_findings_can_be_seen(finding: str) -> None:
    """One number made by hand tells PA images with a finding from those without any."""
    seen: dict[int, list[float]] = {0: [], 1: []}
    random = np.random.default_rng(0)
    others = set(FINDINGS) - {finding, "Cardiomegaly"}
    for _ in range(300):
        phantom = draw_phantom(Chest.draw(random), 64, random)
        has = dict(zip(FINDINGS, phantom.labels, strict=True))
        if phantom.view == "AP" or any(has[name] for name in others):
            continue
        pixels, lungs = phantom.pixels.astype(np.float32) / 255, phantom.lungs
        numbers = {
            "Cardiomegaly": lambda p, m: (p[34:42] > 0.55).mean(),
            "Effusion": lambda p, m: (p[m] > 0.62).mean(),
            "Pneumothorax": lambda p, m: (p[m] < 0.2).mean(),
            "Mass": lambda p, m: blob(p, m, 2.6),
            "Nodule": lambda p, m: blob(p, m, 1.2),
        }
        seen[has[finding]].append(float(numbers[finding](pixels, lungs)))
    wins = np.mean(np.array(seen[1])[:, None] > np.array(seen[0])[None])
    assert wins > 0.8


def test_what_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 or more"):
        make_synthetic(tmp_path, 2)
    with pytest.raises(ConfigError, match="--layout csv"):
        make_synthetic(tmp_path, 4, format="dicom")
