"""What people use instead: curves, equalisation, and two networks trained without pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from crossband.apps.low_light.baselines.classical import auto_gamma, clahe, gamma
from crossband.shared.errors import ConfigError, did_you_mean
from crossband.shared.registry import create_model

CLASSICAL: dict[str, Callable[[Tensor], Tensor]] = {
    "input": lambda image: image,
    "gamma": gamma,
    "auto_gamma": auto_gamma,
    "clahe": clahe,
}
NETWORKS = ("zero_dce", "sci")


@dataclass(frozen=True)
class Rival:
    """A method ready to run.

    Attributes:
        name: To show.
        run: Maps RGB (B, 3, H, W) in [0, 1] to the same, any size.
        reach: Pixels that one pixel of the result depends on in each direction; None: all.
    """

    name: str
    run: Callable[[Tensor], Tensor]
    reach: int | None


def create_rival(name: str, weights: str | Path | None = None) -> Rival:
    """Return a rival by name.

    Raises:
        ConfigError: unknown name, or weights missing or not wanted.
        CheckpointError: weights that do not fit.
    """
    if name in CLASSICAL:
        if weights is not None:
            raise ConfigError(f"{name} has no weights: leave them out.")
        return Rival(name, CLASSICAL[name], None)
    if name not in NETWORKS:
        known = (*CLASSICAL, *NETWORKS)
        hint = did_you_mean(name, known) or f" There are: {', '.join(known)}."
        raise ConfigError(f"There is no method {name!r}.{hint}")
    if weights is None:
        raise ConfigError(
            f"{name} needs the authors' weights (docs/weights.md says where they are): give "
            f"--weights FILE with --model {name}, or --rivals {name}=FILE."
        )
    network = create_model(name, weights=weights).eval()

    def run(image: Tensor) -> Tensor:
        with torch.inference_mode():
            return network(image)

    label = name if name == "zero_dce" else f"{name} ({Path(weights).stem})"
    return Rival(label, run, network.reach)
