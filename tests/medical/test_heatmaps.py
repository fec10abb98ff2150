"""Heatmaps lie where the network looked, at the size of the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from crossband.medical.data.radiographs import read_radiograph
from crossband.medical.heatmaps import heatmap
from crossband.medical.networks import Opened
from crossband.medical.reader import Reader
from crossband.shared import load
from crossband.shared.errors import ConfigError


class Corner(torch.nn.Module):
    """A CNN whose outputs are the mean brightness of the upper left, and of the lower right."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 2, 1)
        with torch.no_grad():
            self.conv.weight.fill_(1 / 3)
            self.conv.bias.zero_()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = self.conv(image)
        middle = image.shape[-1] // 2
        first = found[:, 0, :middle, :middle].mean((1, 2))
        return torch.stack([first, found[:, 1, middle:, middle:].mean((1, 2))], 1)


def reader_of(size: int, resize: int) -> Reader:
    config = {
        **{"classes": ["first", "second"], "multilabel": True, "input_size": [size, size]},
        **{"reading": {"resize": resize, "window": []}},
        "normalisation": {"mean": [0.0] * 3, "std": [1.0] * 3},
    }
    model = Corner().eval()
    return Reader(Opened(model, config, torch.device("cpu"), None, model))


@pytest.mark.parametrize("shape", [(64, 64), (64, 100), (100, 64)])
def test_heat_lies_where_the_network_was_shown_something(shape: tuple[int, int]) -> None:
    """A bright spot in the middle of the image is a spot of heat at the same place."""
    pixels = np.zeros(shape, np.uint8)
    y, x = shape[0] // 2, shape[1] // 2
    pixels[y - 8 : y, x - 8 : x] = 255
    heat = heatmap(reader_of(32, 36), pixels, 0, "gradient")
    assert heat.shape == shape and heat.dtype == np.float32
    inside = heat[y - 8 : y, x - 8 : x]
    assert inside.mean() > 0.8 * heat.max() > 0
    weight = heat / heat.sum()
    centre = (weight.sum(1) @ np.arange(shape[0]), weight.sum(0) @ np.arange(shape[1]))
    assert centre == pytest.approx((y - 4.5, x - 4.5), abs=1.0)
    # The centre crop is 32 of 36 of the shorter side: beyond it nothing was seen.
    side = round(64 * 32 / 36)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    outside = np.ones(shape, bool)
    outside[top : top + side, left : left + side] = False
    assert outside.any() and (heat[outside] == heat.min()).all()


@pytest.mark.parametrize("method", ["gradient", "rollout"])
def test_a_trained_vit_gives_both(run: Path, xrays: Path, method: str) -> None:
    reader = load(run / "best.safetensors", device="cpu")
    pixels = read_radiograph(sorted((xrays / "images").iterdir())[0]).pixels
    before = reader.predict(pixels)
    first, second = (heatmap(reader, pixels, k, method) for k in (0, 1))
    assert first.shape == pixels.shape and np.isfinite(first).all() and first.min() >= 0
    assert np.array_equal(first, second) == (method == "rollout")
    assert reader.predict(pixels) == before


def test_networks_without_layers_have_none(exported, medical, tmp_path, xrays, capsys) -> None:
    pixels = read_radiograph(sorted((xrays / "images").iterdir())[0]).pixels
    with pytest.raises(ConfigError, match=r"give best\.safetensors"):
        heatmap(load(exported), pixels, 0, "gradient")
    line = ["--weights", exported, "--out", tmp_path / "f.csv", "--heatmaps"]
    assert medical("predict", xrays / "images", *line) == 2
    assert "Heatmaps need the layers" in capsys.readouterr().err
    assert not (tmp_path / "f.csv").exists()
