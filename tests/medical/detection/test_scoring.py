from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="extra openmmlab")

from crossband.medical.detection.data import Boxes  # noqa: E402
from crossband.medical.detection.scoring import average_precision, coco_scores, score  # noqa: E402

CLASSES = ("a", "b", "absent")
SIZES = [(64, 64)] * 12


def scattered(seed: int = 0) -> tuple[list[Boxes], list[Boxes]]:
    """Return boxes drawn, and found ones of which some are near, some wrong, some missing."""
    draw = np.random.default_rng(seed)
    drawn, found = [], []
    for _ in SIZES:
        count = int(draw.integers(0, 6))
        low = draw.uniform(0, 40, (count, 2))
        corners = np.hstack([low, low + draw.uniform(6, 20, (count, 2))])
        labels = draw.integers(0, 2, count)
        drawn.append(Boxes.of(corners.tolist(), labels.tolist()))
        guess = Boxes.of((corners + draw.normal(0, 2, corners.shape)).tolist(), labels.tolist())
        kept = draw.random(count) < 0.8
        wrong = Boxes.of([[1, 1, 9, 9]], [int(draw.integers(0, 2))])
        rows = np.vstack([guess.corners[kept], wrong.corners])
        names = np.concatenate([guess.labels[kept], wrong.labels])
        scores = draw.random(len(names)).astype(np.float32)
        found.append(Boxes(rows.astype(np.float32), names, scores))
    return drawn, found


def test_own_precision_equals_pycocotools() -> None:
    drawn, found = scattered()
    scores = coco_scores(drawn, found, SIZES, CLASSES)
    for k in (0, 1):
        match = scores.matches[k]
        own = average_precision(match.right, match.image, match.drawn, np.ones(len(SIZES), int))
        assert own == pytest.approx(scores.ap50[k], abs=1e-9)
        assert 0 < scores.ap[k] < scores.ap50[k] < 1
    assert np.isnan(scores.ap50[2]) and scores.mean("ap50") == scores.ap50[:2].mean()


def test_weights_are_copies_of_images() -> None:
    drawn, found = scattered()
    weights = np.array([2, 0, 1, 3, 0, 1, 1, 0, 2, 1, 0, 1])
    places = np.repeat(np.arange(len(SIZES)), weights)
    copies = coco_scores(
        [drawn[i] for i in places], [found[i] for i in places], SIZES[:1] * len(places), CLASSES
    )
    scores = coco_scores(drawn, found, SIZES, CLASSES)
    for k in (0, 1):
        match = scores.matches[k]
        own = average_precision(match.right, match.image, match.drawn, weights)
        assert own == pytest.approx(copies.ap50[k], abs=1e-9)


def test_perfect_and_empty() -> None:
    drawn, _ = scattered()
    right = [Boxes(b.corners, b.labels, np.ones(len(b), np.float32)) for b in drawn]
    none = [Boxes(b.corners[:0], b.labels[:0], np.zeros(0, np.float32)) for b in drawn]
    assert coco_scores(drawn, right, SIZES, CLASSES).mean("ap") == pytest.approx(1)
    assert coco_scores(drawn, none, SIZES, CLASSES).mean("ap50") == 0


def test_intervals_hold_the_value() -> None:
    drawn, found = scattered()
    result = score(drawn, found, SIZES, CLASSES, list(range(12)), resamples=100)
    assert result["ap50"]["low"] < result["ap50"]["value"] < result["ap50"]["high"]
    assert result["classes"]["absent"] == {
        "boxes": 0,
        "ap50": {"value": None, "low": None, "high": None},
        "ap": None,
    }
    assert result["classes"]["a"]["boxes"] == sum(int((b.labels == 0).sum()) for b in drawn)


def test_a_patient_is_resampled_as_one() -> None:
    drawn, found = scattered()
    one = score(drawn, found, SIZES, CLASSES, ["p"] * 12, resamples=50)
    assert one["ap50"]["low"] is None
