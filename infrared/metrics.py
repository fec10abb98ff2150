"""Scores of small targets: nIoU, probability of detection, false alarms.

The field's: Dai et al. 2021 (nIoU), Li et al. 2022 (Pd and Fa of DNANet).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_REACH = 3.0  # pixels between centroids for a target to count as found
_EIGHT = np.ones((3, 3), int)  # pixels that touch by a corner are one target


class SmallTargetScores:
    """Adds up images of targets (class 1) before a background.

    - nIoU: mean over images of the IoU of class 1; an image without a target and without a
      prediction is left out, one with a false prediction counts 0.
    - Pd: share of the labelled targets (8-connected) with a predicted region whose centroid is
      less than 3 pixels away; every region finds one target.
    - Fa: pixels of regions that found none, as a share of all pixels.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.ious: list[float] = []
        self.targets = self.found = self.false_pixels = self.pixels = 0

    def update(self, predicted: np.ndarray, label: np.ndarray) -> dict[str, float]:
        """Add an image of class ids (H, W); 255 in the label is ignored.

        Returns:
            Its IoU (NaN without target and prediction), targets, and those found.
        """
        valid = label != 255
        truth, guess = (label == 1) & valid, (predicted == 1) & valid
        union = int((truth | guess).sum())
        iou = float((truth & guess).sum() / union) if union else float("nan")
        if union:
            self.ious.append(iou)
        found, targets, false_pixels = _match(truth, guess)
        self.targets += targets
        self.found += found
        self.false_pixels += false_pixels
        self.pixels += int(valid.sum())
        return {"iou": iou, "targets": targets, "found": found, "false_pixels": false_pixels}

    def summary(self) -> dict[str, float]:
        """Return nIoU and Pd in 0 to 1, and Fa as a share of the pixels."""
        return {
            "nIoU": float(np.mean(self.ious)) if self.ious else float("nan"),
            "Pd": self.found / self.targets if self.targets else float("nan"),
            "Fa": self.false_pixels / self.pixels if self.pixels else float("nan"),
        }


def _match(truth: np.ndarray, guess: np.ndarray) -> tuple[int, int, int]:
    """Return targets found, targets, and pixels of regions that found none."""
    true_regions, targets = ndimage.label(truth, _EIGHT)
    guessed, regions = ndimage.label(guess, _EIGHT)
    if not regions:
        return 0, targets, 0
    sizes = np.bincount(guessed.ravel(), minlength=regions + 1)[1:]
    if not targets:
        return 0, 0, int(sizes.sum())
    centres = np.array(ndimage.center_of_mass(truth, true_regions, range(1, targets + 1)))
    middles = np.array(ndimage.center_of_mass(guess, guessed, range(1, regions + 1)))
    free = np.ones(regions, bool)
    found = 0
    for centre in centres:
        distance = np.where(free, np.hypot(*(middles - centre).T), np.inf)
        nearest = int(distance.argmin())
        if distance[nearest] < _REACH:
            free[nearest] = False
            found += 1
    return found, targets, int(sizes[free].sum())
