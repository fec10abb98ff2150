import crossband.shared.compat  # noqa: F401, I001 - before anything imports torchvision

import os
from pathlib import Path

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread per worker: oversubscribed cores slow each other down several times over.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of golden fixtures and real data packs; tests that need it skip without it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("CROSSBAND_SHARED", folder))
    if not folder.is_dir():
        pytest.skip("no folder of fixtures and data: set CROSSBAND_SHARED")
    return folder
