from __future__ import annotations

import math

import numpy as np
import pytest

from crossband.infrared.metrics import SmallTargetScores


def _field(*squares: tuple[int, int, int]) -> np.ndarray:
    """Return a map of zeros with squares (top, left, side) of ones."""
    field = np.zeros((40, 50), np.uint8)
    for top, left, side in squares:
        field[top : top + side, left : left + side] = 1
    return field


def test_targets_found_missed_and_invented() -> None:
    scores = SmallTargetScores()
    label = _field((5, 5, 3), (20, 30, 3))
    found = _field((6, 5, 3), (30, 10, 4))  # the first one row lower, and a false one
    row = scores.update(found, label)
    assert (row["targets"], row["found"], row["false_pixels"]) == (2, 1, 16)
    assert row["iou"] == pytest.approx(6 / (18 + 25 - 6))
    summary = scores.summary()
    assert summary["Pd"] == 0.5 and summary["Fa"] == pytest.approx(16 / 2000)


def test_a_region_finds_one_target_only_and_only_within_three_pixels() -> None:
    scores = SmallTargetScores()
    row = scores.update(_field((10, 10, 3)), _field((10, 8, 1), (11, 13, 1)))
    assert row["found"] == 1
    far = SmallTargetScores().update(_field((10, 14, 1)), _field((10, 10, 1)))
    assert far["found"] == 0 and far["false_pixels"] == 1


def test_pixels_that_touch_by_a_corner_are_one_target() -> None:
    label = np.zeros((10, 10), np.uint8)
    label[3, 3] = label[4, 4] = 1
    assert SmallTargetScores().update(label, label)["targets"] == 1


def test_images_without_targets() -> None:
    scores = SmallTargetScores()
    assert math.isnan(scores.update(_field(), _field())["iou"])
    assert scores.update(_field((1, 1, 2)), _field())["iou"] == 0.0
    scores.update(_field((3, 3, 2)), _field((3, 3, 2)))
    assert scores.summary()["nIoU"] == 0.5  # of two images, the empty one left out
    ignored = np.full((40, 50), 255, np.uint8)
    assert math.isnan(scores.update(_field((1, 1, 2)), ignored)["iou"])
