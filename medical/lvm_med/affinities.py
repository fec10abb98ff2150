"""How alike two nodes or two edges are: the paper's cosines and the draft's inner products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_ZERO = 1e-6  # length below which a vector has no direction


def full_precision(x: Tensor) -> Tensor:
    """Return an array in float32, or as it is in float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(x: Tensor) -> Tensor:
    """Return vectors (..., F) of length 1; those shorter than 1e-6 become 0, and so do gradients.

    Edges between equal nodes are such: `F.normalize` would give them gradients of 1e12.
    """
    square = x.square().sum(-1, keepdim=True)
    pointing = square > _ZERO**2
    return x * torch.where(pointing, square.where(pointing, torch.ones_like(square)).rsqrt(), 0.0)


def cosine_affinity(first: Tensor, second: Tensor) -> Tensor:
    """Return cos(x_i, y_j), (..., n, m), of (..., n, F) and (..., m, F) (section 3.2)."""
    return unit(first) @ unit(second).transpose(-1, -2)


def softplus_affinity(first: Tensor, second: Tensor) -> Tensor:
    """Return softplus(x_i . y_j) - 0.5, (..., n, m): the draft's."""
    return F.softplus(first @ second.transpose(-1, -2)) - 0.5


def vertex_affinity(similarity: Tensor, local: Tensor | None, alpha: float) -> Tensor:
    """Return alpha cos + (1 - alpha) local, (G, n, m), or the cosine alone without maps.

    Args:
        similarity: Cosines of the nodes (G, n, m).
        local: Local similarity in both directions (G, n, m) (`local.local_affinity`).
        alpha: Weight of the cosines.
    """
    return similarity if local is None else alpha * similarity + (1 - alpha) * local


def gumbel_like(costs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw Gumbel(0, 1) noise of the shape of an array.

    Args:
        costs: Gives shape and device.
        generator: Of the CPU; None: the device's global one.
    """
    device = costs.device if generator is None else torch.device("cpu")
    drawn = torch.empty(costs.shape, device=device).exponential_(generator=generator)
    return -drawn.clamp(min=torch.finfo(drawn.dtype).tiny).log().to(costs.device)
