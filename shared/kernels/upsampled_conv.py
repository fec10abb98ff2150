"""A 3x3 convolution over maps that are resized to one size and joined: UPerNet's bottleneck.

Resizing bilinearly and mixing channels commute, so the nine taps of the kernel are applied to a
coarse map at its own size, and one matrix along each side then resizes and shifts at once. That is
the same sum in another order: for maps of half, a quarter and an eighth of the size it takes 0.4
of the multiplications, and the joined map is never made.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from crossband.shared.kernels.dispatch import exporting
from crossband.shared.layers.resize import resize

_LEAST_CHANNELS = 64  # below, the convolution itself is too cheap to be worth it


def upsampled_conv3x3(
    maps: Sequence[Tensor], weight: Tensor, *, implementation: str | None = None
) -> Tensor:
    """Return `conv2d(cat([maps[0], resize(maps[1]), ...]), weight, padding=1)`.

    Args:
        maps: (B, C_i, h_i, w_i); all are resized, bilinearly, to the size of the first.
        weight: (O, sum of C_i, 3, 3).
        implementation: `reference` or `reordered`; default: by channels and size.

    Returns:
        (B, O, h_0, w_0).
    """
    size = maps[0].shape[-2:]
    if implementation is None:
        coarse = [m for m in maps[1:] if 2 * m.shape[-1] <= size[1] and 2 * m.shape[-2] <= size[0]]
        pays = len(coarse) > 0 and weight.shape[0] >= _LEAST_CHANNELS and not exporting()
        implementation = "reordered" if pays else "reference"
    if implementation == "reference":
        resized = [maps[0], *(resize(m, size) for m in maps[1:])]
        return F.conv2d(torch.cat(resized, dim=1), weight, padding=1)
    parts = weight.split([m.shape[1] for m in maps], dim=1)
    near, near_weight, rows, columns = [], [], [], []
    for x, part in zip(maps, parts, strict=True):
        if 2 * x.shape[-1] <= size[1] and 2 * x.shape[-2] <= size[0]:
            rows.append(_height_first(x, part, size))
            columns.append(x.shape[-2])
        else:
            near.append(resize(x, size))
            near_weight.append(part)
    y = F.conv2d(
        near[0] if len(near) == 1 else torch.cat(near, dim=1),
        near_weight[0] if len(near) == 1 else torch.cat(near_weight, dim=1),
        padding=1,
    )
    if not rows:
        return y
    # (B, O, 3 h, W) of all maps, joined along the rows, times one matrix.
    stacked = torch.cat(rows, dim=2)
    matrix = torch.cat([_taps(h, size[0], y.dtype, y.device) for h in columns])
    added = torch.matmul(matrix.t(), stacked)
    return y + added


def _height_first(x: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
    """Apply the taps of a map (B, C, h, w) at its size, then widen: (B, O, 3 h, W)."""
    batch, channels, height, width = x.shape
    out = weight.shape[0]
    # Rows of taps, output channels, columns of taps.
    mixed = weight.permute(2, 0, 3, 1).reshape(9 * out, channels)
    taps = torch.matmul(mixed, x.flatten(2)).view(batch, 3, out, 3, height, width)
    taps = taps.permute(0, 2, 1, 4, 3, 5).reshape(batch, out, 3 * height, 3 * width)
    return taps @ _taps(width, size[1], x.dtype, x.device)


@lru_cache(maxsize=64)
def _taps(old: int, new: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return (3 old, new): where each of three taps of an output place finds the resized input."""
    with torch.inference_mode(False), torch.no_grad():
        one = torch.eye(old, dtype=torch.float64)[None, :, :]
        resized = F.interpolate(one, new, mode="linear", align_corners=False)[0]  # (old, new)
        shifted = F.pad(resized, (1, 1))
        taps = [shifted[:, tap : tap + new] for tap in range(3)]
        return torch.cat(taps).to(dtype=dtype, device=device)
