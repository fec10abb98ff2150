"""Scores of masks: overlap and distances, per image or volume, with intervals over patients."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from crossband.medical.cases import ImageCase, ScanCase, fitted
from crossband.medical.data.masks import MaskClasses
from crossband.medical.data.splits import patient_key
from crossband.medical.data.views import check_aspect
from crossband.medical.privacy import Names
from crossband.medical.scoring import text
from crossband.medical.segmenter import Segmenter
from crossband.shared.cli.output import format_table
from crossband.shared.errors import DataError
from crossband.shared.metrics.ranking import bootstrap

OVERLAPS = ("dice", "iou")
DISTANCES = ("hd95", "surface_dice")
TITLES = {"dice": "Dice", "iou": "IoU", "hd95": "HD95", "surface_dice": "surface Dice"}


@dataclass(frozen=True)
class Distances:
    """Whether and how distances between outlines are taken.

    Attributes:
        wanted: Whether at all.
        tolerance: Of the surface Dice, in mm where the spacing is known, else in pixels.
    """

    wanted: bool = True
    tolerance: float = 2.0


def explanation(distances: Distances, volumes: bool) -> str:
    """Return what the numbers mean."""
    what = "volume (all its slices together, at the file's own resolution)"
    what = what if volumes else "image at its own size"
    unit = "mm (pixels where the file tells no spacing)" if volumes else "pixels"
    found = (
        f"Dice and IoU of every {what}, mean over them; one without a class and without a "
        "prediction of it is left out for that class. "
    )
    if distances.wanted:
        found += (
            f"HD95: the larger one of the 95th percentiles of both outlines' distances, in {unit}, "
            "of those that have the class both labelled and predicted. Surface Dice: part of both "
            f"outlines within {distances.tolerance:g} {unit} of the other one. "
        )
    return f"{found}Intervals of 95 % from resampling patients."


def compare(
    found: np.ndarray,
    truth: np.ndarray,
    classes: int,
    distances: Distances,
    spacing: Sequence[float] | None = None,
) -> dict[str, list[float]]:
    """Return each score for classes 1 to K - 1; NaN where it is not defined.

    Args:
        found: Class ids, (H, W) or (X, Y, Z).
        truth: Class ids of the same shape.
        classes: K.
        distances: Whether and how distances are taken.
        spacing: Distance of voxels along each axis; default: 1.
    """
    scores: dict[str, list[float]] = {name: [] for name in OVERLAPS}
    if distances.wanted:
        scores |= {name: [] for name in DISTANCES}
    for number in range(1, classes):
        one, two = found == number, truth == number
        sums, both = int(one.sum()) + int(two.sum()), int((one & two).sum())
        scores["dice"].append(2 * both / sums if sums else np.nan)
        scores["iou"].append(both / (sums - both) if sums else np.nan)
        if distances.wanted:
            far, near = _distances(one, two, distances.tolerance, spacing)
            scores["hd95"].append(far)
            scores["surface_dice"].append(near)
    return scores


def _distances(
    one: np.ndarray, two: np.ndarray, tolerance: float, spacing: Sequence[float] | None
) -> tuple[float, float]:
    """Return HD95 and surface Dice, by MONAI, of what both masks cover and a margin."""
    if not one.any() and not two.any():
        return np.nan, np.nan
    if not one.any() or not two.any():
        return np.nan, 0.0
    window = _window(one | two)
    pair = [torch.from_numpy(mask[window])[None, None] for mask in (one, two)]
    steps = list(spacing) if spacing else [1.0] * one.ndim
    with warnings.catch_warnings():  # MONAI warns of what it does itself
        warnings.simplefilter("ignore", FutureWarning)
        far, near = _by_monai(pair, tolerance, steps)
    return far, near


def _by_monai(
    pair: list[torch.Tensor], tolerance: float, steps: list[float]
) -> tuple[float, float]:
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    far = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=steps)
    near = compute_surface_dice(*pair, [tolerance], include_background=True, spacing=steps)
    return float(far), float(near)


def _window(mask: np.ndarray) -> tuple[slice, ...]:
    """Return what holds a mask, with a margin of one."""
    found = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        places = np.flatnonzero(mask.any(others))
        found.append(slice(max(0, int(places[0]) - 1), int(places[-1]) + 2))
    return tuple(found)


def score_masks(
    segmenter: Segmenter,
    cases: Iterable[ImageCase | ScanCase],
    classes: MaskClasses,
    names: Names,
    *,
    distances: Distances | None = None,
    resamples: int = 1000,
    seed: int = 0,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Return scores per class with intervals, a row per image, and what could not be read.

    Args:
        segmenter: Gives class ids.
        cases: Images or volumes.
        classes: Of the masks.
        names: What images are called.
        distances: Whether and how distances are taken; default: not.
        resamples: Of the patients.
        seed: Of the resampling.
        batch_size: Slices of a volume at a time.

    Raises:
        DataError: nothing can be scored.
    """
    distances = distances or Distances(False)
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for case in cases:
        record = case.record
        try:
            found, truth = case.found(segmenter, batch_size), case.truth(classes)
            if found.shape != truth.shape:
                check_aspect(record, found.shape, truth.shape)
                found = fitted(found, truth.shape)
        except DataError as error:
            paths = (record.path, record.mask, *record.more_masks, *record.sequences)
            problems.append(names.error(error, *paths))
            continue
        scores = compare(found, truth, len(classes), distances, case.spacing)
        keyed = {
            name: dict(zip(classes.names[1:], values, strict=True))
            for name, values in scores.items()
        }
        rows.append({"image": record, **keyed})
    if not rows:
        raise DataError(f"None of the {len(problems)} images can be scored: {problems[0]}")
    return {**summary(rows, classes.names[1:], resamples, seed), "rows": rows, "left_out": problems}


