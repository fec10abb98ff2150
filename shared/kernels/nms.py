"""Non-maximum suppression on axis-aligned boxes: hard, and soft (Bodla et al. 2017).

Both keep what the compiled operators of mmcv keep, ties included, and need no compiler.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Implementation = Literal["auto", "reference", "sweep"]
Method = Literal["naive", "linear", "gaussian"]

# Boxes that are compared with their neighbours at a time: enough to make the calls few, and few
# enough to stay in the caches (5,000 boxes, one thread: 16 rows 23 ms, 64 rows 11, 512 rows 38).
_ROWS = 64


def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    offset: int = 0,
    implementation: Implementation = "auto",
) -> Tensor:
    """Keep a box unless a kept box of higher score overlaps it by more than the threshold.

    Args:
        boxes: (N, 4) corners x1, y1, x2, y2.
        scores: (N,); of equal scores the earlier box goes first.
        iou_threshold: In [0, 1]; an overlap of exactly this much is kept.
        offset: 1 if corners are pixel indices, so that x1 = x2 is one pixel wide; else 0.
        implementation: `reference` compares one box after the other with the rest; `sweep`, which
            `auto` takes, compares only boxes that can touch along x and then settles all at once.

    Returns:
        (K,) indices of the kept boxes, by falling score.
    """
    boxes, scores = boxes.detach(), scores.detach()
    if boxes.dtype != torch.float64:
        boxes = boxes.float()
    order = scores.sort(descending=True, stable=True).indices
    ranked = boxes[order]
    settle = _one_by_one if implementation == "reference" else _sweep
    return order[settle(ranked, iou_threshold, offset)]


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    method: Method = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """Lower the scores of boxes that overlap a better one instead of dropping them.

    In each step the box of highest score is taken, and the score of every other one is multiplied
    by a weight of their overlap o: `naive` 0 if o >= threshold, `linear` 1 - o if o >= threshold,
    `gaussian` exp(-o^2 / sigma) always. Boxes that fall below `min_score` are dropped. Two empty
    boxes do not overlap (the compiled `gaussian` makes their scores NaN).

    Args:
        boxes: (N, 4) corners.
        scores: (N,).
        method: How overlap lowers a score.
        iou_threshold: For `naive` and `linear`.
        sigma: For `gaussian`.
        min_score: Least score that stays.
        offset: As in `nms`.

    Returns:
        (K, 5) boxes with their lowered scores, in the order in which they were taken; and (K,)
        their indices. On the CPU: steps follow from each other, which suits no accelerator.
    """
    wide = np.float64 if boxes.dtype == torch.float64 else np.float32
    corners = boxes.detach().cpu().numpy().astype(wide)
    x1, y1, x2, y2 = corners.T.copy()
    area = (x2 - x1 + wide(offset)) * (y2 - y1 + wide(offset))
    score = scores.detach().cpu().numpy().astype(wide)
    columns = (x1, y1, x2, y2, area, score, index := np.arange(len(score)))
    left = len(score)
    step = 0
    while step < left:
        best = step + int(score[step:left].argmax())
        for column in columns:
            column[step], column[best] = column[best], column[step]
        rest = slice(step + 1, left)
        width = np.minimum(x2[step], x2[rest]) - np.maximum(x1[step], x1[rest]) + wide(offset)
        height = np.minimum(y2[step], y2[rest]) - np.maximum(y1[step], y1[rest]) + wide(offset)
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        union = area[step] + area[rest] - shared
        overlap = np.divide(shared, union, out=np.zeros_like(union), where=union != 0)
        if method == "gaussian":
            score[rest] *= np.exp(-(overlap * overlap) / wide(sigma))
        else:
            lowered = 1 - overlap if method == "linear" else wide(0)
            score[rest] *= np.where(overlap >= wide(iou_threshold), lowered, wide(1))
        stays = ~(score[rest] < min_score)
        left = step + 1 + int(stays.sum())
        # The compiled operator fills each gap with the last box, and equal scores are later taken
        # in the order this leaves.
        gaps = step + 1 + np.flatnonzero(~stays[: left - step - 1])
        fillers = step + 1 + np.flatnonzero(stays)[::-1][: len(gaps)]
        for column in columns:
            column[gaps] = column[fillers]
        step += 1
    taken = np.stack([x1, y1, x2, y2, score], axis=1)[:left]
    return torch.from_numpy(taken).to(boxes.dtype), torch.from_numpy(index[:left])


def _overlap(a: tuple[Tensor, ...], b: tuple[Tensor, ...], offset: int) -> Tensor:
    """Return intersection over union of boxes x1, y1, x2, y2, area that broadcast."""
    width = torch.minimum(a[2], b[2]).sub_(torch.maximum(a[0], b[0])).add_(offset).clamp_(min=0)
    height = torch.minimum(a[3], b[3]).sub_(torch.maximum(a[1], b[1])).add_(offset).clamp_(min=0)
    shared = width.mul_(height)
    return shared / (a[4] + b[4]).sub_(shared)


def _columns(boxes: Tensor, offset: int) -> tuple[Tensor, ...]:
    x1, y1, x2, y2 = boxes.t().contiguous()
    return x1, y1, x2, y2, (x2 - x1 + offset) * (y2 - y1 + offset)


def _one_by_one(boxes: Tensor, threshold: float, offset: int) -> Tensor:
    """Return which of (N, 4) boxes, best first, are kept."""
    columns = _columns(boxes, offset)
    keep = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    for i in range(len(boxes)):
        if keep[i]:
            one = tuple(column[i] for column in columns)
            rest = tuple(column[i + 1 :] for column in columns)
            keep[i + 1 :] &= ~(_overlap(one, rest, offset) > threshold)
    return keep


def _sweep(boxes: Tensor, threshold: float, offset: int) -> Tensor:
    """Return which of (N, 4) boxes, best first, are kept.

    "j falls if some kept i < j overlaps it" has one solution; starting from all kept and applying
    it again and again settles box j once its better neighbours are settled.
    """
    better, worse = _overlapping_pairs(boxes, threshold, offset)
    keep = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    while True:
        settled = torch.ones_like(keep)
        settled[worse[keep[better]]] = False
        if torch.equal(settled, keep):
            return keep
        keep = settled


def _overlapping_pairs(boxes: Tensor, threshold: float, offset: int) -> tuple[Tensor, Tensor]:
    """Return the pairs i < j that overlap by more than the threshold, as two index vectors."""
    along = boxes[:, 0].sort().indices
    columns = _columns(boxes[along], offset)
    # Sorted by left edge, a block of boxes can touch only those that start before its right end.
    padded = torch.nn.functional.pad(columns[2], (0, -len(boxes) % _ROWS), value=-torch.inf)
    reach = padded.view(-1, _ROWS).amax(dim=1) + offset
    ends = torch.searchsorted(columns[0], reach, right=True).tolist()
    pairs = [along.new_zeros(2, 0)]
    for start, end in zip(range(0, len(boxes), _ROWS), ends, strict=True):
        block = tuple(column[start : start + _ROWS, None] for column in columns)
        near = tuple(column[start:end] for column in columns)
        hits = (_overlap(block, near, offset) > threshold).triu_(diagonal=1)
        pairs.append(hits.nonzero().t() + start)
    ranks = along[torch.cat(pairs, dim=1)]
    return ranks.amin(dim=0), ranks.amax(dim=0)
