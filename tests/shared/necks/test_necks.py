from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crossband.shared.backbones.vit import ViT
from crossband.shared.conformance import read_fixture
from crossband.shared.errors import ConfigError
from crossband.shared.necks import LLFPN, NeckedBackbone, SelectResize, SimpleFeaturePyramid


def vit(**arguments) -> ViT:
    return ViT(img_size=64, embed_dim=24, depth=3, num_heads=3, **arguments)


def test_ll_fpn_equals_the_authors(shared_dir: Path) -> None:
    fixture = read_fixture(shared_dir / "fixtures/infrared/unip_seg.safetensors")
    backbone = vit(layer_scale_init=1.0).eval()
    neck = LLFPN(24).eval()
    own = {k.removeprefix("backbone."): v for k, v in fixture.weights.items() if "backbone." in k}
    neck.load_state_dict({k: v for k, v in own.items() if k.startswith("fpn")})
    from crossband.shared.backbones.vit_keys import translate

    inner = {k: v for k, v in fixture.weights.items() if k.startswith("backbone.")}
    state = backbone.adapt_state(translate(inner)[0])
    backbone.load_state_dict({k: v for k, v in state.items() if not k.startswith("norm.")})
    maps = NeckedBackbone(backbone, neck)(fixture.inputs["image"])
    for number, found in enumerate(maps):
        torch.testing.assert_close(found, fixture.outputs[f"fpn{number}"], rtol=1e-4, atol=1e-4)


def test_ll_fpn_takes_one_map_or_four() -> None:
    neck = LLFPN(6).eval()
    x = torch.randn(2, 6, 5, 4)
    maps = neck([x])
    assert [tuple(y.shape[-2:]) for y in maps] == [(20, 16), (10, 8), (5, 4), (2, 2)]
    assert all(torch.equal(a, b) for a, b in zip(maps, neck([x] * 4), strict=True))
    assert neck.strides == [4, 8, 16, 32] and neck.out_channels == [6] * 4
    with pytest.raises(ConfigError, match="one map or four, not 2"):
        neck([x, x])


def test_simple_feature_pyramid() -> None:
    neck = SimpleFeaturePyramid(8, 5, stride=16).eval()
    maps = neck([torch.randn(1, 3, 2, 2), torch.randn(1, 8, 6, 4)])  # the last map is taken
    assert [tuple(y.shape) for y in maps] == [
        (1, 5, 24, 16), (1, 5, 12, 8), (1, 5, 6, 4), (1, 5, 3, 2),
    ]  # fmt: skip
    sum(y.square().mean() for y in maps).backward()
    assert all(p.grad is not None for p in neck.parameters())


def test_select_resize() -> None:
    neck = SelectResize([3, 4], [16, 16], indices=(0, 0, 1, -1), strides=(4, 8, 16, 32))
    a, b = torch.ones(1, 3, 4, 6), torch.full((1, 4, 4, 6), 2.0)
    maps = neck([a, b])
    assert [tuple(y.shape) for y in maps] == [
        (1, 3, 16, 24), (1, 3, 8, 12), (1, 4, 4, 6), (1, 4, 2, 3),
    ]  # fmt: skip
    assert maps[2] is b and all((y == y.flatten()[0]).all() for y in maps)
    assert neck.out_channels == [3, 3, 4, 4]
    with pytest.raises(ConfigError, match="name no map"):
        SelectResize([3], [16], indices=(1,), strides=(4,))
    with pytest.raises(ConfigError, match="give one for each"):
        SelectResize([3], [16], indices=(0,), strides=(4, 8))


@pytest.mark.parametrize("neck", ["ll_fpn", "simple_fpn", "select_resize"])
def test_a_plain_vit_becomes_a_pyramid(neck: str) -> None:
    model = NeckedBackbone(vit(out_indices=(0, 1, 2, 2)), neck).eval()
    maps = model(torch.randn(1, 3, 64, 96))
    assert model.strides == [4, 8, 16, 32]
    for y, channels, stride in zip(maps, model.out_channels, model.strides, strict=True):
        assert tuple(y.shape) == (1, channels, 64 // stride, 96 // stride)
    layers = {model.layer_index(name) for name, _ in model.named_parameters()}
    assert layers == set(range(5)) if neck != "select_resize" else layers == set(range(4))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="no neck 'fpn'"):
        NeckedBackbone(vit(), "fpn")
    import torch.nn as nn

    pyramid = nn.Identity()
    pyramid.out_channels, pyramid.strides = [8, 16], [4, 8]
    with pytest.raises(ConfigError, match="one stride"):
        NeckedBackbone(pyramid, "ll_fpn")
    for neck in ("ll_fpn", LLFPN(24)):
        with pytest.raises(ConfigError, match="one map or four, and this backbone gives 2"):
            NeckedBackbone(vit(out_indices=(0, 1)), neck)
    with pytest.raises(ConfigError, match="stride cannot be set on a LLFPN that is built"):
        NeckedBackbone(vit(), LLFPN(24), stride=4)
    for build in (LLFPN, SimpleFeaturePyramid):
        with pytest.raises(ConfigError, match="stride 14 make no pyramid"):
            build(8, stride=14)
    with pytest.raises(ConfigError, match="select_resize"):
        NeckedBackbone(vit(patch_size=14), "simple_fpn")


def test_a_map_of_the_right_stride_is_not_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    neck = SelectResize([3], [16], indices=(0,), strides=(16,))
    x = torch.randn(1, 3, 4, 4)
    monkeypatch.setattr("torch.nn.functional.interpolate", None)
    assert neck([x])[0] is x


def test_the_backbones_tables_take_no_weight_decay() -> None:
    model = NeckedBackbone(vit(), "ll_fpn")
    assert "backbone.pos_embed" in model.no_weight_decay()
    assert all(name.startswith("backbone.") for name in model.no_weight_decay())
