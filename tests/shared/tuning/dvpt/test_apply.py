from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crossband.shared import create_model
from crossband.shared.backbones.vit import ViT, ViTClassifier
from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.tuning.dvpt.apply import apply_dvpt
from crossband.shared.tuning.lora import load_tuned, tuned_state

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def vit(**options: Any) -> ViTClassifier:
    return ViTClassifier(num_classes=3, **{"global_pool": "avg"} | SIZES | options).eval()


def swin() -> nn.Module:
    sizes = {"img_size": 64, "embed_dim": 8, "depths": (2, 4), "num_heads": (2, 2)}
    return create_model(
        "timm:swin_tiny_patch4_window7_224", window_size=4, num_classes=3, **sizes
    ).eval()


def images(side: int = 32) -> Tensor:
    return torch.randn(2, 3, side, side)


def open_gates(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if "gate" in name:
            nn.init.constant_(parameter, 0.7)


@pytest.mark.parametrize("pool", ["avg", "token", "gem"])
@pytest.mark.parametrize("form", ["paper", "released"])
def test_a_vit_starts_as_the_frozen_network_with_prompts(pool: str, form: str) -> None:
    model, x = vit(global_pool=pool, reg_tokens=2), images()
    frozen = copy.deepcopy(model)
    apply_dvpt(model, prompts=5, rank=4, cross_attention=form)
    found, wanted = model.forward_tokens(x), frozen.forward_tokens(x, prompts=model.prompt_token)
    assert (found.prefix, found.prompts) == (3, 5)
    torch.testing.assert_close(found.x, wanted.x)
    assert found.patches().shape == (2, 16, 24)
    pooled = wanted.patches()
    if pool == "token":
        features = frozen.norm(wanted.x[:, 0])
    else:
        features = frozen.fc_norm(frozen.pool(pooled) if pool == "gem" else pooled.mean(1))
    torch.testing.assert_close(model(x), frozen.head(features))
    open_gates(model)
    assert not torch.allclose(model(x), frozen.head(features))


def test_the_two_forms_of_a_vit_follow_their_formulas() -> None:
    outputs = {}
    for form in ("paper", "released"):
        torch.manual_seed(1)
        model = vit(depth=1, layer_scale_init=0.5, class_token=False)
        apply_dvpt(model, prompts=5, rank=4, cross_attention=form)
        open_gates(model)
        x, block = model.embed_tokens(images()).x, model.blocks[0]
        middle = x + block.ls1(block.attn(block.norm1(x)))
        seen = middle
        if form == "paper":
            prompts, rest = middle[:, :5], middle[:, 5:]
            maps = (prompts @ rest.transpose(1, 2) / 24**0.5).softmax(-1)
            seen = torch.cat([maps @ rest, rest], 1)
        wanted = middle + block.ls2(block.mlp(block.norm2(middle))) + block.prompt_proj(seen)
        outputs[form] = block(x)
        torch.testing.assert_close(outputs[form], wanted)
    assert not torch.allclose(outputs["paper"], outputs["released"])


def test_prompts_are_no_part_of_a_backbones_maps() -> None:
    model = ViT(out_indices=(1, 3), **SIZES).eval()
    apply_dvpt(model, prompts=5, rank=4)
    assert [m.shape for m in model(images())] == [(2, 24, 4, 4)] * 2
    assert model.attention_logits(images()).shape == (2, 2, 22, 22)


def test_a_swin_starts_as_the_frozen_network() -> None:
    model, x = swin(), images(64)
    frozen = copy.deepcopy(model)
    apply_dvpt(model)
    torch.testing.assert_close(model(x), frozen(x))
    open_gates(model)
    assert not torch.allclose(model(x), frozen(x))
    released = copy.deepcopy(frozen)
    apply_dvpt(released, cross_attention="released")
    assert not torch.allclose(released(x), frozen(x))  # its prompts have no gate


def test_the_papers_form_of_a_swin_prefers_no_place() -> None:
    """A window's tokens in another order, with no positions: the same, in another order."""
    changes = {}
    for form in ("paper", "released"):
        torch.manual_seed(2)
        model = swin()
        apply_dvpt(model, cross_attention=form)
        open_gates(model)
        block = model.layers[1].blocks[0]  # of windows that are not shifted
        nn.init.zeros_(block.attn.relative_position_bias_table)
        x = torch.randn(1, 4, 4, 16)
        order = torch.randperm(16)
        moved = x.flatten(1, 2)[:, order].view_as(x)
        changes[form] = (block(moved).flatten(1, 2) - block(x).flatten(1, 2)[:, order]).abs().max()
    assert changes["paper"] < 1e-5 < changes["released"]


@pytest.mark.parametrize(("build", "side"), [(vit, 32), (swin, 64)])
def test_only_what_is_named_is_trained(build: Any, side: int) -> None:
    model = build()
    names = apply_dvpt(model, prompts=5, rank=4, also_train=("head.*", "norm.*", "nothing.*"))
    assert all("prompt" in n or n.startswith(("head.", "norm.")) for n in names)
    assert any(n.startswith("head.") for n in names)
    open_gates(model)
    model.train()
    model(images(side)).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is not None] == names
    bare = build()
    assert not any(n.startswith("head.") for n in apply_dvpt(bare, also_train=()))


