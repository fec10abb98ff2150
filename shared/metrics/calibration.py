"""Whether probabilities mean what they say, and the temperature that makes them.

Labels are 1 (present), 0 (absent) or NaN (not known); what is not known is left out everywhere.
Of classes that exclude each other, give the probability of the likeliest class and whether it was
right (Guo et al. 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_BOUNDS = (0.05, 20.0)  # of the temperature


class ReliabilityRow(NamedTuple):
    """One bin of a reliability plot; the shares are NaN where it is empty."""

    low: float
    high: float
    probability: float  # mean
    positive: float  # share
    count: int


def reliability(probability: ArrayLike, label: ArrayLike, bins: int = 15) -> list[ReliabilityRow]:
    """Return the bins of a reliability plot, of equal width, [low, high); the last holds 1 too.

    Args:
        probability: Any shape, 0 to 1.
        label: The same shape.
        bins: Number of bins.
    """
    probability, label = _known(probability, label)
    place = np.minimum((probability * bins).astype(np.int64), bins - 1)
    counts = np.bincount(place, minlength=bins)
    sums = (np.bincount(place, weights=of, minlength=bins) for of in (probability, label))
    with np.errstate(invalid="ignore"):
        means, shares = (of / counts for of in sums)
    return [
        ReliabilityRow(i / bins, (i + 1) / bins, float(means[i]), float(shares[i]), int(counts[i]))
        for i in range(bins)
    ]


def expected_calibration_error(probability: ArrayLike, label: ArrayLike, bins: int = 15) -> float:
    """Return the mean distance of probability and share over bins of equal width, by their items.

    `sum_b n_b / n |mean probability_b - share positive_b|` (Naeini et al. 2015); NaN of nothing.

    Args:
        probability: Any shape, 0 to 1.
        label: The same shape.
        bins: Number of bins.
    """
    rows = [row for row in reliability(probability, label, bins) if row.count]
    total = sum(row.count for row in rows)
    if not total:
        return math.nan
    return sum(row.count * abs(row.probability - row.positive) for row in rows) / total


def brier(probability: ArrayLike, label: ArrayLike) -> float:
    """Return the mean squared difference of probability and label; NaN of nothing.

    Args:
        probability: Any shape, 0 to 1.
        label: The same shape.
    """
    probability, label = _known(probability, label)
    return float(np.square(probability - label).mean()) if len(label) else math.nan


def fit_temperature(logits: ArrayLike, labels: ArrayLike, exclusive: bool) -> float:
    """Return the temperature T for which `logits / T` have the largest likelihood.

    The negative log-likelihood is convex in 1 / T, so the root of its slope is found by bisection.
    Where it has none between 0.05 and 20 (labels that are separated without error, or logits that
    say the opposite) the nearer bound is returned, and 1 where nothing is known or all logits of
    each item are equal.

    Args:
        logits: (N, K).
        labels: (N, K) of findings; (N,) class ids if `exclusive`, negative or NaN where not known.
        exclusive: Classes exclude each other: softmax, else sigmoids.
    """
    logits, labels = np.asarray(logits, float), np.asarray(labels, float)
    slope = _softmax_slope(logits, labels) if exclusive else _sigmoid_slope(logits, labels)
    low, high = 1 / _BOUNDS[1], 1 / _BOUNDS[0]
    at_low, at_high = slope(low), slope(high)
    if at_low == at_high:
        return 1.0
    if at_high <= 0:
        return _BOUNDS[0]
    if at_low >= 0:
        return _BOUNDS[1]
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / math.sqrt(low * high)


def _sigmoid_slope(logits: np.ndarray, labels: np.ndarray) -> Callable[[float], float]:
    """Return the slope of the negative log-likelihood over 1 / T, as a function of 1 / T."""
    z, label = _known(logits, labels)

    def slope(inverse: float) -> float:
        return float(((0.5 + 0.5 * np.tanh(0.5 * inverse * z) - label) * z).sum())

    return slope


def _softmax_slope(logits: np.ndarray, labels: np.ndarray) -> Callable[[float], float]:
    known = labels >= 0  # false for NaN
    z, label = logits[known], labels[known].astype(np.int64)
    z = z - z.max(1, keepdims=True)
    truth = np.take_along_axis(z, label[:, None], 1)[:, 0]

    def slope(inverse: float) -> float:
        weight = np.exp(inverse * z)
        return float(((weight * z).sum(1) / weight.sum(1) - truth).sum())

    return slope


def _known(values: ArrayLike, label: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    values, label = np.asarray(values, float), np.asarray(label, float)
    known = ~np.isnan(label)
    return values[known], label[known]
