from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from dataset_tester import DatasetTester
from hypothesis import given
from hypothesis import strategies as st

from crossband.shared.errors import ConfigError, DataError
from crossband.spatiotemporal.data.fitting import Fit, fit_grid
from crossband.spatiotemporal.data.grid import Grid, open_grid
from crossband.spatiotemporal.data.normalisation import Climatology, Normalisation
from crossband.spatiotemporal.data.windows import (
    GridWindows,
    Part,
    between,
    split_times,
    window_starts,
)

START = np.datetime64("2019-03-01T00", "ns")
HOUR = np.timedelta64(3600, "s").astype("timedelta64[ns]")


def grid_of(times: np.ndarray, shape: tuple[int, int, int] = (1, 2, 2)) -> Grid:
    """A grid without files, where only the times matter."""
    return Grid(
        variables=("a",),
        times=times,
        latitude=None,
        longitude=None,
        units=("K",),
        dims=("time", "lat", "lon"),
        attrs={},
        shape=shape,
        segments=(),
        places=np.empty((0, len(times), 2), int),
    )


def hours(*indices: int) -> np.ndarray:
    return START + np.array(indices) * HOUR


@given(
    length=st.integers(20, 200),
    first=st.floats(0.2, 0.6),
    second=st.floats(0.1, 0.3),
    history=st.integers(1, 4),
    horizon=st.integers(1, 4),
    gaps=st.sets(st.integers(0, 400), max_size=10),
)
def test_no_time_of_a_training_window_is_in_a_test_window(
    length: int, first: float, second: float, history: int, horizon: int, gaps: set[int]
) -> None:
    grid = grid_of(hours(*[h for h in range(length + len(gaps)) if h not in gaps]))
    parts = split_times(grid.times, (first, second, 1 - first - second))
    seen: dict[str, set[int]] = {}
    for name, part in parts.items():
        starts, lost = window_starts(grid, part, history + horizon)
        possible = max(0, part.stop - part.start - history - horizon + 1)
        assert len(starts) + lost == possible
        windows = starts[:, None] + np.arange(history + horizon)
        seen[name] = set(windows.ravel().tolist())
        assert all(part.start <= i < part.stop for i in seen[name])
        for window in windows:  # a gap never lies within a window
            assert np.all(np.diff(grid.times[window]) == grid.spacing)
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["val"]
    assert not seen["val"] & seen["test"]


def test_fractions_cover_everything_in_time_order() -> None:
    times = hours(*range(100))
    parts = split_times(times, (0.7, 0.15, 0.15))
    assert [(p.start, p.stop) for p in parts.values()] == [(0, 70), (70, 85), (85, 100)]
    assert parts["val"].first == "2019-03-03T22:00:00"


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        ("2019-03-02", "2019-03-02", (24, 48)),  # to the end of the day
        ("2019-03", "2019-03", (0, 31 * 24)),
        ("2019", "2019", (0, 31 * 24)),
        ("2019-03-02T06", "2019-03-02T07", (30, 32)),
        ("2018", "2018", (0, 0)),
    ],
)
def test_dates_include_their_ends(first: str, last: str, expected: tuple[int, int]) -> None:
    assert between(hours(*range(31 * 24)), first, last) == expected


def test_dates_in_any_order() -> None:
    times = hours(*range(31 * 24))
    dates = {
        "train": ["2019-03-11", "2019-03-31"],
        "val": ["2019-03-06", "2019-03-10"],
        "test": ["2019-03-01", "2019-03-05"],
    }
    parts = split_times(times, dates=dates)
    assert (parts["test"].start, parts["test"].stop) == (0, 5 * 24)
    assert (parts["train"].first, parts["train"].last) == (
        "2019-03-11T00:00:00", "2019-03-31T23:00:00",
    )  # fmt: skip
    for part in parts.values():  # what a checkpoint stores gives the same part
        assert between(times, part.first, part.last) == (part.start, part.stop)


