"""Multi-scale deformable attention (Zhu et al. 2021, Deformable DETR, equation 3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def deformable_attention(
    value: Tensor, shapes: Tensor | list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Sum a few points of several maps, chosen and weighted by each query.

    Args:
        value: (B, S, M, D): M heads of the maps, flattened and joined, S = sum of h w.
        shapes: (L, 2) h and w of the maps.
        locations: (B, Q, M, L, P, 2) x and y of the points, 0 to 1 from edge to edge of a map;
            outside it is zero.
        weights: (B, Q, M, L, P).

    Returns:
        (B, Q, M D).
    """
    sizes = [
        (int(h), int(w)) for h, w in (shapes.tolist() if isinstance(shapes, Tensor) else shapes)
    ]
    batch, _, heads, width = value.shape
    queries = locations.shape[1]
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in sizes], dim=2)
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # BM, Q, L, P, 2
    weights = weights.transpose(1, 2).flatten(0, 1)  # BM, Q, L, P
    total = value.new_zeros(batch * heads, width, queries)
    for level, (size, cells) in enumerate(zip(sizes, maps, strict=True)):
        points = F.grid_sample(
            cells.unflatten(2, size), grids[:, :, level], padding_mode="zeros", align_corners=False
        )  # BM, D, Q, P
        total = total + torch.einsum("ndqp,nqp->ndq", points, weights[:, :, level])
    return total.view(batch, heads * width, queries).transpose(1, 2).contiguous()
