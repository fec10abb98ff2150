"""Golden numbers of UNIP: distillation, segmentation network, linear probe, and analysis."""

from __future__ import annotations

from typing import Any

import torch
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
from crossband.infrared.unip.official import from_official
from crossband.shared.checkpoints import load_state
from crossband.shared.config import OptimizerConfig, ScheduleConfig
from crossband.shared.heads import FCNHead, UPerHead
from crossband.shared.heads.segmentor import Segmentor
from crossband.shared.heads.vit_segmentor import SegmentationViT, ViTPyramid
from crossband.shared.layers.resize import resize
from crossband.shared.tasks.segmentation import SegmentationTask

_SOURCE = "the fixture"
_TRUNK = ("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio")
_BACKBONE = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias")


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


def segmentor(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the pyramid, the logits of both heads, the losses and the linear probe's."""
    model = _segmentor(config, weights)
    image, label = inputs["image"], inputs["label"].long()
    with torch.no_grad():
        maps = model.backbone(image)
        main, auxiliary = model.training_logits(image)
    outputs = {f"fpn{level}": x for level, x in enumerate(maps)}
    outputs[config["decode_head"]["output"]] = main
    outputs[config["auxiliary_head"]["output"]] = auxiliary
    named = {config["decode_head"]["output"]: main, config["auxiliary_head"]["output"]: auxiliary}
    ignore = config["losses"].get("ignore_index", 255)
    label = label.where(label != ignore, 255)
    for name, loss in config["losses"].items():
        if isinstance(loss, dict):
            task = SegmentationTask(
                model, OptimizerConfig(), ScheduleConfig(), avg_non_ignore=loss["avg_non_ignore"]
            )
            outputs[name] = loss["loss_weight"] * task.cross_entropy(named[loss["logits"]], label)
    valid = label != 255
    right = (resize(main, label.shape[-2:]).argmax(1) == label)[valid]
    outputs["acc_seg"] = 100 * right.float().mean()[None]
    return outputs | _probe(config["linear_probe"], weights, image)


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


def _segmentor(config: dict[str, Any], weights: dict[str, Tensor]) -> Segmentor:
    backbone, head, auxiliary = (
        config[part] for part in ("backbone", "decode_head", "auxiliary_head")
    )
    indices = backbone["out_indices"]
    vit = SegmentationViT(
        **{name: backbone[name] for name in _BACKBONE},
        in_chans=weights["backbone.patch_embed.proj.weight"].shape[1],
        layer_scale_init=backbone["init_values"],
        norm_eps=backbone["norm_eps"],
        drop_path_rate=backbone["drop_path_rate"],
        out_indices=indices[:1] if len(set(indices)) == 1 else indices,
    )
    model = Segmentor(
        ViTPyramid(vit),
        UPerHead(
            head["in_channels"],
            head["num_classes"],
            channels=head["channels"],
            pool_scales=head["pool_scales"],
            dropout=head["dropout_ratio"],
        ),
        FCNHead(
            head["in_channels"],
            auxiliary["num_classes"],
            in_index=(auxiliary["in_index"],),
            channels=auxiliary["channels"],
            num_convs=auxiliary["num_convs"],
            kernel_size=auxiliary["kernel_size"],
            dropout=auxiliary["dropout_ratio"],
        ),
    ).eval()
    own = {k: v for k, v in weights.items() if not k.startswith("lp_")}
    load_state(model, from_official(own), _SOURCE)
    return model


@torch.no_grad()
def _probe(config: dict[str, Any], weights: dict[str, Tensor], image: Tensor) -> dict[str, Tensor]:
    backbone, head = config["backbone"], config["head"]
    prefix, head_prefix = (part["weights_prefix"] + "." for part in (backbone, head))
    vit = SegmentationViT(
        **{name: backbone[name] for name in _BACKBONE},
        in_chans=weights[f"{prefix}patch_embed.proj.weight"].shape[1],
        norm_eps=backbone["norm_eps"],
        out_indices=backbone["out_indices"],
    ).eval()
    state = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    if "norm.weight" not in state:  # the authors' probing network has none
        state |= {f"norm.{name}": value for name, value in vit.norm.state_dict().items()}
    load_state(vit, state, _SOURCE)
    probe = FCNHead(
        head["in_channels"],
        head["num_classes"],
        in_index=range(len(head["in_channels"])),
        num_convs=head["num_convs"],
        dropout=head["dropout_ratio"],
    ).eval()
    own = {k.removeprefix(head_prefix): v for k, v in weights.items() if k.startswith(head_prefix)}
    load_state(probe, own, _SOURCE)
    maps = vit(image)
    outputs = dict(zip(backbone["outputs"], maps, strict=True))
    return outputs | {head["output"]: probe(maps)}
