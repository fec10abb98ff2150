"""The authors' weights of DVPT, and those of the networks that DVPT starts from.

Keys are ours but for prefixes, and for Swin, where timm puts the merging of patches into the next
stage and keeps index and masks of windows out of the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from crossband.shared.tuning.dvpt.swin import relative_position_index

_PREFIX = re.compile(r"^(module\.|backbone\.|decode_head\.|visual\.)+")
_MERGING = re.compile(r"^layers\.(\d+)\.downsample\.")
_DERIVED = re.compile(r"\.(relative_position_index|attn_mask)$")
_TABLE = "relative_position_bias_table"


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our keys; what no DVPT network has is left as it is, but for a text tower."""
    towers = {key for key in state if key.startswith("visual.")}
    result = {
        _PREFIX.sub("", key): value for key, value in state.items() if not towers or key in towers
    }
    if not is_swin(result):
        return result
    result = {_to_timm(k): v for k, v in result.items() if not _DERIVED.search(k)}
    if "head.fc.weight" in result and "head.fc.bias" not in result:  # theirs has none
        result["head.fc.bias"] = torch.zeros(len(result["head.fc.weight"]))
    return result


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the authors' keys, for Swin without the masks of windows, which follow from sizes."""
    if not is_swin(state):
        return dict(state)
    result = {to_official_key(key): value for key, value in state.items()}
    for key, table in list(result.items()):
        if key.endswith(_TABLE):
            window = (round(len(table) ** 0.5) + 1) // 2
            index = relative_position_index(window)
            result[key.replace(_TABLE, "relative_position_index")] = index
    return result


def left_out(state: Mapping[str, Tensor]) -> list[str]:
    """Return the keys of a file that `from_official` leaves out."""
    towers = any(key.startswith("visual.") for key in state)
    return [k for k in state if _DERIVED.search(k) or (towers and not k.startswith("visual."))]


def is_swin(state: Mapping[str, object]) -> bool:
    """Whether the keys are a Swin transformer's."""
    return any(key.startswith("layers.0.blocks.") for key in state)


def to_official_key(key: str) -> str:
    """Return the authors' name of a Swin parameter of ours."""
    key = _MERGING.sub(lambda found: f"layers.{int(found[1]) - 1}.downsample.", key)
    return key.replace("head.fc.", "fc_head.") if key.startswith("head.fc.") else key


def _to_timm(key: str) -> str:
    key = _MERGING.sub(lambda found: f"layers.{int(found[1]) + 1}.downsample.", key)
    return re.sub(r"^(fc_head|head)\.(?=weight$|bias$)", "head.fc.", key)
