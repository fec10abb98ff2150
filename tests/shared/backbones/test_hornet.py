from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone_tester import BackboneTester

from crossband.shared.backbones.base import Backbone
from crossband.shared.backbones.hornet import (
    GlobalLocalFilter,
    GnConv,
    HorNet,
    HorNetClassifier,
    resize_filter,
)
from crossband.shared.conformance import verify_file
from crossband.shared.errors import ConfigError

SMALL = {"depths": (1, 1, 2, 1), "base_dim": 16, "layer_scale_init_value": 0.3}
FILTERS = (None, None, (4, 4), (2, 2))


class TestHorNet(BackboneTester):
    round_side = staticmethod(math.floor)
    too_small = (64, 31)

    def make(self, **arguments: Any) -> Backbone:
        return HorNet(**{**SMALL, **arguments})


class TestHorNetGlobalFilter(BackboneTester):
    variant = True
    round_side = staticmethod(math.floor)
    too_small = (31, 64)
    onnx = False

    def make(self, **arguments: Any) -> Backbone:
        return HorNet(**{**SMALL, "filter_sizes": FILTERS, **arguments})


@pytest.mark.parametrize("name", ["hornet_small_7x7", "hornet_small_gf"])
def test_golden_numbers(shared_dir: Path, name: str) -> None:
    report = verify_file(shared_dir / f"fixtures/backbones/{name}.safetensors")
    assert report.passed, report


def test_gnconv_of_order_two_is_one_gate() -> None:
    torch.manual_seed(0)
    layer, x = GnConv(8, 2), torch.randn(2, 8, 9, 7)
    p, q = layer.proj_in(x).split((4, 12), dim=1)
    q = layer.dwconv(q) / 3
    expected = layer.proj_out(layer.pws[0](p * q[:, :4]) * q[:, 4:])
    torch.testing.assert_close(layer(x), expected)
    with pytest.raises(ConfigError, match="order 4 cannot halve 12 channels 3 times.*of 8"):
        GnConv(12, 4)


def test_global_filter_is_a_circular_convolution() -> None:
    torch.manual_seed(0)
    layer, x = GlobalLocalFilter(4, (6, 4)), torch.randn(1, 4, 6, 6)
    # A delay of one row is a phase in the spectrum.
    rows = torch.arange(6) / 6
    phase = torch.exp(-2j * torch.pi * rows)[None, :, None].expand(2, 6, 4)
    layer.complex_weight.data = torch.view_as_real(phase.to(torch.complex64).contiguous())
    y = layer.pre_norm(x)
    near, far = layer.dw(y[:, :2]), y[:, 2:].roll(1, dims=2)
    expected = layer.post_norm(torch.stack((near, far), 2).flatten(1, 2))
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_filters_of_another_size_are_interpolated_on_loading() -> None:
    torch.manual_seed(0)
    old = HorNetClassifier(num_classes=3, filter_sizes=FILTERS, **SMALL)
    larger = (None, None, (7, 5), (3, 3))
    new = HorNetClassifier(num_classes=3, filter_sizes=larger, **SMALL)
    new.load_state_dict(new.adapt_state(old.state_dict()))
    key = "stages.3.0.gnconv.dwconv.complex_weight"
    before, after = old.state_dict()[key], new.state_dict()[key]
    # Corners stay, and the middle of an edge is the mean of its corners.
    assert torch.equal(after[:, ::2, ::2], before)
    torch.testing.assert_close(after[:, 0, 1], before[:, 0].mean(1))
    assert resize_filter(before, (2, 2)) is before


def test_both_forms_share_their_stages() -> None:
    torch.manual_seed(0)
    backbone = HorNet(**SMALL).eval()
    torch.manual_seed(0)
    classifier = HorNetClassifier(num_classes=3, **SMALL).eval()
    x = torch.randn(1, 3, 64, 64)
    _, raw = classifier.forward_intermediates(x)
    for index, (y, plain) in enumerate(zip(backbone(x), raw, strict=True)):
        torch.testing.assert_close(y, backbone.get_submodule(f"norm{index}")(plain))
