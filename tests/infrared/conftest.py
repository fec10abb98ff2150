from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
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


@pytest.fixture(scope="session")
def frames(tmp_path_factory) -> Path:
    """Fourteen grey frames with a warm blob each."""
    folder = tmp_path_factory.mktemp("frames") / "thermal"
    folder.mkdir()
    y, x = np.mgrid[:40, :52]
    random = np.random.default_rng(0)
    for number in range(14):
        place = random.uniform(8, 32, 2)
        blob = 150 * np.exp(-((y - place[0]) ** 2 + (x - place[1]) ** 2) / random.uniform(20, 200))
        frame = 40 + 1.2 * y + blob + random.normal(0, 3, y.shape)
        cv2.imwrite(str(folder / f"{number}.png"), frame.clip(0, 255).astype(np.uint8))
    return folder


@pytest.fixture(scope="session")
def infrared() -> Callable[..., int]:
    """Run `crossband infrared ...` on the CPU."""

    def run(verb: str, *words: object) -> int:
        return main(["infrared", verb, "--device", "cpu", *map(str, words)])

    return run


@pytest.fixture(scope="session")
def teacher(frames: Path, infrared, tmp_path_factory) -> Path:
    """Checkpoint of a short `pretrain --recipe tiny_mae`."""
    out = tmp_path_factory.mktemp("teacher") / "mae"
    words = ["--recipe", "tiny_mae", "--trainer.max_epochs", 2, "--quiet"]
    assert infrared("pretrain", *words, "--data.root", frames, "--out", out) == 0
    return out / "best.safetensors"
