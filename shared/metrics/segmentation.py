"""Scores of classified pixels, from one matrix of counts over a whole data set."""

from __future__ import annotations

import torch
from torch import Tensor


class ConfusionMatrix:
    """Counts pixels by true and predicted class.

    Args:
        classes: K.
        ignore: Label that is not counted.
    """

    def __init__(self, classes: int, ignore: int = 255) -> None:
        """Start with zeros."""
        self.classes, self.ignore = classes, ignore
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, predicted: Tensor, label: Tensor) -> None:
        """Add class ids of equal shapes; rows are the truth."""
        valid = label != self.ignore
        pairs = label[valid].long() * self.classes + predicted[valid].long()
        added = torch.bincount(pairs.flatten(), minlength=self.classes**2)
        self.counts += added.view(self.classes, self.classes).to(self.counts.device)

    def scores(self) -> SegmentationScores:
        """Return what the counts say."""
        return SegmentationScores(self.counts)


class SegmentationScores:
    """Scores in 0 to 1; NaN for classes that are neither labelled nor predicted.

    Args:
        counts: (K, K), rows the truth.

    Attributes:
        iou: Intersection over union per class.
        accuracy: Recall per class.
        precision: Precision per class.
        fscore: F1 per class.
        overall: Share of pixels that are right (mmseg's aAcc).
    """

    def __init__(self, counts: Tensor) -> None:
        """Compute the scores."""
        counts = counts.double().cpu()
        hit, truth, found = counts.diag(), counts.sum(1), counts.sum(0)
        self.counts = counts
        self.iou = hit / (truth + found - hit)
        self.accuracy = hit / truth
        self.precision = hit / found
        self.fscore = 2 * hit / (truth + found)
        self.overall = float(hit.sum() / counts.sum())

    @staticmethod
    def mean(values: Tensor) -> float:
        """Return the mean over classes that have a value, as mmseg takes it."""
        return float(values.nanmean())

    def summary(self) -> dict[str, float]:
        """Return mIoU, aAcc, mAcc and mFscore, in 0 to 1."""
        return {
            "mIoU": self.mean(self.iou),
            "aAcc": self.overall,
            "mAcc": self.mean(self.accuracy),
            "mFscore": self.mean(self.fscore),
        }
