"""Scoring a network on labelled images: pixels of the whole set, small targets, each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from crossband.infrared.config import WindowConfig
from crossband.infrared.data.crops import Frames
from crossband.infrared.data.layouts import Item
from crossband.infrared.metrics import SmallTargetScores
from crossband.infrared.segment import Segmenter
from crossband.shared.errors import DataError
from crossband.shared.metrics import ConfusionMatrix, SegmentationScores

EXPLANATION = (
    "IoU, accuracy (recall), precision and F-score are from one confusion matrix over all pixels "
    "of the set, pixels of value 255 left out; mIoU and mAcc are means over the classes, "
    "background included."
)
SMALL_EXPLANATION = (
    "nIoU: mean over images of the target's IoU, images without target and prediction left out. "
    "Pd: share of labelled targets (8-connected) with a predicted region whose centroid is less "
    "than 3 pixels away, each region finding one. Fa: pixels of regions that found none, per "
    "million pixels."
)


@dataclass
class Outcome:
    """Scores of a set.

    Attributes:
        scores: Of all pixels.
        small: Scores of small targets, or None.
        images: A row per image: name, IoU of the classes in it, pixels that are wrong.
        problems: Images that were left out, and why.
    """

    scores: SegmentationScores
    small: dict[str, float] | None
    images: list[dict[str, Any]]
    problems: list[str] = field(default_factory=list)

    def summary(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return what metrics.json holds, in 0 to 1."""
        per_class = {
            name: {
                "iou": float(self.scores.iou[i]),
                "accuracy": float(self.scores.accuracy[i]),
                "precision": float(self.scores.precision[i]),
                "fscore": float(self.scores.fscore[i]),
            }
            for i, name in enumerate(classes)
        }
        result: dict[str, Any] = {**self.scores.summary(), "classes": per_class}
        if self.small is not None:
            result["small_targets"] = self.small
        return result


def score(
    segmenter: Segmenter,
    items: Sequence[Item],
    frames: Frames,
    window: WindowConfig | None = None,
    *,
    small_targets: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Outcome:
    """Score a network; a broken file is left out and listed.

    Args:
        segmenter: The network.
        items: Images with masks.
        frames: Reads them.
        window: How images go through.
        small_targets: Score targets of class 1 too.
        progress: Called with the number of images done.

    Raises:
        DataError: no image could be scored.
    """
    matrix = ConfusionMatrix(len(segmenter.classes))
    small = SmallTargetScores() if small_targets else None
    rows, problems = [], []
    for done, item in enumerate(items, start=1):
        try:
            pixels, label = frames.read(item)
        except DataError as error:
            problems.append(str(error))
            continue
        ids = segmenter.predict(pixels, window)
        one = ConfusionMatrix(len(segmenter.classes))
        one.update(torch.from_numpy(ids), torch.from_numpy(label))
        matrix.counts += one.counts
        found = one.scores()
        row: dict[str, Any] = {
            "image": item.name,
            "wrong pixels": int(one.counts.sum() - one.counts.diag().sum()),
            "mIoU": found.mean(found.iou),
        }
        if small is not None:
            row |= small.update(ids, label)
        rows.append(row)
        if progress:
            progress(done)
    if not rows:
        raise DataError(f"None of the {len(items)} images can be scored: {problems[0]}")
    return Outcome(matrix.scores(), small.summary() if small else None, rows, problems)


def best_threshold(
    segmenter: Segmenter,
    items: Sequence[Item],
    frames: Frames,
    window: WindowConfig | None = None,
) -> float:
    """Return by how much the logit of class 1 must be ahead of class 0 for the best IoU.

    Classes of which one is rare are trained on crops and with weights that show it more often
    than whole images do; this takes that back.

    Raises:
        DataError: no image holds class 1, so that nothing can be chosen.
    """
    steps = np.arange(-12.0, 12.0, 0.125)
    both, union = np.zeros(len(steps)), np.zeros(len(steps))
    pixels_of_class = 0
    for item in items:
        pixels, label = frames.read(item)
        logits = segmenter.logits(pixels, window).cpu().numpy()
        ahead, valid, truth = logits[1] - logits[0], label != 255, label == 1
        bins = [*steps, np.inf]
        hit = np.histogram(ahead[truth], bins)[0][::-1].cumsum()[::-1]
        false = np.histogram(ahead[valid & ~truth], bins)[0][::-1].cumsum()[::-1]
        both += hit
        union += truth.sum() + false
        pixels_of_class += int(truth.sum())
    if not pixels_of_class:
        raise DataError(
            f"None of the {len(items)} validation images holds the class {segmenter.classes[1]!r}, "
            "so no threshold can be chosen: take --threshold half, or other validation images."
        )
    iou = both / np.maximum(union, 1)
    return float(steps[iou.argmax()])


def worst(outcome: Outcome, count: int) -> list[str]:
    """Return the names of the images that come out worst: by IoU of the target, or by mIoU."""
    key = "iou" if outcome.small is not None else "mIoU"
    scored = [row for row in outcome.images if not np.isnan(row[key])]
    return [row["image"] for row in sorted(scored, key=lambda row: row[key])[:count]]
