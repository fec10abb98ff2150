from __future__ import annotations

from pathlib import Path

import pytest

from crossband.medical.data.synthetic import make_synthetic


@pytest.fixture(scope="session")
def nih(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-two drawn chests of 64 x 64 as NIH ChestX-ray14 has them."""
    return make_synthetic(tmp_path_factory.mktemp("nih"), 32, size=64)


@pytest.fixture(scope="session")
def xrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-two drawn chests of 64 x 64 with a csv and lung masks."""
    return make_synthetic(tmp_path_factory.mktemp("xrays"), 32, size=64, layout="csv")


@pytest.fixture(scope="session")
def dicoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as DICOM files, half of them MONOCHROME1, with names in the headers."""
    root = tmp_path_factory.mktemp("dicoms")
    return make_synthetic(root, 32, size=64, layout="csv", format="dicom")
