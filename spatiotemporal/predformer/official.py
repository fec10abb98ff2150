"""The authors' checkpoints and configurations, to ours and back.

Their state-dict keys are ours; a checkpoint may carry a wrapper's prefix. No official weights
have been published.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

# Authors' configuration key -> our argument.
_ARGUMENTS = {
    "height": "height",
    "width": "width",
    "num_channels": "in_channels",
    "pre_seq": "history",
    "patch_size": "patch_size",
    "dim": "dim",
    "heads": "heads",
    "dim_head": "dim_head",
    "dropout": "dropout",
    "attn_dropout": "attn_dropout",
    "drop_path": "drop_path",
    "scale_dim": "mlp_ratio",
    "depth": "block_depth",
    "Ndepth": "depth",
    "norm_eps": "norm_eps",
}
_PREFIXES = ("module.", "model.")


def from_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return our state dict: prefixes of DataParallel and Lightning are taken off."""
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state_dict):
            state_dict = {key[len(prefix) :]: value for key, value in state_dict.items()}
    return dict(state_dict)


def to_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the authors' state dict."""
    return dict(state_dict)


def from_official_config(config: dict[str, Any], variant: str) -> dict[str, Any]:
    """Return our constructor arguments for the authors' `model_config`.

    Their networks emit as many frames as they see, so `after_seq` has no counterpart. Their
    `fac_st` reads its tokens in the order that `legacy_order` keeps.
    """
    arguments = {ours: config[key] for key, ours in _ARGUMENTS.items() if key in config}
    if variant in ("full", "fac_st", "fac_ts"):
        arguments.pop("block_depth", None)
    return {"variant": variant, "legacy_order": True, **arguments}


def to_official_config(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the authors' `model_config` for our constructor arguments."""
    config = {key: arguments[ours] for key, ours in _ARGUMENTS.items() if ours in arguments}
    return {"depth": 1, "after_seq": arguments["history"], **config}
