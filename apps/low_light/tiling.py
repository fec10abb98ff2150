"""Images of any size through a network of one size: tiles that overlap and fade over."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from crossband.shared.errors import ConfigError

Network = Callable[[Tensor], Tensor]


def pad_to(image: Tensor, height: int, width: int) -> Tensor:
    """Extend (B, C, h, w) to at least a size, downwards and rightwards.

    The image is mirrored; where it is smaller than what is missing, its edge is repeated.
    """
    for _ in range(2):  # mirroring can at most double
        rows = min(max(0, height - image.shape[-2]), image.shape[-2] - 1)
        columns = min(max(0, width - image.shape[-1]), image.shape[-1] - 1)
        if rows or columns:
            image = F.pad(image, (0, columns, 0, rows), mode="reflect")
    rows, columns = max(0, height - image.shape[-2]), max(0, width - image.shape[-1])
    return F.pad(image, (0, columns, 0, rows), mode="replicate") if rows or columns else image


def run_whole(image: Tensor, network: Network, multiple: int, tone: Tensor | None = None) -> Tensor:
    """Run an image in one piece, padded to the multiple that the network takes.

    Args:
        image: (B, 3, H, W).
        network: Maps sizes that are multiples to the same size.
        multiple: Of both sides.
        tone: As for `run_tiled`.

    Returns:
        (B, 3, H, W).
    """
    height, width = image.shape[-2:]
    padded = pad_to(image, -(-height // multiple) * multiple, -(-width // multiple) * multiple)
    found = network(padded)[..., :height, :width]
    return found if tone is None else found + _tone_error(found, tone, (0, 0), (height, width))


def run_tiled(
    image: Tensor,
    network: Network,
    tile: tuple[int, int],
    overlap: int,
    *,
    white: float = 1.0,
    tone: Tensor | None = None,
) -> Tensor:
    """Run an image in tiles, faded over linearly where they overlap.

    Cost grows with the pixels; memory is that of the result and of one tile.

    Args:
        image: (3, H, W), any type; divided by `white` tile by tile.
        network: Maps float (1, 3, *tile) to the same shape.
        tile: Height and width of a tile.
        overlap: Pixels by which neighbours overlap at least.
        white: Value that the network calls 1.
        tone: Coarse result for the whole image (1, 3, h, w), from a pass at the network's own
            size. The result keeps its detail and takes from this everything coarser than its
            cells, so that no tile is brighter than its neighbour.

    Returns:
        float32 (3, H, W).

    Raises:
        ConfigError: an overlap that leaves no step.
    """
    if not 0 <= overlap < min(tile):
        raise ConfigError(
            f"--size.overlap {overlap} must be below the tile, {tile[0]} x {tile[1]}."
        )
    _, height, width = image.shape
    rows, columns = _starts(height, tile[0], overlap), _starts(width, tile[1], overlap)
    result = torch.zeros(3, height, width)
    for top, down in zip(rows, _fades(rows, tile[0], height), strict=True):
        for left, across in zip(columns, _fades(columns, tile[1], width), strict=True):
            part = image[None, :, top : top + tile[0], left : left + tile[1]].float() / white
            inner = part.shape[-2:]
            found = network(pad_to(part, *tile))[..., : inner[0], : inner[1]].float()
            if tone is not None:
                found = found + _tone_error(found, tone, (top, left), (height, width))
            result[:, top : top + inner[0], left : left + inner[1]] += (
                found[0] * down[: inner[0], None] * across[None, : inner[1]]
            )
    return result


def run_strips(image: Tensor, network: Network, reach: int, rows: int, white: float) -> Tensor:
    """Run a network that sees `reach` pixels around each, in strips; equal to one piece.

    Args:
        image: (3, H, W), any type.
        network: Maps float (1, 3, h, W) to the same shape.
        reach: Pixels that a pixel of the result depends on, up and down.
        rows: Of a strip.
        white: Value that the network calls 1.

    Returns:
        float32 (3, H, W).
    """
    height = image.shape[1]
    parts = []
    for top in range(0, height, rows):
        first, last = max(0, top - reach), min(height, top + rows + reach)
        found = network(image[None, :, first:last].float() / white)[0]
        parts.append(found[:, top - first : top - first + min(rows, height - top)])
    return torch.cat(parts, dim=1)


def _tone_error(
    found: Tensor, tone: Tensor, place: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Return the smooth difference between the whole image's tone and a tile's."""
    inner = found.shape[-2:]
    # Where the tile's cells lie in the tone, in its normalised coordinates from -1 to 1.
    cells = [max(1, round(n * b / s)) for n, b, s in zip(inner, tone.shape[-2:], size, strict=True)]
    axes = [
        (2 * (start + (torch.arange(count) + 0.5) * n / count) / s - 1)
        for start, count, n, s in zip(place, cells, inner, size, strict=True)
    ]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)[None]
    wanted = F.grid_sample(tone, grid, mode="bilinear", padding_mode="border", align_corners=False)
    error = wanted - F.adaptive_avg_pool2d(found, cells)
    return F.interpolate(error, inner, mode="bilinear", align_corners=False)


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """Return the first pixels of tiles that cover a line, evenly spread."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _fades(starts: list[int], tile: int, length: int) -> list[Tensor]:
    """Return the weights of each tile along a line; they add up to one everywhere."""
    total = torch.zeros(max(length, tile))
    weights = []
    for i, start in enumerate(starts):
        fade = torch.ones(tile)
        if i:
            shared = starts[i - 1] + tile - start
            fade[:shared] *= _ramp(shared)
        if i + 1 < len(starts):
            shared = start + tile - starts[i + 1]
            fade[tile - shared :] *= 1 - _ramp(shared)
        weights.append(fade)
        total[start : start + tile] += fade
    return [w / total[start : start + tile] for w, start in zip(weights, starts, strict=True)]


def _ramp(count: int) -> Tensor:
    return (torch.arange(count) + 0.5) / count
