"""Bundles to try things on: small, written by us."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("monai", reason="MONAI is not installed: pip install 'crossband[medical]'")

from crossband.shared import create_model
from crossband.shared.bundles.writing import write_bundle
from crossband.shared.checkpoints import save_checkpoint

UNET = {
    "spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 8, 16],
    "strides": [2, 2],
}  # fmt: skip


def save(path: Path, task: str, model: str, arguments: dict, **facts) -> Path:
    torch.manual_seed(0)
    network = create_model(model, **arguments)
    config = {"task": task, "model": {"name": model, "arguments": arguments}, **facts}
    return save_checkpoint(path, network.state_dict(), config)


@pytest.fixture(scope="session")
def segmenter(tmp_path_factory) -> Path:
    """Checkpoint of a small U-Net with two classes."""
    path = tmp_path_factory.mktemp("weights") / "seg.safetensors"
    facts = {"classes": ["background", "disc"], "input_size": [32, 48], "channels": 1}
    facts |= {"normalisation": {"mean": [0.4], "std": [0.2]}, "modality": "XR"}
    return save(path, "segmentation", "monai:UNet", UNET, **facts)


@pytest.fixture(scope="session")
def segmentation_bundle(segmenter: Path, tmp_path_factory) -> Path:
    return write_bundle(segmenter, tmp_path_factory.mktemp("bundles") / "seg", authors="us")


@pytest.fixture(scope="session")
def classification_bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    small = {"depths": [1, 1, 1, 1], "dims": [4, 8, 8, 16], "kernel_sizes": [[3], [5], [7], [3]]}
    path = save(
        folder / "cls.safetensors",
        "classification",
        "unireplknet_a",
        {"num_classes": 3, **small},
        classes=["a", "b", "c"],
        input_size=[32, 32],
    )
    return write_bundle(path, folder / "cls")


def draw(folder: Path, count: int, size: tuple[int, int] = (60, 40)) -> Path:
    """Write images of bright discs, and their masks, of (width, height)."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[: size[1], : size[0]]
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for n in range(count):
        cx, cy, r = random.integers(12, 45), random.integers(10, 28), random.integers(6, 10)
        mask = (x - cx) ** 2 + (y - cy) ** 2 < r**2
        image = np.where(mask, 200, 60) + random.normal(0, 10, mask.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"images/{n}.png")
        Image.fromarray(mask.astype(np.uint8)).save(folder / f"labels/{n}.png")
    return folder


@pytest.fixture
def discs(tmp_path: Path) -> Path:
    return draw(tmp_path / "discs", 10)
