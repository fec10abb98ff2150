"""Large images through a network of one size: overlapping windows, their logits averaged."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from crossband.shared.errors import ConfigError


def slide(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    size: int,
    stride: int,
    batch: int = 4,
) -> Tensor:
    """Return logits of an image of any size.

    Windows at the lower and right borders are shifted inwards, as mmseg does. An image smaller
    than a window is filled up with zeros, as crops are in training.

    Args:
        network: Maps (n, C, size, size) to (n, K, size, size).
        image: (C, H, W), normalised.
        size: Side of a window.
        stride: Step between windows.
        batch: Windows at a time.

    Returns:
        (K, H, W), logits averaged where windows overlap.

    Raises:
        ConfigError: a stride below 1 or above the size, which would leave gaps.
    """
    if not 1 <= stride <= size or batch < 1:
        raise ConfigError(
            f"windows of {size} every {stride} pixels, {batch} at a time: the stride must lie "
            "between 1 and the size, the batch be at least 1."
        )
    height, width = image.shape[-2:]
    down, right = max(0, size - height), max(0, size - width)
    if down or right:
        image = F.pad(image, (0, right, 0, down))
    corners = [
        (top, left)
        for top in _starts(height + down, size, stride)
        for left in _starts(width + right, size, stride)
    ]
    total: Tensor | None = None
    count = image.new_zeros(1, *image.shape[-2:])
    for first in range(0, len(corners), batch):
        part = corners[first : first + batch]
        windows = torch.stack([image[:, y : y + size, x : x + size] for y, x in part])
        logits = network(windows).float()
        if total is None:
            total = logits.new_zeros(logits.shape[1], *image.shape[-2:])
        for (top, left), found in zip(part, logits, strict=True):
            total[:, top : top + size, left : left + size] += found
            count[:, top : top + size, left : left + size] += 1
    assert total is not None
    return (total / count)[:, :height, :width]


def _starts(length: int, size: int, stride: int) -> list[int]:
    count = max(length - size + stride - 1, 0) // stride + 1
    return [min(number * stride, length - size) for number in range(count)]
