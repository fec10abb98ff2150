from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from crossband.shared.backbones.vit import ViTClassifier
from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.kernels.linear import Linear
from crossband.shared.tuning.freeze import linear_probe, train_only
from crossband.shared.tuning.lora import (
    EVERY_LAYER,
    LoRALinear,
    apply_lora,
    load_tuned,
    merge_lora,
    tuned_state,
)


def network(seed: int = 0) -> ViTClassifier:
    torch.manual_seed(seed)
    return ViTClassifier(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=3
    ).eval()


def fit(model: nn.Module, steps: int = 30) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 3, 32, 32, generator=generator)
    y = torch.arange(12) % 3
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def test_lora_starts_from_the_network_and_learns_with_few_parameters() -> None:
    model, x = network(), torch.randn(2, 3, 32, 32)
    before, frozen = model(x), {k: v.clone() for k, v in model.state_dict().items()}
    names = apply_lora(model, rank=4, targets=EVERY_LAYER)
    assert len(names) == 8
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-6)
    first, last = fit(model)
    assert last < 0.5 * first
    state = model.state_dict()
    changed = {k for k, v in frozen.items() if not torch.equal(state[k], v)}
    assert changed == {"head.weight", "head.bias"}
    assert frozen.keys() < state.keys()  # weights keep their names


def test_queries_and_values_are_adapted_and_keys_are_not() -> None:
    model = network()
    apply_lora(model, rank=2, alpha=6)
    layer = model.blocks[0].attn.qkv
    nn.init.normal_(layer.lora_B)
    delta = layer.delta().view(3, 24, 24)
    assert (delta[1] == 0).all() and (delta[0] != 0).any() and (delta[2] != 0).any()
    torch.testing.assert_close(delta[2], 3 * layer.lora_B[1] @ layer.lora_A[1])


def test_merging_keeps_the_values_and_leaves_plain_layers() -> None:
    model, x = network(), torch.randn(2, 3, 32, 32)
    apply_lora(model, rank=3, targets=EVERY_LAYER, qkv="qkv")
    for module in model.modules():
        if isinstance(module, LoRALinear):
            nn.init.normal_(module.lora_B, std=0.1)
    tuned = model(x)
    merge_lora(model)
    torch.testing.assert_close(model(x), tuned, rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == network().state_dict().keys()
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
    layers = [block.attn.qkv for block in model.blocks] + [model.blocks[1].mlp.fc2]
    assert all(type(layer) is Linear for layer in layers)
    assert not any(p.requires_grad for layer in layers for p in layer.parameters())
    apply_lora(model)  # again, from the merged weights


def test_what_was_tuned_is_small_and_can_be_loaded() -> None:
    model = network()
    apply_lora(model, rank=2)
    fit(model, 3)
    state = tuned_state(model)
    assert sum(v.numel() for v in state.values()) < 0.1 * sum(
        p.numel() for p in network().parameters()
    )
    other = network()
    apply_lora(other, rank=2)
    load_tuned(other, state, "tuned.safetensors")
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(other(x), model(x))
    plain = network()
    apply_lora(plain, rank=2, targets=EVERY_LAYER)
    with pytest.raises(CheckpointError, match="Prepare the network as it was trained"):
        load_tuned(plain, state, "tuned.safetensors")
    wider = network()
    apply_lora(wider, rank=3)
    with pytest.raises(CheckpointError, match=r"4 tensors are of another shape \(first: .*lora_A"):
        load_tuned(wider, state, "tuned.safetensors")


def test_lora_refuses_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="No linear layer"):
        apply_lora(network(), targets=("*.conv",))
    with pytest.raises(ConfigError, match="rank of 1"):
        apply_lora(network(), rank=0)
    with pytest.raises(ConfigError, match="give a rank"):
        apply_lora(network(), qkv="qx")
    model = network()
    apply_lora(model)
    with pytest.raises(ConfigError, match="adapted by LoRA already: call merge_lora first"):
        apply_lora(model, targets=EVERY_LAYER)


def test_an_adapted_network_can_be_copied_and_pickled() -> None:
    model, x = network(), torch.randn(2, 3, 32, 32)
    apply_lora(model, rank=2)
    nn.init.normal_(model.blocks[0].attn.qkv.lora_B)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.state_dict().keys() == model.state_dict().keys()
        torch.testing.assert_close(merge_lora(other)(x), model(x), rtol=1e-4, atol=1e-5)
    assert type(other.blocks[0].attn.qkv) is Linear


def test_a_linear_probe_trains_the_head_alone() -> None:
    model = nn.Sequential()
    model.add_module("body", nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model.add_module("flatten", nn.Flatten())
    model.add_module("head", nn.Linear(4 * 36, 2))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert linear_probe(model) == ["head.weight", "head.bias"]
    model.train()
    assert model.head.training and not model.body[1].training
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(4, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"head.weight", "head.bias"}
    with pytest.raises(ConfigError, match="matches 'nohead"):
        linear_probe(model, "nohead")


def test_a_probed_network_can_be_copied_and_pickled() -> None:
    model = nn.Sequential()
    model.add_module("body", nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()))
    model.add_module("head", nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)))
    linear_probe(model)
    linear_probe(model)  # once more changes nothing
    x = torch.randn(2, 3, 8, 8)
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.train()
        norm = other.body[1]
        assert isinstance(norm, nn.BatchNorm2d) and not norm.training
        assert other.body[2].training and other.head[0].training
        before = norm.running_mean.clone()
        other(x)
        assert torch.equal(norm.running_mean, before) and norm.num_batches_tracked == 0
        assert torch.equal(other.eval()(x), other(x))
    copied = copy.deepcopy(model)
    copied.body[1].running_mean += 1
    assert not torch.equal(copied.body[1].running_mean, model.body[1].running_mean)


def test_train_only_takes_patterns() -> None:
    model = network()
    chosen = train_only(model, ["*.norm1.*", "head.*"])
    assert len(chosen) == 6
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(chosen)
