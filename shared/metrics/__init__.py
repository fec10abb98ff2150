"""Scores that more than one domain takes."""

from crossband.shared.metrics.segmentation import ConfusionMatrix, SegmentationScores

__all__ = ["ConfusionMatrix", "SegmentationScores"]
