from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone_tester import BackboneTester
from torch import Tensor
from torch.nn import functional as F

from crossband.shared.backbones.base import Backbone
from crossband.shared.backbones.transnext import (
    AggregatedAttention,
    CosineAttention,
    TransNeXt,
    TransNeXtClassifier,
    _offsets,
)
from crossband.shared.conformance import verify_file
from crossband.shared.errors import ConfigError

SMALL = {
    "embed_dims": (16, 24, 32, 48),
    "num_heads": (2, 3, 4, 6),
    "depths": (1, 1, 1, 1),
    "pretrain_size": 64,
}


class TestTransNeXt(BackboneTester):
    def make(self, **arguments: Any) -> Backbone:
        return TransNeXt(**{**SMALL, **arguments})


class TestTransNeXtInterpolated(BackboneTester):
    variant = True

    def make(self, **arguments: Any) -> Backbone:
        mode = {"position_bias": "interpolate", "img_size": (64, 96)}
        return TransNeXt(**{**SMALL, **mode, **arguments})


def test_golden_numbers(shared_dir: Path) -> None:
    report = verify_file(shared_dir / "fixtures/backbones/transnext.safetensors")
    assert report.passed, report


@pytest.mark.parametrize(("queries", "keys"), [(56, 7), (14, 7), (7, 7), (17, 2), (5, 1), (1, 1)])
def test_offsets_are_those_of_pooled_positions(queries: int, keys: int) -> None:
    values, index = _offsets(queries, keys, torch.device("cpu"))
    positions = torch.arange(queries, dtype=torch.float64)
    pooled = F.adaptive_avg_pool1d(positions[None], keys)[0]
    expected = positions[:, None] - pooled
    assert torch.equal(values[index].double(), expected)
    assert index.min() == 0 and index.max() == len(values) - 1
    if queries % keys == 0:
        assert len(values) == len(expected.unique())
    if (queries, keys) == (56, 7):
        assert len(values) ** 2 == 10816  # different offsets of stage 1 at 224 px


