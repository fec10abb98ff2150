from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

START = np.datetime64("2019-03-01T00", "ns")
HOUR = np.timedelta64(3600, "s").astype("timedelta64[ns]")


def hours(count: int, first: int = 0) -> np.ndarray:
    """Hourly times from the first of March."""
    return START + (first + np.arange(count)) * HOUR


def fields(times: np.ndarray, height: int = 4, width: int = 6, seed: int = 0) -> np.ndarray:
    """Fields (n, H, W) that depend on their time alone, so that any file layout gives the same."""
    since = ((times - START) / HOUR).astype(int)
    noise = np.random.default_rng(seed).normal(280, 5, (5000, height, width))
    return noise[since].astype(np.float32)


def dataset(
    variables: dict[str, np.ndarray],
    times: np.ndarray,
    *,
    dims: Sequence[str] = ("time", "lat", "lon"),
    coordinates: bool = True,
) -> xr.Dataset:
    height, width = next(iter(variables.values())).shape[-2:]
    coords = {dims[0]: times}
    if coordinates:
        coords[dims[1]] = np.linspace(60, 50, height)
        coords[dims[2]] = np.linspace(0, 10, width)
    arrays = {name: (dims, values, {"units": "K"}) for name, values in variables.items()}
    return xr.Dataset(arrays, coords)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file of one variable, given its times: write("a.nc", times, name="t2m")."""

    def write_file(
        name: str, times: np.ndarray, variable: str = "t2m", seed: int = 0, **options: object
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        found = dataset({variable: fields(times, seed=seed)}, times, **options)
        if path.suffix == ".zarr":
            found.to_zarr(path, consolidated=False)
        else:
            found.to_netcdf(path)
        return path

    return write_file
