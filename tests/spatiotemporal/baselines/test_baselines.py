from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from crossband.shared.errors import ConfigError, DataError
from crossband.spatiotemporal.baselines import BASELINES, create_baseline
from crossband.spatiotemporal.data.grid import Grid, open_grid
from crossband.spatiotemporal.data.windows import Part, split_times, window_starts
from crossband.spatiotemporal.metrics import ForecastScores

START = np.datetime64("2019-03-01T00", "ns")
HOUR = np.timedelta64(3600, "s").astype("timedelta64[ns]")
HISTORY, HORIZON = 4, 3


def grid_of(folder: Path, *fields: np.ndarray, step: int = 1) -> Grid:
    """A grid of hourly fields (n, H, W)."""
    path = folder / f"{len(list(folder.iterdir()))}.nc"
    times = START + step * np.arange(len(fields[0])) * HOUR
    names = "abcd"[: len(fields)]
    arrays = {
        n: (("time", "lat", "lon"), f.astype("f4")) for n, f in zip(names, fields, strict=True)
    }
    xr.Dataset(arrays, {"time": times}).to_netcdf(path)
    return open_grid([path], list(names))


def windows(grid: Grid, part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return history, future and origins of all windows."""
    starts, _ = window_starts(grid, part, HISTORY + HORIZON)
    frames = np.stack([grid.read(s, s + HISTORY + HORIZON) for s in starts])
    return frames[:, :HISTORY], frames[:, HISTORY:], grid.times[starts + HISTORY - 1]


def rmse(name: str, grid: Grid, train: Part, test: Part) -> np.ndarray:
    baseline = create_baseline(name)
    baseline.fit(grid, train, HISTORY, HORIZON)
    frames, truth, origins = windows(grid, test)
    scores = ForecastScores(HORIZON, grid.variables, None, grid.shape[1:])
    scores.update(baseline.predict(frames, origins), truth)
    return scores.scores()["rmse"]


@pytest.mark.parametrize("name", BASELINES)
def test_forecasts_are_finite_and_shaped_even_where_nothing_was_observed(
    tmp_path: Path, name: str
) -> None:
    values = np.random.default_rng(0).normal(280, 3, (2, 24 * 5, 6, 7))
    values[0, :, 2, 3] = np.nan  # never
    values[:, 100:, 0] = np.nan  # not any more
    values[1, 111:] = np.nan  # a whole field
    grid = grid_of(tmp_path, *values)
    baseline = create_baseline(name)
    baseline.fit(grid, Part(0, 90, "", ""), HISTORY, HORIZON)
    frames, truth, origins = windows(grid, Part(95, 120, "", ""))
    found = baseline.predict(frames, origins)
    assert found.shape == truth.shape and found.dtype == np.float32
    if name == "persistence":  # knows nothing beyond the frames it is given
        found = found[:, :, :1]
    assert np.isfinite(found).all()
    assert found.min() > 250 and found.max() < 310


def test_persistence_repeats_the_last_observed_value(tmp_path: Path) -> None:
    frames = np.arange(4.0).reshape(1, 4, 1, 1, 1) * np.ones((1, 4, 1, 2, 2))
    frames[0, 2:, 0, 0, 1] = np.nan
    frames[0, :, 0, 1, 1] = np.nan
    baseline = create_baseline("persistence")
    baseline.fit(grid_of(tmp_path, np.zeros((5, 2, 2))), Part(0, 5, "", ""), 4, 2)
    found = baseline.predict(frames, np.array([START]))
    mean = np.nanmean(frames)
    np.testing.assert_allclose(found[0, :, 0], [[[3, 1], [3, mean]]] * 2, rtol=1e-6)


def test_climatology_knows_a_daily_cycle(tmp_path: Path) -> None:
    hour = np.arange(24 * 8)[:, None, None]
    places = np.random.default_rng(0).normal(size=(1, 3, 4))
    grid = grid_of(tmp_path, 280 + places + 5 * np.sin(2 * np.pi * hour / 24 + places))
    train, test = Part(0, 24 * 6, "", ""), Part(24 * 6, 24 * 8, "", "")
    np.testing.assert_allclose(rmse("climatology", grid, train, test), 0, atol=1e-3)
    assert (rmse("persistence", grid, train, test) > 0.5).all()


def test_climatology_of_daily_frames_is_the_mean(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(280, 3, (30, 2, 3))
    grid = grid_of(tmp_path, values, step=24)
    baseline = create_baseline("climatology")
    baseline.fit(grid, Part(0, 20, "", ""), HISTORY, HORIZON)
    found = baseline.predict(np.empty((1, HISTORY, 1, 2, 3)), grid.times[:1])
    np.testing.assert_allclose(found[0, :, 0], [values[:20].mean(axis=0)] * HORIZON, rtol=1e-5)


def departures(hours: int, shape: tuple[int, int], decay: float = 0.9) -> np.ndarray:
    """Autoregressive noise (n, H, W): the best forecast is decay ** lead times the last value."""
    rng = np.random.default_rng(0)
    values = np.zeros((hours, *shape))
    for now in range(1, hours):
        values[now] = decay * values[now - 1] + rng.normal(size=shape)
    return values


def test_ridge_comes_near_the_best_possible_forecast(tmp_path: Path) -> None:
    hour = np.arange(24 * 40)[:, None, None]
    normal = 280 + 6 * np.sin(2 * np.pi * hour / 24)
    grid = grid_of(tmp_path, normal + departures(24 * 40, (8, 8)))
    train, test = Part(0, 24 * 30, "", ""), Part(24 * 30, 24 * 40, "", "")
    best = np.sqrt([sum(0.81**k for k in range(lead)) for lead in (1, 2, 3)])
    found = rmse("ridge", grid, train, test)[:, 0]
    np.testing.assert_allclose(found, best, rtol=0.05)
    assert (found < rmse("persistence", grid, train, test)[:, 0]).all()
    assert (found < rmse("climatology", grid, train, test)[:, 0]).all()


def test_ridge_uses_other_variables_and_knows_the_hour(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    driver = rng.normal(size=(24 * 40, 5, 5))
    hour = np.arange(24 * 40)[:, None, None]
    follower = np.zeros_like(driver)
    follower[1:] = (1 + np.cos(2 * np.pi * hour[:-1] / 24)) * driver[:-1]  # of the hour before
    grid = grid_of(tmp_path, driver, follower)
    train, test = Part(0, 24 * 30, "", ""), Part(24 * 30, 24 * 40, "", "")
    found = rmse("ridge", grid, train, test)
    assert found[0, 1] < 0.2  # the follower one hour ahead is all but known
    assert found[0, 0] == pytest.approx(1, rel=0.1)  # the driver cannot be forecast
    assert found[1, 1] == pytest.approx(np.sqrt(1.5), rel=0.1)


def test_ridge_of_less_than_a_day_does_not_trust_the_hour(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fields = 3 + departures(90, (12, 12)) + np.cumsum(rng.normal(0, 0.3, (90, 1, 1)), axis=0)
    grid = grid_of(tmp_path, fields)
    grid = replace(grid, times=START + np.arange(90) * HOUR // 12)  # five minutes apart
    train, test = Part(0, 65, "", ""), Part(65, 90, "", "")
    best = np.sqrt([sum(0.81**k for k in range(lead)) for lead in (1, 2, 3)])
    assert (rmse("ridge", grid, train, test)[:, 0] < 1.25 * best).all()
    assert (rmse("ridge", grid, train, test) < rmse("persistence", grid, train, test)).all()


def test_ridge_leaves_out_what_was_not_observed(tmp_path: Path) -> None:
    values = 280 + departures(24 * 30, (6, 6))
    holes = np.where(np.random.default_rng(1).random(values.shape) < 0.02, np.nan, values)
    holes[:, 0] = np.nan
    train, test = Part(0, 24 * 20, "", ""), Part(24 * 20, 24 * 30, "", "")
    whole = rmse("ridge", grid_of(tmp_path, values), train, test)
    found = rmse("ridge", grid_of(tmp_path, holes), train, test)
    np.testing.assert_allclose(found, whole, rtol=0.1)


def test_ridge_without_a_whole_window_says_so(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, np.random.default_rng(0).normal(size=(30, 2, 2)))
    with pytest.raises(DataError, match=r"no window of 4 \+ 3 .* leave it out"):
        create_baseline("ridge").fit(grid, Part(0, 5, "a", "b"), HISTORY, HORIZON)


def test_unknown_name() -> None:
    with pytest.raises(ConfigError, match="no baseline 'rigde'. Did you mean 'ridge'"):
        create_baseline("rigde")


def test_order_of_rivals_on_real_weather(shared_dir: Path) -> None:
    grid = open_grid([shared_dir / "data/spatiotemporal/weather_layout"], ["t2m"]).load()
    dates = {
        "train": ["2019-03-01", "2019-03-20"],
        "val": ["2019-03-21", "2019-03-24"],
        "test": ["2019-03-25", "2019-03-31"],
    }
    parts = split_times(grid.times, dates=dates)
    starts, _ = window_starts(grid, parts["test"], 24)
    frames = np.stack([grid.read(s, s + 24) for s in starts])
    found = {}
    for name in BASELINES:
        baseline = create_baseline(name)
        baseline.fit(grid, parts["train"], 12, 12)
        scores = ForecastScores(12, grid.variables, grid.latitude, grid.shape[1:])
        scores.update(baseline.predict(frames[:, :12], grid.times[starts + 11]), frames[:, 12:])
        found[name] = scores.scores()
    # Plain RMSE of persistence as published with the data.
    plain = found["persistence"]["rmse_plain"][:, 0]
    np.testing.assert_allclose(plain[[0, 5]], [0.580, 2.70], rtol=0.1)
    values = {name: table["rmse"][:, 0] for name, table in found.items()}
    assert (values["ridge"] < values["persistence"]).all()
    assert (values["ridge"] < values["climatology"]).all()
    assert values["ridge"].mean() == pytest.approx(1.393, abs=0.02)
