"""The authors' files of the rivals."""

from __future__ import annotations

from torch import Tensor

_PREFIX = "enhance."


def from_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return our state dict: SCI's prefix and its second copy of the shared block are left out."""
    plain = {key.removeprefix(_PREFIX): value for key, value in state_dict.items()}
    return {key: value for key, value in plain.items() if not key.startswith("conv.")}


def to_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the authors' state dict (Zero-DCE's keys are ours)."""
    if "in_conv.0.weight" not in state_dict:
        return dict(state_dict)
    block = "blocks.0."
    copies = {
        f"conv.{key.removeprefix(block)}": value
        for key, value in state_dict.items()
        if key.startswith(block)
    }
    return {_PREFIX + key: value for key, value in (state_dict | copies).items()}
