"""Golden numbers of the graph matching solvers; compare energies, optima may be ambiguous."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossband.shared.matching.solving import solve

_LAMBDA = "matching_lambda"


def solver(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return energy, matching and edge matching of every instance, and after the perturbations.

    `matching_lambda<v>` is the matching with v*(1-2I) added to the node costs.
    """
    outputs: dict[str, Tensor] = {}
    strengths = [name.removeprefix(_LAMBDA) for name in config.get("perturbed", {})]
    for index in sorted({name.split(".")[0] for name in inputs}, key=int):
        unary = inputs[f"{index}.unary"]
        rest = [inputs[f"{index}.{n}"][None] for n in ("edges_left", "edges_right", "quadratic")]
        found = solve(unary[None], *rest)
        outputs[f"{index}.energy"] = found.energy
        outputs[f"{index}.matching"] = found.x[0]
        outputs[f"{index}.edge_matching"] = found.y[0]
        for strength in strengths:
            shift = float(strength) * (1 - 2 * torch.eye(*unary.shape, dtype=unary.dtype))
            moved = solve((unary + shift)[None], *rest)
            outputs[f"{index}.{_LAMBDA}{strength}"] = moved.x[0]
            outputs[f"{index}.edge_{_LAMBDA}{strength}"] = moved.y[0]
    return outputs
