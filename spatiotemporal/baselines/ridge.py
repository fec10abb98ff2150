"""Ridge regression on the last frames: the strongest simple rival.

Departures from the hour-of-day climatology are forecast from departures: those of the cell itself
in all frames seen, the newest ones averaged over the cell's surroundings and over the whole grid,
all variables together. One set of coefficients serves all cells; it may vary with the hour of the
origin. A training window's own days are left out of its climatology while the training part is
short, else the fit would learn that departures vanish.

The last fifth of the training part chooses, per variable, the strength and whether the
coefficients vary with the hour. Departures instead of absolute values, one set for all cells, the
surroundings and the leaving out were chosen once, on the validation days of the ERA5 pack.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import uniform_filter

from crossband.shared.errors import DataError
from crossband.spatiotemporal.data.grid import Grid
from crossband.spatiotemporal.data.normalisation import DAY, Climatology
from crossband.spatiotemporal.data.windows import LEAVE_OUT_BELOW_DAYS, Part, window_starts

# Penalty relative to the mean square of each feature.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Terms of the hour that the coefficients depend on: none but the constant, one or two harmonics.
HOUR_TERMS = (1, 3, 5)
DEFAULT_FORM = (1e-2, 1)  # where the training part is too short to choose
HOLDOUT = 0.2  # end of the training part, for choosing
SURROUNDINGS = (5, 15)  # cells, edge of the square averaged over
SURROUNDINGS_FRAMES = (0, 3)  # frames before the origin that are averaged
SAMPLES = 1_000_000  # cells times windows beyond which more change nothing but the time it takes
FEWEST_WINDOWS = 200


class Ridge:
    """Ridge regression in closed form, its strength chosen at the end of the training part."""

    name = "ridge"

    def __init__(self) -> None:
        """Start unfitted."""
        self.climatology: Climatology | None = None
        self.horizon = 0
        self.forms: tuple[tuple[float, int], ...] = ()  # strength and hour terms, per variable
        self.coefficients = np.empty(0)  # (hour terms, features, T' C)

    def fit(self, grid: Grid, part: Part, history: int, horizon: int) -> None:
        """Accumulate the normal equations over the windows of the part, and solve them.

        Raises:
            DataError: no window lies in the part, or no cell is observed throughout one.
        """
        self.horizon = horizon
        self.climatology = Climatology.fit(grid, part.start, part.stop)
        starts, _ = window_starts(grid, part, history + horizon)
        cells = int(np.prod(grid.shape[1:]))
        most = max(FEWEST_WINDOWS, SAMPLES // cells)
        starts = starts[:: max(1, -(-len(starts) // most))]
        thinning = max(1, cells * len(starts) // SAMPLES)  # of the cells
        leave_out = (grid.times[part.stop - 1] - grid.times[part.start]) / DAY
        leave_out = leave_out < LEAVE_OUT_BELOW_DAYS
        boundary = part.stop - HOLDOUT * (part.stop - part.start)

        # Sums over windows before the boundary, across it and after it.
        sums: list[_Sums | None] = [None, None, None]
        for start in starts:
            stop = start + history + horizon
            times, frames = grid.times[start:stop], grid.read(start, stop)
            without = _own_days(grid, part, times) if leave_out else None
            departures = frames - self.climatology.at(times, without)
            features = _features(departures[:history]).reshape(-1, cells)[:, ::thinning]
            target = departures[history:].reshape(-1, cells)[:, ::thinning]
            seen = np.isfinite(target).all(axis=0)
            found = _Sums.of(features[:, seen], target[:, seen], _hour(times[history - 1]))
            index = 0 if stop <= boundary else 2 if start >= boundary else 1
            sums[index] = found if sums[index] is None else sums[index] + found
        kept = [s for s in sums if s is not None]
        total = sum(kept[1:], kept[0]) if kept else None
        if total is None or total.count == 0:
            raise DataError(
                f"The ridge regression found no window of {history} + {horizon} observed frames "
                f"from {part.first} to {part.last}: leave it out by --baselines persistence "
                "climatology."
            )
        variables, columns = grid.shape[0], np.arange(horizon * grid.shape[0])
        forms = [(strength, terms) for terms in HOUR_TERMS for strength in STRENGTHS]
        chosen = [DEFAULT_FORM] * variables
        if sums[0] is not None and sums[2] is not None and sums[0].count and sums[2].count:
            errors = [sums[2].error(sums[0].solve(*form), variables) for form in forms]
            chosen = [forms[i] for i in np.argmin(errors, axis=0)]
        self.forms = tuple(chosen)
        solutions = {form: total.solve(*form) for form in set(chosen)}
        solution = [solutions[chosen[c % variables]][:, c] for c in columns]
        self.coefficients = np.stack(solution, axis=1).reshape(HOUR_TERMS[-1], -1, len(columns))

    def predict(self, frames: np.ndarray, origins: np.ndarray) -> np.ndarray:
        """Forecast (B, T', C, H, W) from (B, T, C, H, W)."""
        history, spacing = frames.shape[1], self.climatology.spacing
        steps = np.arange(1 - history, self.horizon + 1) * spacing
        forecasts = []
        for window, origin in zip(frames, origins, strict=True):
            background = self.climatology.at(origin + steps)
            features = _features(window - background[:history])
            weights = np.tensordot(_hour(origin), self.coefficients, axes=1).astype(np.float32)
            departures = np.tensordot(weights.T, features, axes=1)
            ahead = background[history:]
            forecasts.append(departures.reshape(ahead.shape) + ahead)
        return np.stack(forecasts)


class _Sums:
    """Sums of products over samples: all that a linear regression needs of its data."""

    def __init__(
        self, gram: np.ndarray, moment: np.ndarray, square: np.ndarray, count: int
    ) -> None:
        self.gram, self.moment, self.square, self.count = gram, moment, square, count

    @classmethod
    def of(cls, features: np.ndarray, target: np.ndarray, hour: np.ndarray) -> _Sums:
        """Sum over the samples of one window: features (F, n), target (L, n), hour (K,).

        Regressors are all products of an hour term with a feature; within a window the hour is
        the same, so their sums are Kronecker products of small ones.
        """
        features, target = features.astype(np.float64), target.astype(np.float64)
        return cls(
            np.kron(np.outer(hour, hour), features @ features.T),
            np.kron(hour[:, None], features @ target.T),
            (target**2).sum(axis=1),
            target.shape[1],
        )

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.gram + other.gram,
            self.moment + other.moment,
            self.square + other.square,
            self.count + other.count,
        )

    def solve(self, strength: float, terms: int) -> np.ndarray:
        """Return coefficients (K F, L), zero beyond the first terms; the constant is free."""
        size = len(self.gram) // HOUR_TERMS[-1] * terms
        gram = self.gram[:size, :size]
        scale = np.diag(gram).copy()
        scale[scale <= 0] = self.count  # a feature that is always zero
        penalty = strength * scale
        penalty[0] = 0.0
        coefficients = np.zeros_like(self.moment)
        coefficients[:size] = np.linalg.solve(gram + np.diag(penalty), self.moment[:size])
        return coefficients

    def error(self, coefficients: np.ndarray, variables: int) -> np.ndarray:
        """Return the squared error of coefficients per variable, summed over leads."""
        cross = (coefficients * self.moment).sum(axis=0)
        own = (coefficients * (self.gram @ coefficients)).sum(axis=0)
        return (self.square - 2 * cross + own).reshape(-1, variables).sum(axis=0)


