"""COCO's average precision, per class, with intervals over patients."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossband.medical.detection.data import Boxes
from crossband.shared.metrics.ranking import bootstrap

EXPLANATION = (
    "COCO's average precision, at most 100 boxes per image, the surest first: AP50 counts a box as "
    "found at an IoU of 0.5 or more; AP is the mean over the IoU thresholds 0.50, 0.55, ..., 0.95. "
    "A class without boxes in these images has no score and is left out of the means. Intervals "
    "of 95 % for AP50 from resampling patients."
)
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class _Matches:
    """Boxes found of one class at an IoU of 0.5, the surest first."""

    right: np.ndarray  # bool (D,)
    image: np.ndarray  # int64 (D,)
    drawn: np.ndarray  # int64 (I,), boxes drawn in each image


@dataclass(frozen=True)
class CocoScores:
    """Scores of all classes.

    Attributes:
        ap50: (K,), NaN of a class that no image has.
        ap: (K,), mean over the thresholds 0.5 to 0.95.
        matches: Per class, for intervals.
    """

    ap50: np.ndarray
    ap: np.ndarray
    matches: list[_Matches]

    def mean(self, name: str) -> float:
        """Return the mean of `ap50` or `ap` over the classes that there are; NaN of none."""
        values = getattr(self, name)
        return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def coco_scores(
    drawn: Sequence[Boxes],
    found: Sequence[Boxes],
    sizes: Sequence[tuple[int, int]],
    classes: Sequence[str],
) -> CocoScores:
    """Score boxes by pycocotools.

    Args:
        drawn: The truth, per image.
        found: Boxes with scores, per image.
        sizes: (height, width) of the images.
        classes: Names of the class ids.
    """
    from pycocotools.cocoeval import COCOeval

    images = [
        {"id": number, "height": height, "width": width}
        for number, (height, width) in enumerate(sizes)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth, guess = (_coco(images, boxes, classes) for boxes in (drawn, found))
        run = COCOeval(truth, guess, "bbox")
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][:, :, :, 0, -1].astype(float)  # (T, 101, K)
    precision[precision < 0] = np.nan
    none = np.isnan(precision).all(axis=(0, 1))
    filled = np.where(none, 0.0, precision)
    ap50, ap = (np.where(none, np.nan, part) for part in (filled[0].mean(0), filled.mean((0, 1))))
    per_class = [
        _matches(run.evalImgs[k * 4 * len(images) : (k * 4 + 1) * len(images)])
        for k in range(len(classes))
    ]
    return CocoScores(ap50, ap, per_class)


def score(
    drawn: Sequence[Boxes],
    found: Sequence[Boxes],
    sizes: Sequence[tuple[int, int]],
    classes: Sequence[str],
    groups: Sequence[Hashable],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return AP50 with intervals and AP, of every class and their means.

    Args:
        drawn: The truth, per image.
        found: Boxes with scores, per image.
        sizes: (height, width) of the images.
        classes: Names of the class ids.
        groups: What is resampled as one (patients), one per image.
        resamples: Of the groups.
        seed: Of the resamples.
    """
    scores = coco_scores(drawn, found, sizes, classes)
    places = np.arange(len(drawn))

    def interval(chosen: Sequence[_Matches]) -> dict[str, float | None]:
        def statistic(images: np.ndarray) -> float:
            weights = np.bincount(images, minlength=len(drawn))
            values = [average_precision(m.right, m.image, m.drawn, weights) for m in chosen]
            known = [value for value in values if value == value]
            return float(np.mean(known)) if known else float("nan")

        result = bootstrap(statistic, [places], groups, count=resamples, seed=seed)
        return {k: None if v != v else float(v) for k, v in result._asdict().items()}

    counts = np.bincount(np.concatenate([b.labels for b in drawn]), minlength=len(classes))
    return {
        "ap50": interval(scores.matches),
        "ap": _plain(scores.mean("ap")),
        "classes": {
            name: {
                "boxes": int(counts[k]),
                "ap50": interval([scores.matches[k]]),
                "ap": _plain(scores.ap[k]),
            }
            for k, name in enumerate(classes)
        },
    }


def average_precision(
    right: np.ndarray, image: np.ndarray, drawn: np.ndarray, weights: np.ndarray
) -> float:
    """Return COCO's average precision at 101 recalls, of images that count several times or never.

    Args:
        right: bool (D,), whether each box found is right, the surest first.
        image: int (D,), the image of each.
        drawn: int (I,), boxes drawn in each image.
        weights: int (I,), how often each image counts.
    """
    total = float((drawn * weights).sum())
    if not total:
        return float("nan")
    times = weights[image]
    hits, misses = np.cumsum(times * right), np.cumsum(times * ~right)
    precision = hits / np.maximum(hits + misses, np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(hits / total, _RECALLS, side="left")
    reached = at < len(precision)
    return float(precision[at[reached]].sum() / len(_RECALLS))


def _coco(images: list[dict], boxes: Sequence[Boxes], classes: Sequence[str]) -> Any:
    from pycocotools.coco import COCO

    annotations = []
    for number, one in enumerate(boxes):
        scores = np.ones(len(one)) if one.scores is None else one.scores
        for (x0, y0, x1, y1), label, value in zip(
            one.corners.tolist(), one.labels.tolist(), scores.tolist(), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "score": value,
                }
            )
    coco = COCO()
    coco.dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for k, name in enumerate(classes)],
    }
    coco.createIndex()
    return coco


def _matches(entries: Sequence[dict | None]) -> _Matches:
    """Take apart what COCOeval found of one class in every image, all sizes of boxes."""
    scores, right, image = [np.zeros(0)], [np.zeros(0, bool)], [np.zeros(0, np.int64)]
    drawn = np.zeros(len(entries), np.int64)
    for number, entry in enumerate(entries):
        if entry is None:
            continue
        drawn[number] = len(entry["gtIds"])
        scores.append(np.asarray(entry["dtScores"]))
        right.append(np.asarray(entry["dtMatches"])[0] > 0)
        image.append(np.full(len(entry["dtScores"]), number))
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    return _Matches(np.concatenate(right)[order], np.concatenate(image)[order], drawn)


def _plain(value: float) -> float | None:
    return None if value != value else float(value)
