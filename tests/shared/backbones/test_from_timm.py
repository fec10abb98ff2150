from __future__ import annotations

from pathlib import Path

import crossband.shared.compat  # noqa: F401

import pytest
import timm
import torch

from crossband.shared.backbones.base import Backbone
from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.registry import create_model, get_entry, model_info


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("resnet18", [2, 4, 8, 16, 32]),
        ("convnext_atto", [4, 8, 16, 32]),
        ("vit_tiny_patch16_224", [16, 16, 16]),
        ("swin_tiny_patch4_window7_224", [4, 8, 16, 32]),  # (B, H, W, C) inside
    ],
)
def test_maps_of_timm_models(name: str, strides: list[int]) -> None:
    model = create_model(f"timm:{name}", features_only=True).eval()
    assert isinstance(model, Backbone) and model.strides == strides
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 224, 224))
    for y, channels, stride in zip(maps, model.out_channels, strides, strict=True):
        assert y.shape == (1, channels, 224 // stride, 224 // stride)


def test_arguments_reach_timm() -> None:
    model = create_model("timm:resnet18", features_only=True, out_indices=(1, 3), in_chans=1)
    assert model.strides == [4, 16] and model.out_channels == [64, 256]
    assert len(model(torch.zeros(1, 1, 64, 64))) == 2
    with pytest.raises(ConfigError, match="does not take these arguments"):
        create_model("timm:resnet18", features_only=True, no_such=1)
    with pytest.raises(ConfigError, match="timm has no model 'resnet81'"):
        create_model("timm:resnet81", features_only=True)
    with pytest.raises(ConfigError, match="timm gives no feature maps of 'resnet18'.*out_indices"):
        create_model("timm:resnet18", features_only=True, out_indices=(9,))


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_weights_of_the_whole_model(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole, path = timm.create_model(name, num_classes=4).eval(), tmp_path / "whole.pth"
    torch.save(whole.state_dict(), path)
    model = create_model(f"timm:{name}", path, features_only=True, num_classes=4).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = whole.forward_intermediates(x, intermediates_only=True)[-1]
    torch.testing.assert_close(model(x)[-1], expected)
    again = create_model(f"timm:{name}", path, num_classes=4).eval()
    assert torch.equal(again(x), whole(x))
    with pytest.raises(CheckpointError, match="does not fit"):
        create_model(f"timm:{name}", path, features_only=True)


def test_facts_of_a_timm_model() -> None:
    info = model_info("timm:convnext_atto")
    model = timm.create_model("convnext_atto")
    assert info["parameters"] == sum(p.numel() for p in model.parameters())
    assert info["input_shape"] == [3, 224, 224] and info["mean"] == [0.485, 0.456, 0.406]
    assert get_entry("timm:convnext_atto").licence == "apache-2.0"