def summary(
    rows: Sequence[Mapping[str, Any]], classes: Sequence[str], resamples: int, seed: int
) -> dict[str, Any]:
    """Return means with intervals: of all classes, and of each with its median."""
    groups = [patient_key(row["image"]) for row in rows]
    kinds = [name for name in TITLES if name in rows[0]]

    def interval(column: np.ndarray) -> dict[str, float | None]:
        found = bootstrap(_mean, [column], groups, count=resamples, seed=seed)
        return {k: None if np.isnan(v) else float(v) for k, v in found._asdict().items()}

    found: dict[str, Any] = {"classes": {name: {} for name in classes}}
    for kind in kinds:
        values = np.array([[row[kind][name] for name in classes] for row in rows], float)
        known = ~np.isnan(values)
        sums, counts = np.where(known, values, 0).sum(1), known.sum(1)
        found[kind] = interval(np.where(counts > 0, sums / np.maximum(counts, 1), np.nan))
        for k, name in enumerate(classes):
            column = values[:, k]
            own = column[~np.isnan(column)]
            median = float(np.median(own)) if len(own) else None
            entry = interval(column) | {"median": median, "counted": len(own)}
            found["classes"][name][kind] = entry
    return found


def scores_text(scores: dict[str, Any]) -> str:
    """Return the scores as a table for a terminal."""
    rows = table_rows(scores)
    return format_table(list(rows[0]), [tuple(row.values()) for row in rows])


def table_rows(scores: dict[str, Any]) -> list[dict[str, str]]:
    """Return a row per class, and one of their mean where there are several."""
    kinds = [kind for kind in TITLES if kind in scores]
    entries = dict(scores["classes"])
    if len(entries) > 1:
        entries["mean"] = {kind: scores[kind] for kind in kinds}
    rows = []
    for name, own in entries.items():
        row = {"class": name}
        for kind in kinds:
            row[TITLES[kind]] = text(own[kind])
            if kind == "dice":
                median = own[kind].get("median")
                row["median"] = "-" if median is None else f"{median:.3f}"
        rows.append(row)
    return rows


def public(scores: dict[str, Any], names: Names) -> dict[str, Any]:
    """Return scores with images called as they may be called; what is not defined is None."""
    rows = [
        {
            name: names.image(value.path, value.name) if name == "image" else _defined(value)
            for name, value in row.items()
        }
        for row in scores["rows"]
    ]
    return {**scores, "rows": rows}


def _defined(values: Mapping[str, float]) -> dict[str, float | None]:
    return {k: None if np.isnan(v) else float(v) for k, v in values.items()}


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