def _features(departures: np.ndarray) -> np.ndarray:
    """Return features (F, H, W) of departures (T, C, H, W), NaN where not observed.

    The constant comes first; missing values count as normal.
    """
    seen = np.isfinite(departures)
    filled = np.where(seen, departures, 0.0).astype(np.float32)
    last, last_seen = filled[-1], seen[-1]
    mean = last.sum(axis=(1, 2)) / np.maximum(last_seen.sum(axis=(1, 2)), 1)
    parts = [
        np.ones((1, *last.shape[1:]), np.float32),
        filled.reshape(-1, *last.shape[1:]),
        np.broadcast_to(mean[:, None, None], last.shape),
    ]
    for before in SURROUNDINGS_FRAMES:
        if before >= len(filled):
            continue
        for edge in SURROUNDINGS:
            size = (1, edge, edge)
            share = uniform_filter(seen[-1 - before].astype(np.float32), size, mode="nearest")
            total = uniform_filter(filled[-1 - before], size, mode="nearest")
            parts.append(np.where(share > 1e-3, total / np.maximum(share, 1e-3), 0.0))
    return np.concatenate(parts).astype(np.float32)


def _hour(time: np.datetime64) -> np.ndarray:
    """Return 1 and the harmonics of the time of day."""
    angle = 2 * np.pi * ((time - time.astype("datetime64[D]")) / DAY)
    terms = [f(k * angle) for k in range(1, HOUR_TERMS[-1] // 2 + 1) for f in (np.sin, np.cos)]
    return np.array([1.0, *terms])


def _own_days(grid: Grid, part: Part, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return times and frames of a window's days and one day on each side, within the part."""
    begin = np.searchsorted(grid.times, times[0].astype("datetime64[D]") - DAY)
    end = np.searchsorted(grid.times, times[-1].astype("datetime64[D]") + 2 * DAY)
    begin, end = max(int(begin), part.start), min(int(end), part.stop)
    return grid.times[begin:end], grid.read(begin, end)
