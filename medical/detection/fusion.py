"""One set of boxes of what several radiologists drew in the same image."""

from __future__ import annotations

from typing import Literal

import numpy as np

from crossband.medical.detection.data import Boxes
from crossband.shared.errors import ConfigError

Fusion = Literal["wbf", "nms", "none"]
WAYS = ("wbf", "nms", "none")
OVERLAP = 0.5  # IoU from which two boxes of a class mean the same finding


def check_fusion(how: str) -> Fusion:
    """Return the way to fuse.

    Raises:
        ConfigError: another word.
    """
    if how not in WAYS:
        raise ConfigError(
            f"--network.arguments fusion={how}: boxes of several readers are fused by wbf "
            "(weighted boxes), chosen by nms, or all kept (none)."
        )
    return how  # type: ignore[return-value]


def fuse(boxes: Boxes, how: Fusion) -> Boxes:
    """Join the boxes of several readers, class by class.

    Args:
        boxes: Of all readers, in the order of the file.
        how: `wbf`: boxes that overlap by half (IoU) become one with the mean of their corners, as
            weighted box fusion does for equal weights (Solovyev et al. 2021); `nms`: of those that
            overlap the one is kept that most others agree with; `none`: all are kept.
    """
    if how == "none" or len(boxes) < 2:
        return boxes
    rows: list[np.ndarray] = []
    labels: list[int] = []
    for label in np.unique(boxes.labels):
        corners = boxes.corners[boxes.labels == label]
        joined = _mean_boxes(corners) if how == "wbf" else _agreed(corners)
        rows += joined
        labels += [int(label)] * len(joined)
    return Boxes.of(rows, labels)


def _mean_boxes(corners: np.ndarray) -> list[np.ndarray]:
    clusters: list[list[np.ndarray]] = []
    means: list[np.ndarray] = []
    for box in corners:
        overlaps = iou(box[None], np.array(means).reshape(-1, 4))[0]
        best = int(overlaps.argmax()) if len(overlaps) else -1
        if best >= 0 and overlaps[best] >= OVERLAP:
            clusters[best].append(box)
            means[best] = np.mean(clusters[best], axis=0)
        else:
            clusters.append([box])
            means.append(box)
    return means


def _agreed(corners: np.ndarray) -> list[np.ndarray]:
    same = iou(corners, corners) >= OVERLAP
    kept: list[int] = []
    for number in np.argsort(-same.sum(1), kind="stable"):
        if not same[number, kept].any():
            kept.append(int(number))
    return [corners[number] for number in sorted(kept)]


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return intersection over union (N, M) of boxes (N, 4) and (M, 4), x0 y0 x1 y1."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = (high - low).clip(0).prod(2)
    areas = [(x[:, 2:] - x[:, :2]).prod(1) for x in (a, b)]
    return common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-9)
