"""Golden numbers of the plain ViT and of SAM's image encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from crossband.shared.backbones.sam import SAMEncoder
from crossband.shared.backbones.vit import ViTClassifier
from crossband.shared.checkpoints import load_state

_SOURCE = "the fixture"
_SAM = (
    *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "out_chans"),
    *("qkv_bias", "use_rel_pos", "use_abs_pos", "window_size", "global_attn_indexes"),
)
_VIT = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias")


def vit_classifier(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return features, logits, loss and its gradients."""
    model = ViTClassifier(
        num_classes=config["num_classes"],
        global_pool="avg" if config.get("global_pool", True) else "token",
        in_chans=weights["patch_embed.proj.weight"].shape[1],
        norm_eps=config.get("norm_eps", 1e-6),
        **{name: config[name] for name in _VIT if name in config},
    ).eval()
    load_state(model, weights, _SOURCE)
    features = model.forward_features(inputs["imgs"])
    logits = model.head(features)
    outputs = {"features": features, "logits": logits}
    if "labels" in inputs:
        loss = F.binary_cross_entropy_with_logits(logits, inputs["labels"].to(logits))
        loss.backward()
        outputs["bce"] = loss[None]
        outputs |= {
            f"grad.{name}": parameter.grad
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }
    return {name: value.detach() for name, value in outputs.items()}


@torch.no_grad()
def sam_encoder(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the embedding, every block and the neck's map."""
    model = SAMEncoder(
        in_chans=weights["patch_embed.proj.weight"].shape[1],
        **{name: config[name] for name in _SAM if name in config},
    ).eval()
    load_state(model, weights, _SOURCE)
    return model.stages(inputs["x"])