@pytest.mark.parametrize(
    ("fractions", "dates", "kind", "message"),
    [
        ((0.5, 0.5, 0.5), {}, ConfigError, "must be three parts that add to 1"),
        ((0.5, 0.5), {}, ConfigError, "must be three parts"),
        ((1.0, 0.0, 0.0), {}, DataError, "val part has no time"),
        ((), {"train": ["2019"]}, ConfigError, "add --data.val, --data.test"),
        ((), {"train": ["2019"], "val": ["2019"], "test": ["2019"]}, ConfigError, "a first and"),
        (
            (),
            {"train": ["2019-03-01", "2019-03-03"], "val": ["2019-03-03", "2019-03-04"],
             "test": ["2019-03-05", "2019-03-06"]},
            ConfigError,
            "train and val parts overlap",
        ),
        (
            (),
            {"train": ["2010", "2015"], "val": ["2019-03-01", "2019-03-01"],
             "test": ["2019-03-02", "2019-03-02"]},
            DataError,
            "train part has no time: the data reach from 2019-03-01",
        ),
        (
            (),
            {"train": ["March", "April"], "val": ["2019", "2019"], "test": ["2020", "2020"]},
            ConfigError,
            "'March' is not a date",
        ),
    ],
)  # fmt: skip
def test_bad_splits(fractions: tuple, dates: dict, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        split_times(hours(*range(10 * 24)), fractions, dates)


def test_windows_lost_to_gaps_are_counted() -> None:
    grid = grid_of(hours(*range(10), *range(12, 20)))
    starts, lost = window_starts(grid, Part(0, 18, "", ""), 4)
    assert starts.tolist() == [*range(7), *range(10, 15)]
    assert lost == 3


def write(folder: Path, count: int = 60, missing: bool = True) -> Path:
    path = folder / "fields.nc"
    if not path.exists():
        rng = np.random.default_rng(0)
        values = rng.normal(280, 5, (2, count, 6, 9)).astype("f4")
        if missing:
            values[0, 20:, 2:4, 3] = np.nan
        dims = ("time", "lat", "lon")
        times = START + np.arange(count) * HOUR
        coords = {"time": times, "lat": np.linspace(60, 50, 6), "lon": np.arange(9.0)}
        xr.Dataset({"a": (dims, values[0]), "b": (dims, values[1])}, coords).to_netcdf(path)
    return path


class TestGridWindows(DatasetTester):
    """Two variables with missing values on a padded grid, with a climatology."""

    length = 60 - 5 + 1
    item = {
        "image": ((3, 2, 8, 12), torch.float32),
        "target": ((2, 2, 8, 12), torch.float32),
        "mask": ((2, 2, 8, 12), torch.bool),
        "background": ((6, 2, 8, 12), torch.float32),
        "index": ((), torch.int64),
    }

    def make(self, folder: Path) -> GridWindows:
        grid = open_grid([write(folder)], ["a", "b"])
        return GridWindows(
            grid,
            Part(0, 60, "", ""),
            3,
            2,
            Normalisation.fit(grid, 0, 40),
            fit_grid((6, 9), 4, "pad"),
            Climatology.fit(grid, 0, 40),
            background_frames=3,
        )

    def test_values(self, tmp_path: Path) -> None:
        windows = self.make(tmp_path)
        frames = windows.grid.read(30, 35)
        item = windows[30]
        inner = windows.fit.invert
        target = windows.normalisation.invert(inner(item["target"].numpy()))
        seen = inner(item["mask"].numpy())
        np.testing.assert_array_equal(seen, np.isfinite(frames[3:]))
        np.testing.assert_allclose(target[seen], frames[3:][seen], rtol=1e-6)
        missing = np.isnan(windows.fit.apply(frames[3:]))
        assert missing.any() and (item["target"].numpy()[missing] == 0).all()
        assert item["mask"].sum() == seen.sum()  # the padding does not count
        assert windows.origins[30] == START + 32 * HOUR


def make_windows(path: Path, part: Part, **options: object) -> GridWindows:
    grid = open_grid([path], ["b"])
    norm = Normalisation((0.0,), (1.0,))
    return GridWindows(grid, part, 3, 2, norm, Fit((6, 9), (6, 9)), **options)


def test_in_memory_and_from_file_are_the_same(tmp_path: Path) -> None:
    from_file = make_windows(write(tmp_path), Part(0, 60, "", ""))
    in_memory = make_windows(write(tmp_path), Part(0, 60, "", ""))
    in_memory.grid.load()
    for index in (0, 30, 55):
        assert torch.equal(from_file[index]["image"], in_memory[index]["image"])


def test_too_short_a_part_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No window of 3 \+ 2 evenly spaced frames .*4 frames"):
        make_windows(write(tmp_path), Part(0, 4, "a", "b"))


def test_a_training_window_is_not_told_its_own_future(tmp_path: Path) -> None:
    path = write(tmp_path, 24 * 10)
    grid = open_grid([path], ["b"])
    climatology = Climatology.fit(grid, 0, 24 * 10)
    part = Part(0, 24 * 10, "", "")
    item = make_windows(path, part, climatology=climatology, training=True)[24 * 5 + 3]
    days = grid.read(0, 240).reshape(10, 24, 1, 6, 9)
    others = np.delete(days, [4, 5, 6], axis=0).mean(axis=0)  # own day and one on each side
    np.testing.assert_allclose(item["background"], others[3:8], rtol=1e-5)
    plain = make_windows(path, part, climatology=climatology)[24 * 5 + 3]
    np.testing.assert_allclose(plain["background"], days.mean(axis=0)[3:8], rtol=1e-5)
