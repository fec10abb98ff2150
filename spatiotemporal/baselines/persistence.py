"""Persistence: what was seen last stays."""

from __future__ import annotations

import numpy as np

from crossband.spatiotemporal.data.grid import Grid
from crossband.spatiotemporal.data.windows import Part


class Persistence:
    """Repeats the last observed value of every cell.

    A cell that was not observed at all gets the mean of what the variable's other cells showed.
    """

    name = "persistence"

    def __init__(self) -> None:
        """Start without a horizon."""
        self.horizon = 0

    def fit(self, grid: Grid, part: Part, history: int, horizon: int) -> None:
        """Take the horizon; there is nothing to learn."""
        self.horizon = horizon

    def predict(self, frames: np.ndarray, origins: np.ndarray) -> np.ndarray:
        """Forecast (B, T', C, H, W) from (B, T, C, H, W)."""
        seen = np.isfinite(frames)
        newest = frames.shape[1] - 1 - seen[:, ::-1].argmax(axis=1, keepdims=True)
        last = np.take_along_axis(frames, newest, axis=1)
        total = np.where(seen, frames, 0.0).sum(axis=(1, 3, 4), keepdims=True, dtype=np.float64)
        mean = total / np.maximum(seen.sum(axis=(1, 3, 4), keepdims=True), 1)
        last = np.where(np.isfinite(last), last, mean).astype(np.float32)
        return np.repeat(last, self.horizon, axis=1)
