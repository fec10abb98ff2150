"""How well scores rank: AUROC, average precision, operating points, and intervals of them.

Labels are 1 (present), 0 (absent) or NaN (not known); what is not known is left out everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Statistic = Callable[..., float]


class Interval(NamedTuple):
    """A value and the bounds of its confidence interval; NaN where there is none."""

    value: float
    low: float
    high: float


def auroc(score: ArrayLike, label: ArrayLike) -> float:
    """Return the area under the ROC curve, ties counted as half; NaN where a value is missing.

    Args:
        score: (N,), higher for more likely; a NaN among those of known labels gives NaN.
        label: (N,).
    """
    absent, present = _counts(score, label)
    below = np.cumsum(absent) - 0.5 * absent
    return _ratio(float(below @ present), float(absent.sum()) * float(present.sum()))


def average_precision(score: ArrayLike, label: ArrayLike) -> float:
    """Return `sum_n (R_n - R_{n-1}) P_n` over the thresholds; NaN where a value is missing.

    Args:
        score: (N,), higher for more likely; a NaN among those of known labels gives NaN.
        label: (N,).
    """
    absent, present = (counts[::-1] for counts in _counts(score, label))
    if not absent.any():
        return math.nan
    hits = np.cumsum(present)
    precision = hits / np.maximum(1, hits + np.cumsum(absent))
    return _ratio(float(precision @ present), float(present.sum()))


def mean_auroc(score: ArrayLike, label: ArrayLike) -> float:
    """Return the mean AUROC over the findings that have both values; NaN if none has.

    Args:
        score: (N, K).
        label: (N, K).
    """
    score, label = np.asarray(score), np.asarray(label)
    found = [auroc(score[:, k], label[:, k]) for k in range(label.shape[1])]
    found = [value for value in found if not math.isnan(value)]
    return float(np.mean(found)) if found else math.nan


def auroc_interval(
    score: ArrayLike,
    label: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    *,
    count: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the AUROC with its interval.

    Where every item is a group of its own the interval is DeLong's (DeLong et al. 1988), from the
    variance of the placements and a normal distribution, cut to 0 to 1: that of a perfect ranking
    has no width. Otherwise whole groups are resampled (`bootstrap`).

    Args:
        score: (N,).
        label: (N,).
        groups: What belongs together (patients), one per item; None is a group of its own.
        count: Resamples.
        level: Of confidence.
        seed: Of the resamples.
    """
    score, label = np.asarray(score), np.asarray(label, float)
    codes = _group_codes(groups, len(label))
    if codes.max(initial=-1) + 1 < len(label):
        return bootstrap(auroc, (score, label), groups, count=count, level=level, seed=seed)
    value = auroc(score, label)
    error = math.sqrt(_delong_variance(score, label))
    reach = NormalDist().inv_cdf(0.5 + level / 2) * error
    if math.isnan(reach):
        return Interval(value, math.nan, math.nan)
    return Interval(value, max(0.0, value - reach), min(1.0, value + reach))


