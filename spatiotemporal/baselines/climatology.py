"""Climatology: what is normal at that place and hour."""

from __future__ import annotations

import numpy as np

from crossband.spatiotemporal.data.grid import Grid
from crossband.spatiotemporal.data.normalisation import Climatology
from crossband.spatiotemporal.data.windows import Part


class HourOfDayClimatology:
    """Forecasts the training part's mean of each cell at each hour of the day.

    With frames a day or more apart it is the mean of each cell.
    """

    name = "climatology"

    def __init__(self) -> None:
        """Start unfitted."""
        self.climatology: Climatology | None = None
        self.horizon = 0

    def fit(self, grid: Grid, part: Part, history: int, horizon: int) -> None:
        """Average the frames of the part."""
        self.climatology = Climatology.fit(grid, part.start, part.stop)
        self.horizon = horizon

    def predict(self, frames: np.ndarray, origins: np.ndarray) -> np.ndarray:
        """Forecast (B, T', C, H, W); the frames are not looked at."""
        times = origins[:, None] + np.arange(1, self.horizon + 1) * self.climatology.spacing
        fields = self.climatology.at(times.ravel())
        return fields.reshape(*times.shape, *fields.shape[1:])
