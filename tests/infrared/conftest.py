from __future__ import annotations

from pathlib import Path

import pytest

from crossband.apps.main import main
from crossband.infrared.data.synthetic import make_synthetic

# A network of the real kind, as small as the sizes of the catalog allow.
SMALL = (
    *("--model", "unip_tiny", "--network.img_size", "64", "--network.channels", "16"),
    *("--network.auxiliary", "false", "--network.drop_path", "0", "--data.crop", "64"),
    *("--data.scale.short_side", "64", "--data.ratio", "1", "1", "--loader.batch_size", "4"),
)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve street scenes of 64 x 80."""
    return make_synthetic(tmp_path_factory.mktemp("scenes"), 12, size=(64, 80))


@pytest.fixture(scope="session")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a network that was trained for two epochs."""
    out = tmp_path_factory.mktemp("run") / "small"
    words = ["infrared", "train", *SMALL, "--data.root", str(scenes), "--out", str(out)]
    assert main([*words, "--trainer.max_epochs", "2", "--quiet"]) == 0
    return out