def test_position_bias_is_the_perceptron_at_every_pair() -> None:
    torch.manual_seed(0)
    layer = AggregatedAttention(16, 2, reduction=2, pretrain_side=14)
    height, width = 5, 8
    bias = layer.position_bias(height, width)
    assert bias.shape == (2, 40, 2 * 4)
    key_y = F.adaptive_avg_pool1d(torch.arange(5.0)[None], 2)[0]
    key_x = F.adaptive_avg_pool1d(torch.arange(8.0)[None], 4)[0]
    for query, key in ((0, 0), (39, 7), (13, 5)):
        offset = torch.stack((query // 8 - key_y[key // 4], query % 8 - key_x[key % 4])) * 8 / 13
        offset = offset.sign() * torch.log2(offset.abs() + 1) / 3
        expected = layer.cpb_fc2(layer.cpb_fc1(offset).relu())
        torch.testing.assert_close(bias[:, query, key], expected)


def test_bias_is_cached_in_eval_and_follows_the_weights() -> None:
    layer = AggregatedAttention(16, 2, reduction=2).eval()
    with torch.no_grad():
        first = layer.position_bias(8, 8)
        assert layer.position_bias(8, 8) is first
        assert layer.position_bias(8, 6) is not first
        again = layer.position_bias(8, 8)
        layer.cpb_fc2.weight.mul_(2)
        layer.cpb_fc2.bias.mul_(2)
        torch.testing.assert_close(layer.position_bias(8, 8), 2 * again)
        layer.load_state_dict({k: torch.zeros_like(v) for k, v in layer.state_dict().items()})
        assert layer.position_bias(8, 8).count_nonzero() == 0
        assert layer.to(torch.bfloat16).position_bias(8, 8).dtype == torch.bfloat16
    assert layer.position_bias(8, 8).requires_grad


def plain_aggregated(layer: AggregatedAttention, x: Tensor) -> Tensor:
    """The attention of one head written query by query."""
    height, width, dim = x.shape
    outputs = torch.zeros_like(x)
    q = F.normalize(layer.q(x), dim=-1)
    k, v = layer.kv(x).split(dim, -1)
    k = F.normalize(k, dim=-1)
    pooled = F.adaptive_avg_pool2d(
        F.gelu(layer.sr(x.permute(2, 0, 1)[None])), layer.pooled_size(height, width)
    )
    pooled = layer.norm(pooled[0].flatten(1).t())
    k_pool, v_pool = layer.kv(pooled).split(dim, -1)
    k_pool = F.normalize(k_pool, dim=-1)
    bias = layer.position_bias(height, width)[0]
    reach = layer.window_size // 2
    for y in range(height):
        for z in range(width):
            cells = [
                (y + dy, z + dz, index)
                for index, (dy, dz) in enumerate(
                    (dy, dz) for dy in range(-reach, reach + 1) for dz in range(-reach, reach + 1)
                )
                if 0 <= y + dy < height and 0 <= z + dz < width
            ]
            scale = F.softplus(layer.temperature)[0, 0, 0] * math.log(len(cells) + len(k_pool))
            query = (q[y, z] + layer.query_embedding[0, 0]) * scale
            near = [query @ k[a, b] + layer.relative_pos_bias_local[0, i] for a, b, i in cells]
            scores = torch.cat((torch.stack(near), k_pool @ query + bias[y * width + z]))
            weights = scores.softmax(0)
            outputs[y, z] = weights[len(cells) :] @ v_pool
            for (a, b, i), weight in zip(cells, weights[: len(cells)], strict=True):
                learned = q[y, z] @ layer.learnable_tokens[0, :, i] + layer.learnable_bias[0, 0, i]
                outputs[y, z] += (weight + learned) * v[a, b]
    return layer.proj(outputs)


@pytest.mark.parametrize("window", [3, 5])
def test_aggregated_attention_query_by_query(window: int) -> None:
    torch.manual_seed(0)
    layer = AggregatedAttention(8, 1, window, reduction=3).double()
    torch.nn.init.normal_(layer.learnable_tokens)
    torch.nn.init.normal_(layer.relative_pos_bias_local)
    x = torch.randn(7, 6, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer(x[None])[0], plain_aggregated(layer, x))


def test_attention_of_one_place_is_its_value() -> None:
    layer = CosineAttention(8, 2)
    x = torch.randn(2, 1, 1, 8)
    value = layer.qkv(x)[..., 16:]
    torch.testing.assert_close(layer(x), layer.proj(value))


def test_bad_sizes_are_said() -> None:
    with pytest.raises(ConfigError, match="5 heads cannot share 16 channels"):
        CosineAttention(16, 5)
    with pytest.raises(ConfigError, match="window_size 4 has no centre"):
        AggregatedAttention(16, 2, 4)


def test_the_default_takes_138_pixels() -> None:
    # The authors' network refuses it: 138 // 4 is 34, but the convolution gives 35.
    torch.manual_seed(0)
    model = TransNeXtClassifier(num_classes=4, **SMALL).eval()
    last, maps = model.forward_intermediates(torch.randn(1, 3, 138, 138))
    assert [y.shape[-1] for y in maps] == [35, 18, 9, 5]
    assert model(torch.randn(1, 3, 138, 138)).shape == (1, 4)


def test_interpolated_and_extrapolated_bias_agree_at_the_size_it_is_made_for() -> None:
    torch.manual_seed(0)
    model = TransNeXt(**SMALL).eval()
    other = TransNeXt(**SMALL, position_bias="interpolate", img_size=64).eval()
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(model(x), other(x), strict=True))
    x = torch.randn(1, 3, 96, 64)
    assert not torch.allclose(model(x)[2], other(x)[2], atol=1e-6)


def test_linear_mode_pools_to_one_size() -> None:
    torch.manual_seed(0)
    model = TransNeXt(**SMALL, fixed_pool_size=2).eval()
    assert model.block1[0].attn.position_bias(9, 20).shape == (2, 180, 4)
    assert model.block4[0].attn.position_bias(3, 2).shape == (6, 6, 6)
    assert [y.shape[2:] for y in model(torch.randn(1, 3, 36, 80))][:2] == [(9, 20), (5, 10)]


def test_no_weight_decay_on_similarity_and_position() -> None:
    model = TransNeXt(**SMALL)
    kinds = {name.rpartition("attn.")[2] for name in model.no_weight_decay()}
    assert kinds == {
        "query_embedding", "relative_pos_bias_local", "temperature",
        "cpb_fc1.weight", "cpb_fc1.bias", "cpb_fc2.weight", "cpb_fc2.bias",
    }  # fmt: skip