def bootstrap(
    statistic: Statistic,
    arrays: Sequence[ArrayLike],
    groups: Sequence[Hashable] | None = None,
    *,
    count: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return a statistic and its percentile interval over resampled groups.

    Resamples for which the statistic is NaN are left out; of a single group there is no interval.

    Args:
        statistic: Called with the arrays; must not depend on the order of items.
        arrays: Of equal length (N, ...).
        groups: What is resampled as one (patients), one per item; None is a group of its own.
        count: Resamples.
        level: Of confidence.
        seed: Of the resamples.
    """
    arrays = [np.asarray(array) for array in arrays]
    value = float(statistic(*arrays))
    if statistic in _OF_RANKS:  # sorted once, not at every resample
        arrays = [*(_ranks(array) for array in arrays[:-1]), arrays[-1]]
    draws = [float(statistic(*drawn)) for drawn in _resamples(arrays, groups, count, seed)]
    return _percentiles(value, draws, level)


def paired_difference(
    statistic: Statistic,
    a: ArrayLike,
    b: ArrayLike,
    label: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    *,
    count: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return `statistic(a, label) - statistic(b, label)` of two models on the same items.

    Args:
        statistic: `auroc`, `average_precision`, `mean_auroc` or any of scores and labels.
        a: Scores of one model.
        b: Scores of the other.
        label: Labels of both.
        groups: As in `bootstrap`.
        count: Resamples.
        level: Of confidence.
        seed: Of the resamples.
    """
    a, b, label = np.asarray(a), np.asarray(b), np.asarray(label)

    def difference(a: np.ndarray, b: np.ndarray, label: np.ndarray) -> float:
        return statistic(a, label) - statistic(b, label)

    value = difference(a, b, label)
    if statistic in _OF_RANKS:
        a, b = _ranks(a), _ranks(b)
    draws = [difference(*drawn) for drawn in _resamples([a, b, label], groups, count, seed)]
    return _percentiles(value, draws, level)


def operating_points(probability: ArrayLike, label: ArrayLike) -> dict[str, dict[str, float]]:
    """Return the usual thresholds and what they give; all NaN where a value is missing.

    `youden` has the largest sensitivity + specificity (of several the highest threshold),
    `specificity_95` the largest sensitivity at a specificity of 95 % or more, `sensitivity_95` the
    largest specificity at a sensitivity of 95 % or more. Choose on validation data, then see what
    a threshold gives elsewhere by `at_threshold`.

    Args:
        probability: (N,), 0 to 1.
        label: (N,).
    """
    probability, label = _known(probability, label)
    values, ranks = np.unique(probability, return_inverse=True)
    absent, present = _counts(ranks, label)
    if not absent.any() or not present.any() or np.isnan(values).any():
        nothing = at_threshold(probability, label, math.nan)
        return {name: dict(nothing) for name in ("youden", "specificity_95", "sensitivity_95")}
    # Ascending thresholds; the last is above everything, so nothing is called positive.
    thresholds = np.append(values, np.nextafter(values[-1], np.inf))
    sensitivity = (present.sum() - np.append(0, np.cumsum(present))) / present.sum()
    specificity = np.append(0, np.cumsum(absent)) / absent.sum()
    last = len(thresholds) - 1
    chosen = {
        "youden": last - int(np.argmax((sensitivity + specificity)[::-1])),
        "specificity_95": int(np.argmax(specificity >= 0.95)),
        "sensitivity_95": last - int(np.argmax(sensitivity[::-1] >= 0.95)),
    }
    return {
        name: at_threshold(probability, label, float(thresholds[index]))
        for name, index in chosen.items()
    }


def at_threshold(probability: ArrayLike, label: ArrayLike, threshold: float) -> dict[str, float]:
    """Return threshold, sensitivity, specificity, ppv and npv of `probability >= threshold`.

    A share of nothing is NaN, and so is everything at a threshold of NaN.

    Args:
        probability: (N,).
        label: (N,).
        threshold: In the units of `probability`.
    """
    probability, label = _known(probability, label)
    found, truth = probability >= threshold, label == 1
    right, wrong = float((found & truth).sum()), float((found & ~truth).sum())
    missed, spared = float((~found & truth).sum()), float((~found & ~truth).sum())
    shares = {
        "sensitivity": _ratio(right, right + missed),
        "specificity": _ratio(spared, spared + wrong),
        "ppv": _ratio(right, right + wrong),
        "npv": _ratio(spared, spared + missed),
    }
    if math.isnan(threshold):
        shares = dict.fromkeys(shares, math.nan)
    return {"threshold": threshold, **shares}


_OF_RANKS = (auroc, average_precision, mean_auroc)  # depend on the order of scores alone


def _known(score: ArrayLike, label: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    score, label = np.asarray(score), np.asarray(label, float)
    known = ~np.isnan(label)
    return score[known], label[known]


def _ranks(score: np.ndarray) -> np.ndarray:
    """Return scores as dense ranks per column, uint32, which `_counts` takes as they are.

    Scores that hold NaN are returned unchanged.
    """
    if score.dtype == np.uint32 or np.isnan(score).any():
        return score
    columns = score.reshape(len(score), -1).T
    ranks = [np.unique(column, return_inverse=True)[1].ravel() for column in columns]
    return np.stack(ranks, 1).reshape(score.shape).astype(np.uint32)


def _counts(score: ArrayLike, label: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return how many absent and present items have each score, ascending; zeros for NaN scores."""
    score, label = _known(score, label)
    if not len(score) or (score.dtype.kind == "f" and np.isnan(score).any()):
        return np.zeros(1, np.int64), np.zeros(1, np.int64)
    ranks = _ranks(score)
    size, present = int(ranks.max()) + 1, label == 1
    return np.bincount(ranks[~present], minlength=size), np.bincount(ranks[present], minlength=size)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _delong_variance(score: np.ndarray, label: np.ndarray) -> float:
    """Return the variance of the AUROC from its placements; NaN for one item of either value."""
    score, label = _known(score, label)
    absent, present = (counts.astype(float) for counts in _counts(score, label))
    m, n = present.sum(), absent.sum()
    if m < 2 or n < 2:
        return math.nan
    # Placement of a positive: share of negatives below it; of a negative: positives above it.
    of_present = (np.cumsum(absent) - 0.5 * absent) / n
    of_absent = 1 - (np.cumsum(present) - 0.5 * present) / m
    return _variance(of_present, present) / m + _variance(of_absent, absent) / n


def _variance(values: np.ndarray, counts: np.ndarray) -> float:
    """Return the unbiased variance of values that occur so many times."""
    total = counts.sum()
    mean = values @ counts / total
    return float(np.square(values - mean) @ counts / (total - 1))


def _group_codes(groups: Sequence[Hashable] | None, items: int) -> np.ndarray:
    """Return a number per item, 0 to groups - 1; None is a group of its own."""
    if groups is None:
        return np.arange(items)
    if len(groups) != items:
        raise ValueError(f"{len(groups)} groups for {items} items")
    known: dict[Hashable, int] = {}
    keys = (("", i) if group is None else (group,) for i, group in enumerate(groups))
    return np.array([known.setdefault(key, len(known)) for key in keys], np.int64)


def _resamples(
    arrays: Sequence[np.ndarray], groups: Sequence[Hashable] | None, count: int, seed: int
) -> Iterator[list[np.ndarray]]:
    """Yield the arrays of each resample; nothing where there are fewer than two groups."""
    items = len(arrays[0])
    codes = _group_codes(groups, items)
    total = int(codes.max(initial=-1)) + 1
    random = np.random.default_rng(seed)
    for _ in range(count if total > 1 else 0):
        times = np.bincount(random.integers(0, total, total), minlength=total)
        index = np.repeat(np.arange(items), times[codes])
        yield [array[index] for array in arrays]


def _percentiles(value: float, draws: Sequence[float], level: float) -> Interval:
    draws = np.array(draws, float)
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(value, float(low), float(high))