def test_the_trained_part_is_that_of_the_paper() -> None:
    with torch.device("meta"):
        model = create_model("clip_vit_base_patch16", num_classes=0, global_pool="token")
        apply_dvpt(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 202_836 - 50 * 768  # one table of prompts in place of tokens and positions


@pytest.mark.parametrize(("build", "side"), [(vit, 32), (swin, 64)])
def test_what_was_tuned_is_small_and_can_be_loaded(build: Any, side: int) -> None:
    torch.manual_seed(3)
    model, other = build(), build()
    other.load_state_dict(model.state_dict())
    names = apply_dvpt(model, prompts=5, rank=4)
    open_gates(model)
    state = tuned_state(model)
    assert set(state) == set(names)  # each tied tensor once, no buffers
    apply_dvpt(other, prompts=5, rank=4)
    load_tuned(other, state, "tuned.safetensors")
    x = images(side)
    torch.testing.assert_close(other(x), model(x))
    unlike = build()
    apply_dvpt(unlike, prompts=5, rank=4, share=2)
    with pytest.raises(CheckpointError, match="keys differ"):
        load_tuned(unlike, state, "tuned.safetensors")


def test_the_whole_state_keeps_the_tie() -> None:
    model, other = vit(), vit()
    apply_dvpt(model, prompts=5, rank=4, share=2)
    apply_dvpt(other, prompts=5, rank=4, share=2)
    open_gates(model)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    assert torch.equal(
        state["blocks.0.prompt_proj.prompt_gate"], state["blocks.1.prompt_proj.prompt_gate"]
    )
    other.load_state_dict(state)
    assert other.blocks[0].prompt_proj is other.blocks[1].prompt_proj
    x = images()
    torch.testing.assert_close(other(x), model(x))
    state["blocks.1.prompt_proj.prompt_gate"] += 1
    with pytest.raises(CheckpointError, match="which are one parameter"):
        other.load_state_dict(state)


def test_prompts_learn() -> None:
    model = vit()
    names = apply_dvpt(model, prompts=5, rank=8)
    frozen = {k: v.clone() for k, v in model.state_dict().items()}
    x, y = torch.randn(12, 3, 32, 32), torch.arange(12) % 3
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(model.train()(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, frozen[k])}
    assert set(names) <= changed
    assert all("prompt" in key or key.startswith("head.") for key in changed)


def test_recomputed_blocks_and_export_give_the_same() -> None:
    model, x = vit(), images()
    apply_dvpt(model, prompts=5, rank=4)
    open_gates(model)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))
    model.train()(x).sum().backward()
    wanted = model.prompt_token.grad.clone()
    model.zero_grad()
    model.set_grad_checkpointing()
    model(x).sum().backward()
    torch.testing.assert_close(model.prompt_token.grad, wanted)


def test_other_networks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot tune Linear: give one of our ViTs .*timm:swin"):
        apply_dvpt(nn.Linear(2, 2))
    model = vit()
    apply_dvpt(model)
    with pytest.raises(ConfigError, match="already"):
        apply_dvpt(model)
    with pytest.raises(ConfigError, match="0 prompts"):
        apply_dvpt(vit(), prompts=0)
