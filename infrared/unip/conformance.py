"""Golden numbers of UNIP's distillation and of the attention analysis."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from crossband.infrared.unip.analysis import (
    attention_distance,
    linear_cka,
    nmi,
    patch_attention,
)
from crossband.infrared.unip.distillation import (
    HybridAttentionDistillation,
    attention_cross_entropy,
    attention_kl,
)
from crossband.infrared.unip.model import UNIPViT
from crossband.shared.checkpoints import load_state
from crossband.shared.config import OptimizerConfig, ScheduleConfig

_SOURCE = "the fixture"
_TRUNK = ("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio")


def distillation(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the logits of both networks, the losses and the gradients of the divergence."""
    student, teacher = (_network(config, weights, part) for part in ("student", "teacher"))
    layer = config["teacher"]["intermediate"]
    settings = (OptimizerConfig(), ScheduleConfig())
    task = HybridAttentionDistillation(student, *settings, teacher=teacher, layer=layer)
    task.train(not config.get("eval_mode", True))
    found, wanted = task.logits(inputs["image"])
    loss = attention_kl(found, wanted)
    loss.backward()
    outputs = {
        "student_qk": found,
        "teacher_qk": wanted,
        "loss_kl": loss,
        "loss_ce": attention_cross_entropy(found, wanted),
    }
    outputs |= {
        f"grad.student.{name}": parameter.grad
        for name, parameter in student.named_parameters()
        if parameter.grad is not None
    }
    return {name: value.detach() for name, value in outputs.items()}


def attention_analysis(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return NMI and distance of given maps (images, layers, heads, N, N), and one CKA."""
    attention = inputs.get("attention")
    if attention is None:
        attention = inputs["attention_logits"].softmax(-1)
    prefix = int(config.get("cls_token_first", True))
    side = config["grid"]
    grid = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
    information = nmi(patch_attention(attention, prefix, config.get("nmi_eps", 1e-8)))
    maps = patch_attention(attention, prefix, config.get("dist_eps", 1e-32))
    distance = attention_distance(maps, grid, config.get("patch_size", 16))
    outputs = {
        "nmi_per_image_head": information,
        "nmi_per_layer": information.mean((0, 2)),
        "distance_px_per_image_head": distance,
        "distance_px_per_layer": distance.mean((0, 2)),
    }
    if "cka_x" in inputs:
        outputs["cka_linear"] = linear_cka(inputs["cka_x"], inputs["cka_y"])
    return outputs


def _network(config: dict[str, Any], weights: dict[str, Tensor], part: str) -> UNIPViT:
    given = config[part]
    arguments = {name: given[name] for name in (*_TRUNK, "last_heads") if name in given}
    network = UNIPViT(
        drop_path_rate=given.get("drop_path", 0.0),
        norm_eps=config.get("norm_eps", 1e-6),
        qkv_bias=config.get("qkv_bias", True),
        **arguments,
    )
    state = {k.removeprefix(f"{part}."): v for k, v in weights.items() if k.startswith(f"{part}.")}
    load_state(network, state, _SOURCE)
    return network
