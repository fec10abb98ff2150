from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.backbones.vit import ViTClassifier
from crossband.shared.config import OptimizerConfig, ScheduleConfig
from crossband.shared.errors import ConfigError
from crossband.shared.registry import create_model
from crossband.shared.tuning.low_rank import (
    LowRankLinear,
    PELATask,
    feature_distillation,
    low_rank,
    merge_low_rank,
    rank_for,
    shape_like,
    weight_perturbation,
)


def network(seed: int = 0) -> ViTClassifier:
    torch.manual_seed(seed)
    return ViTClassifier(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=3
    ).eval()


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_full_rank_gives_the_same_outputs() -> None:
    layer = nn.Linear(20, 12)
    whole = LowRankLinear.of(layer, 12)
    x = torch.randn(5, 7, 20)
    torch.testing.assert_close(whole(x), layer(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.u.norm(dim=0), whole.v.norm(dim=1))  # roots on both sides


@pytest.mark.parametrize("rank", [1, 4, 11])
def test_the_error_is_the_tail_of_the_singular_values(rank: int) -> None:
    layer = nn.Linear(20, 12, bias=False)
    found = LowRankLinear.of(layer, rank)
    assert found.bias is None
    tail = torch.linalg.svdvals(layer.weight)[rank:].square().sum()
    error = (layer.weight - found.weight()).square().sum()
    torch.testing.assert_close(error, tail, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ratio", [1.0, 1.5, 2.0, 4.0])
def test_parameters_follow_the_formula(ratio: float) -> None:
    model = network()
    before = sum(p.numel() for p in model.blocks.parameters())
    ranks = low_rank(model, ratio=ratio)
    sizes = {"attn.qkv": (24, 72), "attn.proj": (24, 24), "mlp.fc1": (24, 96), "mlp.fc2": (96, 24)}
    saved = 0
    for block in range(2):
        for name, (inside, outside) in sizes.items():
            r = rank_for(inside, outside, ratio)
            if r * (inside + outside) < inside * outside:
                assert ranks[f"blocks.{block}.{name}"] == r
                saved += inside * outside - r * (inside + outside)
            else:
                assert f"blocks.{block}.{name}" not in ranks
    assert sum(p.numel() for p in model.blocks.parameters()) == before - saved
    if ratio == 1.0:
        assert set(name.rpartition(".")[2] for name in ranks) == {"fc1", "fc2"}  # 19.2: 19


def test_the_published_size() -> None:
    with torch.device("meta"):
        model = create_model("vit_base_patch16")
        state = {}
        for name, module in model.blocks.named_modules():
            if isinstance(module, nn.Linear):
                r = rank_for(module.in_features, module.out_features, 2.0)
                state[f"blocks.{name}.u"] = torch.empty(module.out_features, r)
                state[f"blocks.{name}.v"] = torch.empty(r, module.in_features)
        assert len(shape_like(model, state)) == 48
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(44.1, abs=0.1)


def test_layers_that_would_not_get_smaller_stay_exactly() -> None:
    model = network()
    layer, before = model.blocks[0].attn.proj, model(images())
    assert low_rank(model, rank=12, targets=("*.attn.proj",)) == {}  # 12 (24 + 24) = 24 24
    assert model.blocks[0].attn.proj is layer
    assert torch.equal(model(images()), before)
    assert low_rank(model, rank=11, targets=("*.attn.proj",)).keys() == {
        "blocks.0.attn.proj",
        "blocks.1.attn.proj",
    }


def test_merging_gives_linear_layers_with_the_same_outputs() -> None:
    model = network()
    keys = model.state_dict().keys()
    low_rank(model, ratio=2.0)
    assert "blocks.0.attn.qkv.u" in model.state_dict()
    assert "blocks.0.attn.qkv.bias" in model.state_dict()
    found = model(images())
    merge_low_rank(model)
    assert model.state_dict().keys() == keys
    torch.testing.assert_close(model(images()), found, rtol=1e-4, atol=1e-5)


def test_weights_of_a_small_network_can_be_loaded() -> None:
    small, other = network(), network(1)
    low_rank(small, ratio=2.0, targets=("*.mlp.fc1", "*.attn.qkv"))
    ranks = shape_like(other, small.state_dict())
    assert ranks == {
        f"blocks.{b}.{n}": r for b in (0, 1) for n, r in (("attn.qkv", 9), ("mlp.fc1", 9))
    }
    other.load_state_dict(small.state_dict())
    torch.testing.assert_close(other(images()), small(images()))
    with pytest.raises(ConfigError, match="has no linear layer there"):
        shape_like(nn.Sequential(nn.ReLU()), {"0.u": torch.zeros(2, 1), "0.v": torch.zeros(1, 2)})


def test_a_low_rank_weight_is_found_exactly() -> None:
    model = network()
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.fc1.weight.copy_(torch.randn(96, 3) @ torch.randn(3, 24) / 10)
    before = model(images())
    low_rank(model, rank=3, targets=("*.mlp.fc1",))
    torch.testing.assert_close(model(images()), before, rtol=1e-4, atol=1e-5)


def test_frozen_layers_stay_frozen() -> None:
    model = network().requires_grad_(False)
    low_rank(model, ratio=2.0)
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in merge_low_rank(model).parameters())


@pytest.mark.parametrize("options", [{}, {"rank": 2, "ratio": 2.0}, {"rank": 0}, {"ratio": 0.5}])
def test_bad_sizes(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give one of them, and no less than 1"):
        low_rank(network(), **options)
    with pytest.raises(ConfigError, match="No linear layer"):
        low_rank(network(), rank=2, targets=("*.conv",))


def test_losses_by_hand() -> None:
    a, b = torch.zeros(2, 3), torch.ones(2, 3)
    assert feature_distillation([a, a], [b, 3 * b]) == 5.0  # (1 + 9) / 2
    layer = nn.Sequential(nn.Linear(20, 12, bias=False))
    weight = layer[0].weight.detach()
    low_rank(layer, rank=4, targets=("0",))
    s = torch.linalg.svdvals(weight)
    part = (s[4:].square().sum() / s.square().sum()).sqrt()
    found = weight_perturbation(layer, {"0": weight})
    torch.testing.assert_close(found, part.square(), rtol=1e-4, atol=1e-6)
    bounded = weight_perturbation(layer, {"0": weight}, bound=0.1)
    torch.testing.assert_close(bounded, (part - 0.1).square(), rtol=1e-4, atol=1e-6)
    free = weight_perturbation(layer, {"0": weight}, bound=1.0)
    free.backward()
    assert free == 0 and layer[0].u.grad.abs().sum() == 0
    with pytest.raises(ConfigError, match="call low_rank first"):
        weight_perturbation(network(), {})


def test_training_brings_the_features_back() -> None:
    teacher = network()
    small = copy.deepcopy(teacher)
    low_rank(small, ratio=3.0)

    def objective(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch["image"]), batch["label"])

    trained = PELATask(
        small, OptimizerConfig(), ScheduleConfig(), teacher=teacher, objective=objective, beta=0.1
    )
    assert {k.removeprefix("model.") for k in trained.state_dict()} == small.state_dict().keys()
    batch = {"image": images(8), "label": torch.arange(8) % 3}

    def distance() -> float:
        wanted = teacher.forward_tokens(batch["image"]).x
        return F.mse_loss(small.forward_tokens(batch["image"]).x, wanted).item()

    first, before = trained.loss(batch).item(), distance()
    optimizer = torch.optim.AdamW(small.parameters(), 3e-3)
    for _ in range(60):
        loss = trained.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert distance() < 0.5 * before and loss < 0.5 * first
    assert all(p.grad is None for p in teacher.parameters())
    with pytest.raises(ConfigError, match="give the network that low_rank was called on"):
        PELATask(small, OptimizerConfig(), ScheduleConfig(), teacher=create_tiny())


def create_tiny() -> ViTClassifier:
    return ViTClassifier(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2)
