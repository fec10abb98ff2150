from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from crossband.shared.errors import DataError
from crossband.spatiotemporal.data.grid import open_grid
from crossband.spatiotemporal.data.normalisation import Climatology, Normalisation

START = np.datetime64("2019-03-01T00", "ns")
HOUR = np.timedelta64(3600, "s").astype("timedelta64[ns]")


def hours(count: int) -> np.ndarray:
    return START + np.arange(count) * HOUR


@pytest.fixture
def open_fields(tmp_path: Path) -> Callable[..., object]:
    """Opens a grid of given fields (n, H, W) at given times."""

    def open_them(times: np.ndarray, **fields: np.ndarray) -> object:
        arrays = {name: (("time", "lat", "lon"), value) for name, value in fields.items()}
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.nc"
        xr.Dataset(arrays, {"time": times}).to_netcdf(path)
        return open_grid([path], list(fields))

    return open_them


def test_mean_and_std_of_the_part_alone_without_what_is_missing(open_fields: Callable) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(280, 3, (600, 3, 4)), rng.normal(-1e4, 0.5, (600, 3, 4))
    a[rng.random(a.shape) < 0.3] = np.nan
    a[500:] = 1e6  # not in the part
    grid = open_fields(hours(600), a=a.astype("f4"), b=b.astype("f4"))
    found = Normalisation.fit(grid, 0, 500)
    np.testing.assert_allclose(found.mean, [np.nanmean(a[:500]), b[:500].mean()], rtol=1e-6)
    np.testing.assert_allclose(found.std, [np.nanstd(a[:500]), b[:500].std()], rtol=1e-3)


def test_apply_and_invert(open_fields: Callable) -> None:
    norm = Normalisation((280.0, 1.0), (20.0, 0.5))
    again = Normalisation.from_dict(json.loads(json.dumps(norm.to_dict())))
    assert again == norm
    values = np.random.default_rng(0).normal(280, 20, (5, 2, 3, 4)).astype("f4")
    scaled = norm.apply(values)
    np.testing.assert_allclose(scaled[:, 0], (values[:, 0] - 280) / 20, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.invert(scaled), values, rtol=1e-5)
    tensor = norm.apply(torch.from_numpy(values))
    np.testing.assert_allclose(tensor.numpy(), scaled, rtol=1e-5, atol=1e-6)
    assert tensor.dtype == torch.float32


def test_a_field_that_is_all_nan_or_constant_is_named(open_fields: Callable) -> None:
    good = np.random.default_rng(0).normal(size=(10, 2, 2)).astype("f4")
    with pytest.raises(DataError, match="'b' has no value at all"):
        Normalisation.fit(open_fields(hours(10), a=good, b=good * np.nan), 0, 10)
    with pytest.raises(DataError, match=r"'c' is constant \(273\)"):
        Normalisation.fit(open_fields(hours(10), a=good, c=good * 0 + 273), 0, 10)


def test_one_missing_frame_is_allowed(open_fields: Callable) -> None:
    values = np.random.default_rng(0).normal(size=(10, 2, 2)).astype("f4")
    values[3] = np.nan
    found = Normalisation.fit(open_fields(hours(10), a=values), 0, 10)
    assert found.mean[0] == pytest.approx(np.nanmean(values), abs=1e-6)


def test_climatology_is_the_mean_of_each_cell_at_each_hour(open_fields: Callable) -> None:
    values = np.random.default_rng(0).normal(280, 5, (24 * 6, 2, 3)).astype("f4")
    values[30, 0, 0] = np.nan
    grid = open_fields(hours(len(values)), a=values)
    climatology = Climatology.fit(grid, 0, 24 * 5)
    expected = np.nanmean(values[: 24 * 5].reshape(5, 24, 2, 3), axis=0)
    np.testing.assert_allclose(climatology.fields()[:, 0], expected, rtol=1e-6)
    tomorrow = START + np.timedelta64(40, "D") + 7 * HOUR
    np.testing.assert_allclose(climatology.at(np.array([tomorrow]))[0, 0], expected[7], rtol=1e-6)
    stored = Climatology.from_fields(climatology.fields(), grid.spacing)
    np.testing.assert_allclose(stored.fields(), climatology.fields(), rtol=1e-6)


def test_leaving_days_out_equals_fitting_without_them(open_fields: Callable) -> None:
    values = np.random.default_rng(0).normal(280, 5, (24 * 4, 2, 3)).astype("f4")
    grid = open_fields(hours(len(values)), a=values)
    left = Climatology.fit(grid, 0, 96).at(grid.times[:24], (grid.times[72:], values[72:, None]))
    np.testing.assert_allclose(left, Climatology.fit(grid, 0, 72).at(grid.times[:24]), rtol=1e-6)


def test_climatology_of_a_cell_never_seen_at_an_hour_is_the_mean(open_fields: Callable) -> None:
    values = np.random.default_rng(0).normal(280, 5, (48, 2, 3)).astype("f4")
    values[5::24, 1, 1] = np.nan
    climatology = Climatology.fit(open_fields(hours(48), a=values), 0, 48)
    assert climatology.fields()[5, 0, 1, 1] == pytest.approx(np.nanmean(values), rel=1e-6)


@pytest.mark.parametrize(("spacing", "phases"), [(6, 4), (24, 1), (48, 1), (7, 1)])
def test_phases_of_the_day(open_fields: Callable, spacing: int, phases: int) -> None:
    values = np.random.default_rng(0).normal(280, 5, (24, 2, 3)).astype("f4")
    grid = open_fields(START + np.arange(24) * spacing * HOUR, a=values)
    fields = Climatology.fit(grid, 0, 24).fields()
    assert len(fields) == phases
    expected = values.reshape(-1, phases, 2, 3).mean(axis=0)
    np.testing.assert_allclose(fields[:, 0], expected, rtol=1e-6)
