"""Parts of the time axis, and the windows of history and future frames within them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from crossband.shared.errors import ConfigError, DataError
from crossband.spatiotemporal.data.fitting import Fit
from crossband.spatiotemporal.data.grid import Grid
from crossband.spatiotemporal.data.normalisation import DAY, Climatology, Normalisation

PARTS = ("train", "val", "test")
# With more training days than this, leaving a window's own days out changes its climatology by
# less than it costs to read them.
LEAVE_OUT_BELOW_DAYS = 200


@dataclass(frozen=True)
class Part:
    """Frames `start` to `stop` - 1 of a grid, with the first and last time in words."""

    start: int
    stop: int
    first: str
    last: str


def split_times(
    times: np.ndarray,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    dates: dict[str, Sequence[str]] | None = None,
) -> dict[str, Part]:
    """Split the time axis into train, val and test.

    A window belongs to a part only if its history and its future lie inside, so nothing leaks
    across a boundary.

    Args:
        times: (n,) datetime64, increasing.
        fractions: Lengths of the parts in time order, used where no dates are given.
        dates: First and last date per part, both included: `2019-03-20` reaches to the end of
            that day, `2019` to the end of the year. All three parts or none.

    Raises:
        ConfigError: fractions that do not add to 1, parts that overlap, dates that are not dates.
        DataError: a part without times.
    """
    given = {name: list(pair) for name, pair in (dates or {}).items() if pair}
    if given:
        if set(given) != set(PARTS):
            missing = ", ".join(f"--data.{n}" for n in PARTS if n not in given)
            raise ConfigError(f"Dates are needed for all three parts: add {missing}.")
        ranges = {name: between(times, *_pair(name, given[name])) for name in PARTS}
    else:
        if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
            raise ConfigError(
                f"--data.split {' '.join(map(str, fractions))} must be three parts that add to 1."
            )
        ends = np.round(np.cumsum(fractions) * len(times)).astype(int)
        ranges = dict(zip(PARTS, zip([0, *ends[:-1]], ends, strict=True), strict=True))
    ordered = sorted(ranges.items(), key=lambda item: item[1])
    for (name, (_, end)), (other, (begin, _)) in zip(ordered, ordered[1:], strict=False):
        if begin < end:
            raise ConfigError(
                f"The {name} and {other} parts overlap: choose dates without a common day."
            )
    parts = {}
    for name, (start, stop) in ranges.items():
        if stop <= start:
            raise DataError(
                f"The {name} part has no time: the data reach from {_text(times[0])} to "
                f"{_text(times[-1])}."
            )
        part = Part(int(start), int(stop), _text(times[start]), _text(times[stop - 1]))
        parts[name] = part
    return parts


def between(times: np.ndarray, first: str, last: str) -> tuple[int, int]:
    """Return start and stop of the times from `first` to the end of `last`."""
    begin, end = _date(first), _date(last)
    end = (end + np.timedelta64(1, np.datetime_data(end.dtype)[0])).astype("datetime64[ns]")
    start = int(np.searchsorted(times, begin.astype("datetime64[ns]"), side="left"))
    return start, int(np.searchsorted(times, end, side="left"))


class GridWindows(Dataset[dict[str, Tensor]]):
    """Windows of `history` observed and `horizon` future frames, one starting at every time.

    Items hold `image` (T, C, H, W) and `target` (T', C, H, W), scaled, with 0 where not observed;
    `mask` (T', C, H, W), true where observed; `background` (T + future, C, H, W), the scaled
    climatology, where one is given; `index`, the window's number.

    Args:
        grid: The fields.
        part: Where windows may lie.
        history: T.
        horizon: T'.
        normalisation: Scaling.
        fit: Crop or padding.
        climatology: Gives `background`.
        training: Leave a window's own days out of its background, with a day on each side, where
            the climatology is of few days.
        background_frames: Frames of background after the history; default `horizon`.

    Raises:
        DataError: no window fits.
    """

    def __init__(
        self,
        grid: Grid,
        part: Part,
        history: int,
        horizon: int,
        normalisation: Normalisation,
        fit: Fit,
        climatology: Climatology | None = None,
        *,
        training: bool = False,
        background_frames: int | None = None,
    ) -> None:
        """Find the windows."""
        self.grid, self.part = grid, part
        self.history, self.horizon = history, horizon
        self.normalisation, self.fit, self.climatology = normalisation, fit, climatology
        self.background_frames = background_frames or horizon
        days = (grid.times[part.stop - 1] - grid.times[part.start]) / DAY
        self.leave_out = training and days < LEAVE_OUT_BELOW_DAYS
        self.starts, self.lost = window_starts(grid, part, history + horizon)
        if not len(self.starts):
            frames = part.stop - part.start
            raise DataError(
                f"No window of {history} + {horizon} evenly spaced frames fits between "
                f"{part.first} and {part.last} ({frames} frames): lower --data.history or "
                "--data.horizon, or give more data."
            )

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.starts)

    @property
    def origins(self) -> np.ndarray:
        """Time of the last observed frame of each window, datetime64[ns]."""
        return self.grid.times[self.starts + self.history - 1]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one window."""
        start = int(self.starts[index])
        frames = self.grid.read(start, start + self.history + self.horizon)
        observed = self.fit.apply(np.isfinite(frames[self.history :]), edge=False)
        scaled = self.normalisation.apply(self.fit.apply(np.nan_to_num(frames)))
        missing = ~self.fit.apply(np.isfinite(frames))
        scaled[missing] = 0.0
        item = {
            "image": torch.from_numpy(scaled[: self.history]),
            "target": torch.from_numpy(scaled[self.history :]),
            "mask": torch.from_numpy(observed),
            "index": torch.tensor(index),
        }
        if self.climatology is not None:
            item["background"] = torch.from_numpy(self._background(start))
        return item

    def _background(self, start: int) -> np.ndarray:
        spacing = self.grid.spacing
        first = self.grid.times[start]
        times = first + np.arange(self.history + self.background_frames) * spacing
        without = None
        if self.leave_out:
            begin = np.searchsorted(self.grid.times, first.astype("datetime64[D]") - DAY)
            end = np.searchsorted(self.grid.times, times[-1].astype("datetime64[D]") + 2 * DAY)
            begin, end = max(int(begin), self.part.start), min(int(end), self.part.stop)
            without = (self.grid.times[begin:end], self.grid.read(begin, end))
        fields = self.climatology.at(times, without)
        return self.normalisation.apply(self.fit.apply(fields))


def window_starts(grid: Grid, part: Part, length: int) -> tuple[np.ndarray, int]:
    """Return the first frames of all windows of evenly spaced times, and how many gaps cost."""
    possible = max(0, part.stop - part.start - length + 1)
    even = np.diff(grid.times[part.start : part.stop]) == grid.spacing
    uneven = np.concatenate([[0], np.cumsum(~even)])
    starts = np.arange(possible)
    whole = uneven[starts + length - 1] == uneven[starts]
    return part.start + starts[whole], int(possible - whole.sum())


def _pair(name: str, dates: Sequence[str]) -> tuple[str, str]:
    if len(dates) != 2:
        raise ConfigError(
            f"--data.{name} takes a first and a last date, not {len(dates)} value(s)."
        )
    return str(dates[0]), str(dates[1])


def _date(text: str) -> np.datetime64:
    try:
        return np.datetime64(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is not a date: write it like 2019-03-20.") from error


def _text(time: np.datetime64) -> str:
    return str(time.astype("datetime64[s]"))
