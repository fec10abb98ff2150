"""Local similarity of two images by their feature maps (LVM-Med, section 3.2; VICRegL).

Each place of one map is paired with the place of the other that is nearest in the original image,
and with the one whose features are nearest. Locations are (row, column) in pixels of the original
images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crossband.medical.lvm_med.affinities import full_precision, unit
from crossband.shared.errors import ConfigError

_CHUNK = 2**25  # pairs of places that are compared at once


def location_grid(
    box: Sequence[float],
    size: int | tuple[int, int],
    flip: bool = False,
    *,
    no_flip_grid: bool = False,
) -> Tensor:
    """Return the centres of the cells of a crop in its image, (rows, columns, 2), row and column.

    Args:
        box: top, left, height and width of the crop in pixels; more numbers are not read.
        size: Cells per side, or rows and columns.
        flip: The crop was mirrored, left to right: columns are read from the right.
        no_flip_grid: Do not mirror the grid even so, as the draft does by default.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    top, left, height, width = (float(number) for number in box[:4])
    down = top + (torch.arange(rows) + 0.5) * height / rows
    across = left + (torch.arange(columns) + 0.5) * width / columns
    if flip and not no_flip_grid:
        across = across.flip(0)
    return torch.stack(torch.meshgrid(down, across, indexing="ij"), -1)


