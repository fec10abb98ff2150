from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from crossband.apps.main import main


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
