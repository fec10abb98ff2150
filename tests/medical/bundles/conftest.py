"""Small trained networks, and studies whose names must not be told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from medical_bundles import SECRET, SMALL, classifier, save, write_dicom
from PIL import Image

for library in ("monai", "ignite", "pydicom"):
    pytest.importorskip(library, reason="extra medical")

from crossband.apps.main import main  # noqa: E402
from crossband.medical.bundles.writing import write  # noqa: E402


@pytest.fixture(scope="session")
def findings_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("weights") / "findings.safetensors")


@pytest.fixture(scope="session")
def lungs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    description = {
        "name": "chest_mae_vit_tiny_upernet",
        "arguments": {**SMALL, "num_classes": 2, "channels": 16, "detail": 8},
    }
    path = tmp_path_factory.mktemp("weights") / "lungs.safetensors"
    palette = [[0, 0, 0], [255, 0, 0]]
    classes = ["background", "lung"]
    return save(path, "segmentation", description, classes=classes, palette=palette)


@pytest.fixture(scope="session")
def findings_bundle(findings_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(findings_file, tmp_path_factory.mktemp("bundles") / "chest", authors="us")


@pytest.fixture(scope="session")
def lungs_bundle(lungs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(lungs_file, tmp_path_factory.mktemp("bundles") / "lungs")


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six radiographs of three kinds, in folders, of 8 to 16 bits, wide and tall."""
    folder = tmp_path_factory.mktemp("s") / "studies"
    random = np.random.default_rng(0)
    y, x = np.mgrid[:90, :70] / 90

    def drawn() -> np.ndarray:
        blob = np.exp(-((x - random.uniform(0.2, 0.6)) ** 2 + (y - random.random()) ** 2) / 0.02)
        return (0.2 + 0.4 * y + 0.3 * blob + random.normal(0, 0.02, y.shape)).clip(0, 1)

    inner = folder / "ward" / SECRET
    inner.mkdir(parents=True)
    Image.fromarray((drawn() * 255).astype(np.uint8)).save(folder / f"{SECRET}.png")
    Image.fromarray((drawn().T * 255).astype(np.uint8)).save(inner / "a.jpg")
    Image.fromarray((drawn() * 65535).astype(np.uint16)).save(inner / "deep.png")
    write_dicom(inner / "one.dcm", drawn() * 4095, WindowCenter=1800, WindowWidth=2500)
    inverted = {"PhotometricInterpretation": "MONOCHROME1"}
    write_dicom(inner / "IM0001", drawn() * 4095, **inverted)
    write_dicom(folder / "1.2.840.113", drawn().T * 4095)
    return folder


@pytest.fixture
def bundle() -> Callable[..., int]:
    """Run `crossband bundle ...`."""

    def run(*words: object) -> int:
        return main(["bundle", *map(str, words)])

    return run