def regrid(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the cell centres of the same crops for another number of cells, exactly.

    Args:
        grid: (B, R, S, 2), equally spaced.
        size: Rows and columns wanted.

    Returns:
        (B, rows, columns, 2).

    Raises:
        ConfigError: a grid of one row or column, which does not tell how large its cell is.
    """
    _, rows, columns, _ = grid.shape
    if (rows, columns) == size:
        return grid
    if min(rows, columns) < 2:
        raise ConfigError(
            f"A grid of {rows} x {columns} locations does not fit maps of {size[0]} x {size[1]}: "
            "give grids of at least 2 x 2."
        )
    first = grid[:, 0, 0]
    step = torch.stack(
        (
            (grid[:, -1, 0, 0] - first[:, 0]) / (rows - 1),
            (grid[:, 0, -1, 1] - first[:, 1]) / (columns - 1),
        ),
        -1,
    )
    start, extent = first - step / 2, step * step.new_tensor((rows, columns))
    down = (torch.arange(size[0], device=grid.device) + 0.5) / size[0]
    across = (torch.arange(size[1], device=grid.device) + 0.5) / size[1]
    parts = torch.stack(torch.meshgrid(down, across, indexing="ij"), -1).to(grid)
    return start[:, None, None] + parts * extent[:, None, None]


def best_pairs(nearest: Tensor, columns: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Keep the rows that are nearest to their columns.

    Args:
        nearest: Distance of every row to its column (..., P).
        columns: The columns, int64 (..., P); one may occur more than once.
        count: Rows to keep; None, or more than there are: all.

    Returns:
        The rows in ascending order and their columns, int64 (..., count). Of equally near rows the
        first counts.
    """
    rows = nearest.sort(dim=-1, stable=True).indices[..., :count].sort(-1).values
    return rows, columns.gather(-1, rows)


def nearest_neighbours(
    first: Tensor, second: Tensor, distance: Tensor, count: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the paired features (B, count, D) of both maps, rows of the first in their order.

    Args:
        first: Map (B, P, D).
        second: Map (B, Q, D).
        distance: Between places (B, P, Q), of features or of locations.
        count: Pairs to keep; None: all P.
    """
    # Grids of equal cells have ties: topk settles them as it does for VICRegL, min differently.
    nearest, columns = (part[..., 0] for part in distance.topk(1, largest=False))
    rows, columns = best_pairs(nearest, columns, count)
    width = first.shape[-1]
    return (
        first.gather(1, rows[..., None].expand(-1, -1, width)),
        second.gather(1, columns[..., None].expand(-1, -1, width)),
    )


def local_affinity(
    first: Tensor,
    second: Tensor,
    first_locations: Tensor,
    second_locations: Tensor,
    gamma: tuple[int | None, int | None] = (None, None),
) -> Tensor:
    """Return c_lo(i, a) + c_lo(a, i) of all images of two views, (G, n, m), each in [-1, 1].

    c_lo(i, a) = 0.5 (mean cosine of places paired by location + mean cosine of places paired by
    features), over the `gamma` nearest pairs.

    Args:
        first: Maps (G, n, P, D) of one view.
        second: Maps (G, m, Q, D) of the other.
        first_locations: (G, n, P, 2).
        second_locations: (G, m, Q, 2).
        gamma: Pairs that count, of a map of the first and of the second view; None, or more than
            there are places: all.
    """
    places = first.shape[1] * first.shape[2] * second.shape[1] * second.shape[2]
    step = max(1, _CHUNK // max(1, places))
    arrays = map(full_precision, (first, second, first_locations, second_locations))
    parts = zip(*(array.split(step) for array in arrays), strict=True)
    return torch.cat([_both_ways(*part, gamma) for part in parts])


def _both_ways(
    first: Tensor, second: Tensor, here: Tensor, there: Tensor, gamma: tuple[int | None, int | None]
) -> Tensor:
    cosine = torch.einsum("gipd,gaqd->giapq", unit(first), unit(second))
    with torch.no_grad():
        by_feature = _feature_distance(first, second, cosine)
        by_location = _location_distance(here, there)
    total = torch.zeros_like(cosine[..., 0, 0])
    for distance in (by_location, by_feature):
        total = total + _mean_of_pairs(cosine, distance, gamma[0])
        turned = cosine.transpose(-1, -2), distance.transpose(-1, -2)
        total = total + _mean_of_pairs(*turned, gamma[1])
    return total / 2


def _mean_of_pairs(cosine: Tensor, distance: Tensor, count: int | None) -> Tensor:
    rows, columns = best_pairs(*distance.min(-1), count)
    return cosine.flatten(-2).gather(-1, rows * cosine.shape[-1] + columns).mean(-1)


def _feature_distance(first: Tensor, second: Tensor, cosine: Tensor) -> Tensor:
    """Return squared distances of features, (G, n, m, P, Q)."""
    a, b = first.norm(dim=-1)[:, :, None, :, None], second.norm(dim=-1)[:, None, :, None, :]
    return a.square() + b.square() - 2 * a * b * cosine


def _location_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return squared distances in pixels, (G, n, m, P, Q)."""
    gaps = [
        (first[:, :, None, :, None, axis] - second[:, None, :, None, :, axis]).square()
        for axis in (0, 1)
    ]
    return gaps[0] + gaps[1]


def local_distance(
    first: Tensor,
    second: Tensor,
    first_locations: Tensor,
    second_locations: Tensor,
    count: int,
) -> Tensor:
    """Return the draft's local costs (G, n, m): Euclidean distances of local features.

    Every image keeps the `count` places of its own two views that pair best, once by features and
    once by location; the kept features of two images are compared as one vector. Both distances
    are added.

    Args:
        first: Maps (G, n, P, D).
        second: Maps (G, n, Q, D).
        first_locations: (G, n, P, 2).
        second_locations: (G, n, Q, 2).
        count: Places to keep; at most the fewer of P and Q are.
    """
    graphs, nodes = first.shape[:2]
    arrays = (first, second, first_locations, second_locations)
    a, b, here, there = (full_precision(array.flatten(0, 1)) for array in arrays)
    with torch.no_grad():
        distances = (torch.cdist(a, b), torch.cdist(here, there))
    total = a.new_zeros(graphs, nodes, nodes)
    for distance in distances:
        kept = nearest_neighbours(a, b, distance, count)
        x, y = (part.flatten(1).unflatten(0, (graphs, nodes)) for part in kept)
        total = total + torch.cdist(x, y)
    return total
