"""Scaling and the hour-of-day climatology, fitted on the training part only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from crossband.shared.errors import DataError
from crossband.spatiotemporal.data.grid import Grid

Array = TypeVar("Array", np.ndarray, Tensor)
DAY = np.timedelta64(1, "D").astype("timedelta64[ns]")


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per variable, over time and grid (OpenSTL's convention)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def fit(cls, grid: Grid, start: int, stop: int) -> Normalisation:
        """Fit on frames `start` to `stop` - 1, chunk by chunk, leaving out what is not observed.

        Raises:
            DataError: a variable without any value, or without any variation.
        """
        count = np.zeros(grid.shape[0])
        total, square = np.zeros(grid.shape[0]), np.zeros(grid.shape[0])
        shift: np.ndarray | None = None
        for _, frames in grid.chunks(start, stop):
            values = frames.astype(np.float64)
            if shift is None:  # sums of squares around a typical value keep their digits
                seen = np.isfinite(values).sum(axis=(0, 2, 3))
                shift = np.nansum(values, axis=(0, 2, 3)) / np.maximum(seen, 1)
            values -= shift[:, None, None]
            count += np.isfinite(values).sum(axis=(0, 2, 3))
            total += np.nansum(values, axis=(0, 2, 3))
            square += np.nansum(values**2, axis=(0, 2, 3))
        for name, n in zip(grid.variables, count, strict=True):
            if n == 0:
                raise DataError(
                    f"'{name}' has no value at all in the training part (all NaN or masked): "
                    "look at it with `data check`, or leave it out of --data.variables."
                )
        mean = total / count
        variance = np.maximum(square / count - mean**2, 0.0)
        for name, value, v in zip(grid.variables, mean + shift, variance, strict=True):
            if v <= (1e-6 * abs(value)) ** 2:
                raise DataError(
                    f"'{name}' is constant ({value:g}) in the training part, so there is nothing "
                    "to forecast: leave it out of --data.variables."
                )
        return cls(tuple(map(float, mean + shift)), tuple(map(float, np.sqrt(variance))))

    def apply(self, values: Array) -> Array:
        """Scale (..., C, H, W)."""
        return (values - self._like(values, self.mean)) / self._like(values, self.std)

    def invert(self, values: Array) -> Array:
        """Bring scaled values (..., C, H, W) back to physical units."""
        return values * self._like(values, self.std) + self._like(values, self.mean)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for a checkpoint."""
        return {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Normalisation:
        """Read what `to_dict` wrote."""
        return cls(tuple(values["mean"]), tuple(values["std"]))

    @staticmethod
    def _like(values: Array, numbers: tuple[float, ...]) -> Array:
        shaped = np.asarray(numbers, np.float32)[:, None, None]
        return values.new_tensor(shaped) if isinstance(values, Tensor) else shaped


@dataclass(frozen=True)
class Climatology:
    """Mean field for each phase of the day, per cell.

    With times a day or more apart (or that do not divide the day) there is one phase.

    Attributes:
        total: Sum of the observed values (P, C, H, W).
        count: How many there were (P, C, H, W).
        fallback: Mean per variable, for cells never observed at a phase (C,).
        spacing: Distance of times.
    """

    total: np.ndarray
    count: np.ndarray
    fallback: np.ndarray
    spacing: np.timedelta64

    @classmethod
    def fit(cls, grid: Grid, start: int, stop: int) -> Climatology:
        """Fit on frames `start` to `stop` - 1."""
        phases = _phases(grid.spacing)
        total = np.zeros((phases, *grid.shape))
        count = np.zeros((phases, *grid.shape))
        for first, frames in grid.chunks(start, stop):
            phase = _phase_of(grid.times[first : first + len(frames)], grid.spacing)
            member = (phase == np.arange(phases)[:, None]).astype(np.float64)  # (P, n)
            total += np.tensordot(member, np.nan_to_num(frames), axes=1)
            count += np.tensordot(member, np.isfinite(frames), axes=1)
        sums, counts = total.sum(axis=(0, 2, 3)), count.sum(axis=(0, 2, 3))
        return cls(total, count, sums / np.maximum(counts, 1), grid.spacing)

    def at(self, times: np.ndarray, without: tuple[np.ndarray, np.ndarray] | None = None):
        """Return the climatology (n, C, H, W), float32.

        Args:
            times: (n,) datetime64.
            without: Times (m,) and frames (m, C, H, W) to leave out: a training window must not
                be told its own future through a mean that contains it.
        """
        phase = _phase_of(times, self.spacing)
        total, count = self.total[phase], self.count[phase]
        if without is not None:
            other = _phase_of(without[0], self.spacing)
            same = (phase[:, None] == other).astype(np.float64)  # (n, m)
            total = total - np.tensordot(same, np.nan_to_num(without[1]), axes=1)
            count = count - np.tensordot(same, np.isfinite(without[1]).astype(np.float64), axes=1)
        mean = np.where(count > 0, total / np.maximum(count, 1), self.fallback[:, None, None])
        return mean.astype(np.float32)

    def fields(self) -> np.ndarray:
        """Return all phases (P, C, H, W), float32."""
        midnight = np.datetime64("2000-01-01", "ns")
        return self.at(midnight + np.arange(len(self.total)) * self.spacing)

    @classmethod
    def from_fields(cls, fields: np.ndarray, spacing: np.timedelta64) -> Climatology:
        """Build from what `fields` returned."""
        fallback = fields.mean(axis=(0, 2, 3))
        return cls(fields.astype(np.float64), np.ones(fields.shape), fallback, spacing)


def _phases(spacing: np.timedelta64) -> int:
    return int(DAY // spacing) if spacing < DAY and DAY % spacing == np.timedelta64(0) else 1


def _phase_of(times: np.ndarray, spacing: np.timedelta64) -> np.ndarray:
    """Return which phase of the day each time is in, from midnight UTC on."""
    phases = _phases(spacing)
    since_midnight = times.astype("datetime64[ns]") - times.astype("datetime64[D]")
    return (since_midnight // spacing) % phases
