from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from backbone_tester import BackboneTester
from model_tester import ModelTester
from torch import Tensor

from crossband.shared.backbones.base import Backbone
from crossband.shared.backbones.vit import ViT, ViTClassifier, scaled_logits
from crossband.shared.errors import ConfigError
from crossband.shared.necks import NeckedBackbone

TINY = {"img_size": 64, "patch_size": 16, "embed_dim": 24, "depth": 3, "num_heads": 3}


def vit(**arguments: Any) -> ViT:
    return ViT(**(TINY | arguments))


def classifier(**arguments: Any) -> ViTClassifier:
    return ViTClassifier(**(TINY | {"num_classes": 5} | arguments))


class TestViTWithSimpleFeaturePyramid(BackboneTester):
    image_size = (64, 96)

    def make(self, out_indices: tuple[int, ...] = (0, 1, 2, 3), **arguments: Any) -> Backbone:
        backbone = vit(layer_scale_init=0.5, **arguments)
        return NeckedBackbone(backbone, "simple_fpn", out_channels=8, out_indices=out_indices)

    @pytest.fixture
    def model(self) -> Backbone:
        torch.manual_seed(0)
        model = self.make().eval()
        model.first_conv = f"backbone.{model.backbone.first_conv}"
        return model

    @pytest.mark.parametrize("size", [(32, 32), (64, 160), (96, 33)])
    def test_any_size(self, model: Backbone, size: tuple[int, int]) -> None:
        maps = model(self.image(1, *size))
        rows, columns = (-(-side // 16) for side in size)
        wanted = [(4 * rows, 4 * columns), (2 * rows, 2 * columns), (rows, columns)]
        wanted.append((rows // 2, columns // 2))
        assert [tuple(y.shape[-2:]) for y in maps] == wanted

    def test_too_small_an_image_is_refused(self, model: Backbone) -> None:
        with pytest.raises(RuntimeError):  # the coarsest map would be empty
            model(self.image(1, 1, 1))

    def test_out_indices(self, model: Backbone, x: Tensor) -> None:
        chosen = self.make(out_indices=(1, -1)).eval()
        chosen.load_state_dict(model.state_dict())
        for a, b in zip(chosen(x), (model(x)[1], model(x)[3]), strict=True):
            assert torch.equal(a, b)
        assert chosen.strides == [8, 32]


class TestClassifierByClassToken(ModelTester):
    input_shape, output_shape = (3, 64, 64), (5,)

    def make(self) -> ViTClassifier:
        return classifier(global_pool="token")


class TestClassifierByMean(ModelTester):
    input_shape, output_shape = (3, 64, 64), (5,)

    def make(self) -> ViTClassifier:
        return classifier(global_pool="avg", class_token=False, reg_tokens=2, pre_norm=True)


class TestClassifierByGeM(ModelTester):
    input_shape, output_shape = (3, 64, 64), (5,)

    def make(self) -> ViTClassifier:
        return classifier(global_pool="gem", gem_groups=3, act="quick_gelu")


@pytest.mark.parametrize("size", [(64, 64), (50, 100), (16, 16), (130, 64)])
def test_maps_of_any_size(size: tuple[int, int]) -> None:
    model = vit(out_indices=(0, 2, -1)).eval()
    maps = model(torch.randn(2, 3, *size))
    grid = tuple(-(-side // 16) for side in size)
    assert [tuple(y.shape) for y in maps] == [(2, 24, *grid)] * 3
    assert torch.equal(maps[1], maps[2]) and not torch.equal(maps[0], maps[1])
    assert model.out_channels == [24] * 3 and model.strides == [16] * 3


def test_equal_to_timm(tmp_path: Path) -> None:
    """Same keys, same numbers: with class token and norm, and with layer scale and mean."""
    import timm

    arguments = {"img_size": 64, "patch_size": 16, "embed_dim": 24, "depth": 3, "num_heads": 3}
    x = torch.randn(2, 3, 64, 64)
    for theirs, ours in (
        ({"num_classes": 5}, {}),
        (
            {"num_classes": 5, "global_pool": "avg", "fc_norm": True, "init_values": 0.3},
            {"global_pool": "avg", "layer_scale_init": 0.1},
        ),
    ):
        torch.manual_seed(0)
        reference = timm.models.VisionTransformer(**arguments, **theirs).eval()
        torch.nn.init.normal_(reference.pos_embed)
        model = classifier(**ours).eval()
        model.load_state_dict(reference.state_dict())
        torch.testing.assert_close(model(x), reference(x), rtol=1e-4, atol=1e-5)
        backbone = vit(out_indices=(0, -1), final_norm="global_pool" not in theirs, **{
            k: v for k, v in ours.items() if k == "layer_scale_init"
        }).eval()  # fmt: skip
        state = {k: v for k, v in reference.state_dict().items() if k in backbone.state_dict()}
        backbone.load_state_dict(state)
        wanted = reference.forward_intermediates(
            x, [0, 2], norm="global_pool" not in theirs, intermediates_only=True
        )
        for a, b in zip(backbone(x), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_attention_is_captured_without_changing_the_result() -> None:
    model = vit(num_heads=4, last_heads=2).eval()
    x = torch.randn(2, 3, 64, 64)
    plain = model.forward_tokens(x)
    found = model.forward_tokens(x, capture=(0, -1), layers=(1,))
    torch.testing.assert_close(found.x, plain.x, rtol=1e-4, atol=1e-5)
    assert set(found.attention) == {0, 2} and set(found.layers) == {1}
    assert found.attention[0].shape == (2, 4, 17, 17)
    assert found.attention[2].shape == (2, 2, 17, 17)  # the last block has its own heads
    block = model.blocks[2]
    q, k, _ = block.attn.heads(block.norm1(found.layers[1]))
    wanted = scaled_logits(q, k)
    torch.testing.assert_close(found.attention[2], wanted)
    maps = model.forward_tokens(x, capture=(0,), capture_kind="maps").attention[0]
    torch.testing.assert_close(maps, found.attention[0].softmax(-1))
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 4, 17))


def test_only_kept_patches_are_computed() -> None:
    model = vit().eval()
    x = torch.randn(2, 3, 64, 64)
    keep = torch.stack([torch.randperm(16)[:4] for _ in range(2)])
    found = model.forward_tokens(x, keep=keep)
    assert found.x.shape == (2, 5, 24) and found.grid == (4, 4)
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(
        model.forward_tokens(x, keep=everything).x, model.forward_tokens(x).x
    )
    order = everything.flip(1)  # the order of tokens does not matter but for their places
    flipped = model.forward_tokens(x, keep=order).patches().flip(1)
    torch.testing.assert_close(flipped, model.forward_tokens(x).patches(), rtol=1e-4, atol=1e-5)


def test_prompts_stand_behind_the_class_token_and_can_be_deep() -> None:
    model = vit(reg_tokens=1).eval()
    x = torch.randn(2, 3, 64, 64)
    shallow = torch.randn(5, 24)
    found = model.forward_tokens(x, prompts=shallow, capture=(0,))
    assert found.x.shape == (2, 2 + 5 + 16, 24) and (found.prefix, found.prompts) == (2, 5)
    assert found.patches().shape == (2, 16, 24) and found.map().shape == (2, 24, 4, 4)
    each = shallow.expand(2, -1, -1)
    torch.testing.assert_close(model.forward_tokens(x, prompts=each).x, found.x)
    deep = [torch.randn(5, 24) for _ in range(3)]
    deeper = model.forward_tokens(x, prompts=deep)
    assert deeper.x.shape == found.x.shape
    one = model.forward_tokens(x, prompts=deep[0], until=0)
    torch.testing.assert_close(deeper.x.shape, one.x.shape)
    with pytest.raises(ConfigError, match="2 prompts for 3 blocks"):
        model.forward_tokens(x, prompts=deep[:2])
    with pytest.raises(ConfigError, match=r"Deep prompts of \[3, 5\] tokens: give every block"):
        model.forward_tokens(x, prompts=[deep[0], deep[1][:3], deep[2].expand(2, -1, -1)])


def test_blocks_after_until_are_not_run() -> None:
    model = vit().eval()
    x = torch.randn(1, 3, 64, 64)
    found = model.forward_tokens(x, until=1, layers=(1,))
    assert torch.equal(found.x, found.layers[1])
    with pytest.raises(ConfigError, match="numbers? from 0 to 2"):
        model.forward_tokens(x, until=3)


def test_layers_for_layer_wise_rates() -> None:
    model = classifier(global_pool="avg")
    layers = {name: model.layer_index(name) for name, _ in model.named_parameters()}
    assert layers["cls_token"] == layers["pos_embed"] == layers["patch_embed.proj.bias"] == 0
    assert layers["blocks.2.mlp.fc1.weight"] == 3
    assert layers["fc_norm.weight"] == layers["head.bias"] == 4


def test_fixed_tables_are_not_trained_and_other_grids_are_interpolated() -> None:
    model = vit(pos_embed="sincos")
    assert not model.pos_embed.requires_grad and model.pos_embed.abs().sum() > 0
    assert vit().pos_embed.requires_grad
    small = vit(img_size=32)
    state = small.adapt_state(model.state_dict())
    small.load_state_dict(state)
    assert small.pos_embed.shape == (1, 5, 24)
    torch.testing.assert_close(small.pos_embed[:, 0], model.pos_embed[:, 0])


def test_drop_path_rises_or_is_constant() -> None:
    assert [b.drop_path.rate for b in vit(drop_path_rate=0.2).blocks] == [0.0, 0.1, 0.2]
    constant = vit(drop_path_rate=0.2, drop_path_mode="constant")
    assert [b.drop_path.rate for b in constant.blocks] == [0.2] * 3


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="24 channels cannot be split over 5 heads"):
        vit(num_heads=5)
    with pytest.raises(ConfigError, match="class token"):
        classifier(class_token=False)
    with pytest.raises(ConfigError, match="out_indices"):
        vit(out_indices=(3,))
