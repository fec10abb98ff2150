"""RoIAlign (He et al. 2017, Mask R-CNN, section 3): a grid of bins for every box of a feature map.

Each bin holds some points, read off by bilinear interpolation and averaged (or their largest
taken). Interpolation at (y, x) is linear in rows and in columns apart, so a box is two small
matrix products, `rows @ map @ columns^T`, over the part of the map that it covers.

A point further than one cell outside the map counts as 0, others are moved to its edge; torchvision
and mmcv do the same.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Mode = Literal["avg", "max"]
Implementation = Literal["auto", "reference", "cropped"]

# Boxes whose interpolation matrices are held at a time.
_BOXES = 1024
_NOWHERE = -2.0  # outside of every map


class Pooling(NamedTuple):
    """How boxes are pooled.

    Attributes:
        size: (ph, pw) bins.
        spatial_scale: Cells of the map per unit of the boxes: 1 / stride.
        sampling_ratio: Points per bin and axis; 0: as many as the bin has cells, rounded up.
        mode: Mean of a bin's points, or their largest.
        aligned: Cell centres lie at half units (He's later correction); else at whole ones, and
            boxes are at least one cell wide.
    """

    size: tuple[int, int]
    spatial_scale: float = 1.0
    sampling_ratio: int = 0
    mode: Mode = "avg"
    aligned: bool = True


def roi_align(
    features: Tensor,
    boxes: Tensor,
    size: int | tuple[int, int],
    *,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    mode: Mode = "avg",
    aligned: bool = True,
    implementation: Implementation = "auto",
) -> Tensor:
    """Pool every box to the same number of bins.

    Args:
        features: (B, C, H, W).
        boxes: (N, 5): index into the batch, x1, y1, x2, y2. They get no gradient.
        size: Bins: (ph, pw), or one number for both.
        spatial_scale: See `Pooling`, as the rest.
        sampling_ratio: See `Pooling`.
        mode: See `Pooling`.
        aligned: See `Pooling`.
        implementation: `reference` reads every point off the whole map; `cropped`, which `auto`
            takes, works on the cells that a box covers.

    Returns:
        (N, C, ph, pw). A box without points (zero size, `sampling_ratio` 0) gives 0.
    """
    size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    pooling = Pooling(size, float(spatial_scale), int(sampling_ratio), mode, bool(aligned))
    if implementation == "reference":
        return _reference(features, boxes, pooling)
    return _RoIAlign.apply(features, boxes, pooling)


def roi_align_forward(
    features: Tensor, boxes: Tensor, pooling: Pooling
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Pool without autograd.

    Returns:
        (N, C, ph, pw), and for mode `max` the y and x of the largest points (same shape, in cells;
        -2 where there is none), else None twice.
    """
    (ph, pw), channels = pooling.size, features.shape[1]
    work = _working_type(features)
    pooled = features.new_zeros(len(boxes), channels, ph, pw)
    largest = pooling.mode == "max"
    at_y, at_x = (
        torch.full_like(pooled, _NOWHERE, dtype=work) if largest else None for _ in range(2)
    )
    maps = features.detach().to(work).permute(0, 2, 3, 1).contiguous()  # B, H, W, C
    for crop in _crops(boxes, features.shape[2:], pooling, work):
        # Cells of a row and their channels lie in one piece, so that no copy is made.
        cells = maps[crop.image, crop.y, crop.x].flatten(1)  # h, wC
        lines = (crop.rows @ cells).view(len(crop.rows), -1, channels)  # rows, w, C
        points = crop.columns @ lines  # rows, columns, C
        if largest:
            down, across = crop.ys.shape[1], crop.xs.shape[1]
            points = points.view(ph, down, pw, across, channels).permute(4, 0, 2, 1, 3)
            pooled[crop.box], index = points.flatten(3).max(dim=3)
            row, column = (torch.arange(n, device=index.device) for n in (ph, pw))
            at_y[crop.box] = crop.ys[row[:, None], index // across]
            at_x[crop.box] = crop.xs[column, index % across]
        else:
            pooled[crop.box] = points.permute(2, 0, 1)
    return pooled, at_y, at_x


def roi_align_backward(
    grad: Tensor,
    boxes: Tensor,
    shape: tuple[int, ...],
    pooling: Pooling,
    at_y: Tensor | None = None,
    at_x: Tensor | None = None,
) -> Tensor:
    """Return the gradient for the features.

    Args:
        grad: (N, C, ph, pw).
        boxes: (N, 5).
        shape: (B, C, H, W) of the features.
        pooling: As in the forward pass.
        at_y: Mode `max`: what the forward pass returned.
        at_x: Same.
    """
    batch, channels, height, width = shape
    work = _working_type(grad)
    grad = grad.to(work)
    maps = grad.new_zeros(batch, height, width, channels)
    if pooling.mode == "max":
        _add_at_points(maps, grad, boxes[:, 0].long(), at_y, at_x)
    else:
        grads = grad.permute(0, 2, 3, 1).contiguous()  # N, ph, pw, C
        for crop in _crops(boxes, (height, width), pooling, work):
            lines = (crop.columns.t() @ grads[crop.box]).flatten(1)  # ph, wC
            cells = maps[crop.image, crop.y, crop.x]
            size = (cells.shape[0], cells.shape[1] * channels)
            # The same memory as a matrix, so that the product is added where it belongs.
            cells = cells.as_strided(size, (width * channels, 1))
            cells.addmm_(crop.rows.t(), lines)
    return maps.permute(0, 3, 1, 2)


class _Crop(NamedTuple):
    """What one box covers, and the matrices that interpolate within it."""

    box: int
    image: int
    y: slice
    x: slice
    rows: Tensor  # (ph, h), or (ph * points, h) for mode max
    columns: Tensor  # (pw, w), or (pw * points, w)
    ys: Tensor  # rows of the points, in cells
    xs: Tensor


def _crops(boxes: Tensor, shape: tuple[int, int], pooling: Pooling, work: torch.dtype) -> Any:
    """Yield a `_Crop` for every box that has points on the map."""
    boxes = boxes.detach()
    for first in range(0, len(boxes), _BOXES):
        part = boxes[first : first + _BOXES]
        along_y = _axis(part[:, 2], part[:, 4], shape[0], pooling.size[0], pooling, work)
        along_x = _axis(part[:, 1], part[:, 3], shape[1], pooling.size[1], pooling, work)
        images = part[:, 0].long().tolist()
        for n, image in enumerate(images):
            y, x = (slice(axis.low[n], axis.high[n]) for axis in (along_y, along_x))
            if y.start < y.stop and x.start < x.stop:
                rows, ys = along_y.matrix(n, y)
                columns, xs = along_x.matrix(n, x)
                yield _Crop(first + n, image, y, x, rows, columns, ys, xs)


class _Axis(NamedTuple):
    """Interpolation along one axis for many boxes."""

    weights: Tensor  # (N, bins, L) or, not pooled, (N, bins, S, L)
    points: Tensor  # (N, bins, S)
    counts: list[int]  # points per bin
    low: list[int]  # cells touched, from low up to high
    high: list[int]

    def matrix(self, n: int, cells: slice) -> tuple[Tensor, Tensor]:
        """Return the weights of one box on its cells, and its points."""
        if self.weights.dim() == 3:
            return self.weights[n, :, cells], self.points[n]
        count = self.counts[n]
        return self.weights[n, :, :count, cells].flatten(0, 1), self.points[n, :, :count]


def _axis(
    start: Tensor, end: Tensor, length: int, bins: int, pooling: Pooling, work: torch.dtype
) -> _Axis:
    """Lay the points of (N,) intervals on an axis of some cells."""
    shift = 0.5 if pooling.aligned else 0.0
    start = start.to(work) * pooling.spatial_scale - shift
    span = end.to(work) * pooling.spatial_scale - shift - start
    if not pooling.aligned:
        span = span.clamp(min=1.0)
    bin_size = span / bins
    if pooling.sampling_ratio > 0:
        counts = torch.full_like(span, pooling.sampling_ratio)
    else:
        counts = bin_size.ceil().clamp(min=0)
    most = max(1, int(counts.max()))
    steps = torch.arange(bins, device=span.device, dtype=work)
    within = torch.arange(most, device=span.device, dtype=work)
    size = bin_size[:, None, None]
    points = start[:, None, None] + steps[:, None] * size
    points = points + (within + 0.5) * size / counts.clamp(min=1)[:, None, None]
    real = within < counts[:, None, None]
    valid = real & (points >= -1) & (points <= length)
    clamped = points.clamp(0, length - 1)
    below = clamped.floor()
    part = (clamped - below) * valid
    below_index = below.long()
    above_index = (below_index + 1).clamp(max=length - 1)
    taps = torch.stack([valid.to(work) - part, part], dim=-1)
    cells = torch.stack([below_index, above_index], dim=-1)
    if pooling.mode == "avg":
        taps = (taps / counts.clamp(min=1)[:, None, None, None]).flatten(2)
        cells = cells.flatten(2)
    weights = taps.new_zeros(*cells.shape[:-1], length).scatter_add_(-1, cells, taps)
    low = torch.where(valid, below_index, length).flatten(1).amin(dim=1)
    high = torch.where(valid, above_index, -1).flatten(1).amax(dim=1) + 1
    return _Axis(weights, points, counts.long().tolist(), low.tolist(), high.tolist())


def _add_at_points(maps: Tensor, grad: Tensor, image: Tensor, at_y: Tensor, at_x: Tensor) -> None:
    """Add (N, C, ph, pw) to (B, H, W, C) at one point each, by bilinear weights."""
    _, height, width, channels = maps.shape
    valid = (at_y >= -1) & (at_y <= height) & (at_x >= -1) & (at_x <= width)
    y, x = at_y.clamp(0, height - 1), at_x.clamp(0, width - 1)
    top, left = y.floor(), x.floor()
    channel = torch.arange(channels, device=grad.device)[:, None, None]
    flat = maps.view(-1)
    for down in (0, 1):
        for right in (0, 1):
            weight = (y - top if down else 1 - y + top) * (x - left if right else 1 - x + left)
            row = (top.long() + down).clamp(max=height - 1)
            column = (left.long() + right).clamp(max=width - 1)
            cell = (image[:, None, None, None] * height + row) * width + column
            flat.scatter_add_(
                0, (cell * channels + channel).flatten(), (grad * weight * valid).flatten()
            )


def _working_type(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _reference(features: Tensor, boxes: Tensor, pooling: Pooling) -> Tensor:
    """Interpolate every point on the whole map, one box after the other."""
    height, width = features.shape[2:]
    (ph, pw), work = pooling.size, _working_type(features)
    every = pooling._replace(mode="max")  # points one by one
    pooled = [features[:0, :, :1, :1].expand(-1, -1, ph, pw)]  # differentiable without boxes too
    for box in boxes.detach():
        along_y = _axis(box[None, 2], box[None, 4], height, ph, every, work)
        along_x = _axis(box[None, 1], box[None, 3], width, pw, every, work)
        rows, _ = along_y.matrix(0, slice(None))
        columns, _ = along_x.matrix(0, slice(None))
        if not len(rows) or not len(columns):
            pooled.append(features.new_zeros(1, features.shape[1], ph, pw))
            continue
        points = torch.einsum("ah,chw,bw->cab", rows, features[int(box[0])].to(work), columns)
        points = points.unflatten(2, (pw, -1)).unflatten(1, (ph, -1))
        points = points.transpose(2, 3).flatten(3)
        bins = points.mean(3) if pooling.mode == "avg" else points.max(3).values
        pooled.append(bins[None].to(features.dtype))
    return torch.cat(pooled)


class _RoIAlign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, boxes: Tensor, pooling: Pooling) -> Tensor:
        pooled, at_y, at_x = roi_align_forward(features, boxes, pooling)
        ctx.save_for_backward(boxes, at_y, at_x)
        ctx.shape, ctx.pooling = features.shape, pooling
        return pooled

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        boxes, at_y, at_x = ctx.saved_tensors
        found = roi_align_backward(grad, boxes, ctx.shape, ctx.pooling, at_y, at_x)
        return found.to(grad.dtype), None, None
