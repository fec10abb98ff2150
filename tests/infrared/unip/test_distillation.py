"""UNIP's distillation: golden numbers, what is computed and what is not, and that it teaches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from crossband.infrared.unip.distillation import (
    HybridAttentionDistillation,
    attention_cross_entropy,
    attention_kl,
    unused_parameters,
)
from crossband.infrared.unip.model import UNIPViT
from crossband.shared.config import OptimizerConfig, ScheduleConfig
from crossband.shared.conformance import read_fixture, verify_file
from crossband.shared.errors import ConfigError
from crossband.shared.tuning.lora import LoRALinear, apply_lora
from crossband.shared.tuning.low_rank import low_rank

SETTINGS = (OptimizerConfig(), ScheduleConfig())


def student(**given: object) -> UNIPViT:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
    return UNIPViT(**{**sizes, "last_heads": 4, "drop_path_rate": 0.0, **given})


def teacher(**given: object) -> UNIPViT:
    torch.manual_seed(1)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 4}
    return UNIPViT(**{**sizes, "drop_path_rate": 0.5, **given})


class Broken(nn.Module):
    """Must not be run."""

    def forward(self, *inputs: Tensor) -> Tensor:
        raise AssertionError("this part should not be computed")


def test_the_authors_numbers(shared_dir) -> None:
    path = shared_dir / "fixtures/infrared/unip_nmi_had.safetensors"
    report = verify_file(path)
    assert report.passed, report
    without = read_fixture(path).config["params_without_grad"]
    sizes = {"embed_dim": 48, "num_heads": 3, "last_heads": 8}
    assert sorted(unused_parameters(student(**sizes))) == sorted(without)


def test_divergence_is_zero_for_equals_and_has_the_closed_gradient() -> None:
    torch.manual_seed(0)
    wanted, found = torch.randn(2, 3, 5, 5), torch.randn(2, 3, 5, 5, requires_grad=True)
    assert attention_kl(wanted, wanted).item() == pytest.approx(0, abs=1e-7)
    shifted = wanted + torch.randn(2, 3, 5, 1)  # a softmax does not see a shift of a row
    assert attention_kl(shifted, wanted).item() == pytest.approx(0, abs=1e-6)
    attention_kl(found, wanted).backward()
    expected = (found.detach().softmax(-1) - wanted.softmax(-1)) / (2 * 3 * 5)
    torch.testing.assert_close(found.grad, expected, rtol=1e-4, atol=1e-7)
    half = attention_kl(torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.0, math.log(3)]]]]))
    assert half.item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_losses_are_computed_in_single_precision() -> None:
    wanted = torch.randn(1, 2, 4, 4)
    assert attention_kl(wanted.half(), wanted).dtype == torch.float32
    found = attention_cross_entropy(torch.zeros(1, 2, 4, 4), wanted)
    assert found.item() == pytest.approx(2 * math.log(2))  # two heads, each row of keys sums to 1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("block", [0, 1, -1])
def test_logits_of_a_block_are_those_that_a_whole_pass_captures(block: int, bias: bool) -> None:
    model, image = student(qkv_bias=bias).eval(), torch.randn(2, 3, 32, 40)
    captured = model.forward_tokens(image, capture=[block]).attention[block % 3]
    torch.testing.assert_close(model.attention_logits(image, block), captured)
    with pytest.raises(ConfigError, match="3"):
        model.attention_logits(image, 3)


@pytest.mark.parametrize("change", ["low rank", "lora"])
def test_logits_of_changed_projections(change: str) -> None:
    model, image = student().eval(), torch.randn(1, 3, 32, 32)
    if change == "low rank":
        low_rank(model, rank=2, targets=("*.attn.qkv",))
    else:
        apply_lora(model, rank=2)
        for module in model.modules():
            if isinstance(module, LoRALinear):
                for parameter in module.parameters():
                    nn.init.normal_(parameter)
    captured = model.forward_tokens(image, capture=[2]).attention[2]
    torch.testing.assert_close(model.attention_logits(image), captured)


def test_only_queries_and_keys_of_the_layers_are_computed_and_learn() -> None:
    own, other = student(), teacher()
    for part in (own.blocks[-1], other.blocks[2]):
        part.attn.proj, part.mlp, part.norm2 = Broken(), Broken(), Broken()
    other.blocks[3] = Broken()
    own.norm = other.norm = Broken()
    task = HybridAttentionDistillation(own, *SETTINGS, teacher=other, layer=3).train()
    task.loss({"image": torch.randn(2, 3, 32, 32)}).backward()
    trained = {name for name, p in own.named_parameters() if p.requires_grad}
    reached = {name for name, p in own.named_parameters() if p.grad is not None}
    assert trained == reached  # so distributed runs need not look for unused parameters
    last = own.blocks[-1].attn.qkv
    assert last.weight.grad[48:].abs().max() == 0 and last.bias.grad[48:].abs().max() == 0
    assert last.weight.grad[:24].abs().max() > 0 and own.cls_token.grad.abs().max() > 0
    assert all(p.grad is None for p in other.parameters())


def test_parameters_that_learn_nothing_are_frozen() -> None:
    own = student()
    HybridAttentionDistillation(own, *SETTINGS, teacher=teacher(), layer=3)
    frozen = {name for name, p in own.named_parameters() if not p.requires_grad}
    assert frozen == {*unused_parameters(own), "pos_embed"}


def test_the_teacher_goes_along_but_is_no_part_of_the_state() -> None:
    other = teacher()
    task = HybridAttentionDistillation(student(), *SETTINGS, teacher=other, layer=2)
    assert not any("teacher" in key for key in task.state_dict())
    assert len(task.state_dict()) == len(task.model.state_dict())
    task.train()
    assert not other.training  # its drop path of 0.5 would make the target random
    assert not any(p.requires_grad for p in other.parameters())
    task.to(torch.float64)
    assert other.cls_token.dtype == torch.float64
    found, wanted = task.logits(torch.randn(1, 3, 32, 32, dtype=torch.float64))
    assert found.requires_grad and not wanted.requires_grad
    assert found.shape == wanted.shape == (1, 4, 17, 17)


@pytest.mark.parametrize(
    ("own", "other", "layer", "message"),
    [
        ({}, {}, 0, "no layer 0"),
        ({}, {}, 5, "no layer 5: it has 4"),
        ({"last_heads": 3}, {}, 3, "last_heads 4"),
        ({"patch_size": 16}, {}, 3, "patches of side"),
        ({"in_chans": 1}, {}, 3, "image channels"),
        ({}, {"reg_tokens": 2}, 3, "register tokens"),
    ],
)
def test_pairs_that_do_not_fit(own: dict, other: dict, layer: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HybridAttentionDistillation(
            student(**own), *SETTINGS, teacher=teacher(**other), layer=layer
        )


def test_a_student_learns_its_teachers_attention() -> None:
    own, other = student(), teacher(drop_path_rate=0.0)
    with torch.no_grad():  # a teacher with something to say: sharp attention
        other.blocks[2].attn.qkv.weight[:64] *= 4
    task = HybridAttentionDistillation(own, *SETTINGS, teacher=other, layer=3)
    optimizer = torch.optim.AdamW([p for p in own.parameters() if p.requires_grad], lr=3e-3)
    torch.manual_seed(2)
    images = nn.functional.interpolate(torch.randn(64, 3, 8, 8), (32, 32), mode="bilinear")
    with torch.no_grad():
        before = task.loss({"image": images}).item()
    for step in range(150):
        part = images[step * 16 % 64 :][:16]
        optimizer.zero_grad()
        task.loss({"image": part}).backward()
        optimizer.step()
    with torch.no_grad():
        assert task.loss({"image": images}).item() < 0.2 * before
