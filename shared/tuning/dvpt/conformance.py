"""Golden numbers of the three released forms of DVPT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from crossband.shared.checkpoints import load_state
from crossband.shared.errors import DataError
from crossband.shared.tuning.dvpt.clip import DVPTCLIP
from crossband.shared.tuning.dvpt.official import from_official, is_swin, to_official_key
from crossband.shared.tuning.dvpt.projection import GatedProjection
from crossband.shared.tuning.dvpt.segformer import DVPTSegFormer
from crossband.shared.tuning.dvpt.swin import DVPTSwin

_NAMES = {
    "input_resolution": "img_size",
    "width": "embed_dim",
    "layers": "depth",
    "heads": "num_heads",
}
_CLIP = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "cross_attention")
_SWIN = ("img_size", "patch_size", "embed_dim", "depths", "num_heads", "window_size", "mlp_ratio")
_SEGFORMER = (
    *("embed_dims", "depths", "num_heads", "sr_ratios", "mlp_ratios", "patch_size", "qkv_bias"),
    "norm_eps",
)


def dvpt(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return features, logits and the gradients of what `grad_of` names."""
    weights = from_official(weights)
    if "conv1.weight" in weights:
        model, outputs = _clip(config, weights, inputs["x"])
    elif is_swin(weights):
        model, outputs = _swin(config, weights, inputs["x"])
    else:
        model, outputs = _segformer(config, weights, inputs["x"])
    if wanted := re.fullmatch(r"mean\((\w+)\*\*2\)", config.get("grad_of", "").replace(" ", "")):
        if wanted[1] not in outputs:
            raise DataError(f"gradients of {wanted[1]!r} are wanted, which DVPT does not give.")
        outputs[wanted[1]].square().mean().backward()
        outputs |= _gradients(model)
    return {name: value.detach() for name, value in outputs.items()}


def _clip(
    config: dict[str, Any], weights: dict[str, Tensor], image: Tensor
) -> tuple[nn.Module, dict[str, Tensor]]:
    config = {_NAMES.get(name, name): value for name, value in config.items()}
    model = DVPTCLIP(
        in_chans=weights["conv1.weight"].shape[1],
        output_dim=weights["proj"].shape[1],
        num_classes=_rows(weights, "fc_head.weight"),
        prompts=weights["prompt_token"].shape[1],
        rank=_rank(weights, "transformer.resblocks.0.prompt_proj"),
        share=config.get("share_every", 3),
        **_given(config, _CLIP),
    )
    _load(model, weights)
    embed = model.forward_features(image)
    return model, {"embed": embed, "logits": model.fc_head(embed)}


def _swin(
    config: dict[str, Any], weights: dict[str, Tensor], image: Tensor
) -> tuple[nn.Module, dict[str, Tensor]]:
    model = DVPTSwin(
        in_chans=weights["patch_embed.proj.weight"].shape[1],
        num_classes=_rows(weights, "head.fc.weight"),
        prompts=weights["layers.0.blocks.0.prompt"].shape[1],
        rank=_rank(weights, "layers.0.blocks.0.prompt_proj"),
        share=config.get("share_every", 3),
        **_given(config, _SWIN),
    )
    _load(model, weights)
    pooled = model.forward_head(model.forward_features(image), pre_logits=True)
    return model, {"pooled": pooled, "logits": model.head.fc(pooled)}


def _segformer(
    config: dict[str, Any], weights: dict[str, Tensor], image: Tensor
) -> tuple[nn.Module, dict[str, Tensor]]:
    model = DVPTSegFormer(
        in_chans=weights["patch_embed1.proj.weight"].shape[1],
        head_dim=weights["linear_c1.proj.weight"].shape[0],
        num_classes=weights["linear_pred.weight"].shape[0],
        prompts=weights["block1.0.prompt"].shape[1],
        rank=_rank(weights, "block1.0.prompt_proj"),
        head_rank=_rank(weights, "linear_c1"),
        share=config.get("share_every", 2),
        **_given(config, _SEGFORMER),
    )
    _load(model, weights)
    stages = model.forward_features(image)
    outputs = {f"stage{number}": x for number, x in enumerate(stages, 1)}
    return model, outputs | {"logits": model.forward_head(stages, image.shape[-2:])}


def _load(model: Any, weights: dict[str, Tensor]) -> None:
    load_state(model.eval(), model.adapt_state(weights), "the fixture")


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return gradients under the authors' names; `gate0`, `gate1`, ... are the shared gates."""
    named = dict(model.named_parameters(remove_duplicate=False))
    swin = is_swin(named)
    found = {to_official_key(k) if swin else k: p.grad for k, p in named.items()}
    shared = [m for m in model.modules() if type(m) is GatedProjection]
    found |= {f"gate{number}": m.prompt_gate.grad for number, m in enumerate(shared)}
    return {f"grad.{name}": grad for name, grad in found.items() if grad is not None}


def _given(config: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: config[name] for name in names if name in config}


def _rows(weights: Mapping[str, Tensor], key: str) -> int:
    return len(weights[key]) if key in weights else 0


def _rank(weights: Mapping[str, Tensor], prefix: str) -> int:
    return weights[f"{prefix}.prompt_key_proj_d.weight"].shape[0]
