"""What every rival does."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from crossband.spatiotemporal.data.grid import Grid
from crossband.spatiotemporal.data.windows import Part


class Baseline(Protocol):
    """A forecast without a network, fitted on the training part only."""

    name: str

    def fit(self, grid: Grid, part: Part, history: int, horizon: int) -> None:
        """Fit on the frames of a part, for windows of `history` + `horizon` frames."""
        ...

    def predict(self, frames: np.ndarray, origins: np.ndarray) -> np.ndarray:
        """Forecast.

        Args:
            frames: (B, T, C, H, W) in physical units, NaN where not observed.
            origins: (B,) datetime64, times of the last frames.

        Returns:
            (B, T', C, H, W) float32 in physical units, finite everywhere.
        """
        ...
