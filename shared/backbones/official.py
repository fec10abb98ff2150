"""The authors' weights of the backbones: their keys are ours, but for prefixes."""

from __future__ import annotations

from torch import Tensor

_PREFIXES = ("module.", "backbone.")  # of parallel training; of detectors and segmenters


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the network's tensors of a file; those of a detector's other parts are left out."""
    for prefix in _PREFIXES:
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        state = own or state
    return state


def to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict as it is: the keys are the authors'."""
    return dict(state)
