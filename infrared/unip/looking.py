"""Where single queries look, for pictures."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from crossband.infrared.unip.analysis import patch_attention, walk
from crossband.shared.backbones.vit import ViTTrunk
from crossband.shared.errors import ConfigError


def places(queries: Sequence[float], grid: tuple[int, int]) -> list[tuple[int, int]]:
    """Return row and column of the patches at given parts of height and width.

    Args:
        queries: row column row column ..., each in [0, 1].
        grid: Rows and columns of the patches.

    Raises:
        ConfigError: not pairs, or out of range.
    """
    if not queries or len(queries) % 2 or not all(0 <= value <= 1 for value in queries):
        given = " ".join(f"{value:g}" for value in queries)
        raise ConfigError(f"--queries {given}: give pairs of row and column in [0, 1].")
    pairs = zip(queries[::2], queries[1::2], strict=True)
    return [
        (min(grid[0] - 1, int(row * grid[0])), min(grid[1] - 1, int(column * grid[1])))
        for row, column in pairs
    ]


@torch.no_grad()
def query_maps(
    model: ViTTrunk, image: Tensor, queries: Sequence[float], layers: Collection[int]
) -> tuple[dict[int, Tensor], list[tuple[int, int]]]:
    """Return where queries look in some layers, mean over the heads.

    Args:
        model: In evaluation mode.
        image: (1, C, H, W).
        queries: As for `places`.
        layers: Counted from 1.

    Returns:
        Layer -> (queries, rows, columns), and row and column of each query's patch.
    """
    chosen: list[tuple[int, int]] = []
    found: dict[int, Tensor] = {}
    for number, (attention, tokens) in enumerate(walk(model, image), start=1):
        chosen = chosen or places(queries, tokens.grid)
        if number in layers:
            maps = patch_attention(attention, tokens.prefix)[0].mean(0)
            rows = [row * tokens.grid[1] + column for row, column in chosen]
            found[number] = maps[rows].unflatten(1, tokens.grid).cpu()
    return found, chosen


def logit_maps(logits: Tensor, prefix: int, rows: Sequence[int], grid: tuple[int, int]) -> Tensor:
    """Return where queries look by logits (1, heads, N, N): (queries, rows, columns)."""
    maps = patch_attention(logits.float().softmax(-1), prefix)[0].mean(0)
    return maps[list(rows)].unflatten(1, grid).cpu()
