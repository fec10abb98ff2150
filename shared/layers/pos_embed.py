"""Position embeddings of a grid of patches."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def sincos_pos_embed(dim: int, grid: tuple[int, int], class_token: bool = True) -> Tensor:
    """Return the fixed sine-cosine table of MAE (He et al. 2022).

    The first half of the channels encodes the column, the second the row; each is
    `[sin(p w_i), cos(p w_i)]` with `w_i = 10000^(-4i / dim)`.

    Args:
        dim: Channels; a multiple of 4.
        grid: Rows and columns.
        class_token: Put a row of zeros in front.

    Returns:
        (1, rows columns (+ 1), dim), row-major.
    """
    rows, columns = grid
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [axis.flatten()[:, None] * omega for axis in (x, y)]
    table = torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)
    if class_token:
        table = torch.cat([torch.zeros(1, dim), table])
    return table.float()[None]


def resample_pos_embed(
    table: Tensor,
    old: tuple[int, int],
    new: tuple[int, int],
    prefix: int = 1,
    mode: Literal["bicubic", "bilinear"] = "bicubic",
) -> Tensor:
    """Interpolate a table to another grid; rows of class tokens stay as they are.

    Args:
        table: (1, prefix + old rows old columns, D).
        old: Rows and columns of the table.
        new: Wanted.
        prefix: Rows in front that belong to no patch.
        mode: Of the interpolation.

    Returns:
        (1, prefix + new rows new columns, D).
    """
    if old == new:
        return table
    head, places = table[:, :prefix], table[:, prefix:]
    image = places.transpose(1, 2).unflatten(2, old)
    image = F.interpolate(image.float(), new, mode=mode, align_corners=False)
    return torch.cat([head, image.to(table.dtype).flatten(2).transpose(1, 2)], dim=1)
