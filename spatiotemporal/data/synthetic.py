"""Simulated weather in WeatherBench's layout: warm and cold air carried along by a wavy jet.

Small and learnable: what moves where follows from the place, so a network that sees space beats
a regression that does not; systems that are born within the picture cannot be foreseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from crossband.shared.cli.output import print_json
from crossband.shared.errors import ConfigError, did_you_mean
from crossband.shared.files import atomic_path
from crossband.spatiotemporal.config import MakeConfig
from crossband.spatiotemporal.data.grid import LONG_NAMES, SUFFIXES

START = np.datetime64("2019-01-01T00", "ns")
HOUR = np.timedelta64(3600, "s").astype("timedelta64[ns]")
RESOLUTION = 1.5  # degrees
CENTRE = (50.0, 10.0)  # latitude, longitude
UNITS = {"t2m": "K", "u10": "m s**-1", "v10": "m s**-1"}
STANDARD_NAMES = {"t2m": "air_temperature", "u10": "eastward_wind", "v10": "northward_wind"}
NOISE = 0.1  # standard deviation of the observation error, K or m/s


def make_synthetic(
    root: str | Path,
    *,
    hours: int = 720,
    height: int = 16,
    width: int = 32,
    seed: int = 0,
    variables: Sequence[str] = ("t2m",),
) -> Path:
    """Write `<long name>/<long name>_<month>.nc` files of hourly fields from January 2019 on.

    Args:
        root: Folder.
        hours: Length of the series.
        height: Rows, southernmost first, 1.5 degrees apart around 50 N.
        width: Columns.
        seed: Seed of the weather.
        variables: Among t2m (K), u10 and v10 (m/s).

    Returns:
        The folder.

    Raises:
        ConfigError: unknown variable, a size without meaning, or other NetCDF files in `root`,
            which would be read together with the new ones.
    """
    for variable in variables:
        if variable not in UNITS:
            raise ConfigError(
                f"'{variable}' cannot be simulated.{did_you_mean(variable, UNITS)} There are: "
                f"{', '.join(UNITS)}."
            )
    if min(hours, height, width) < 2 or height * RESOLUTION > 80:
        raise ConfigError(
            f"Cannot simulate {hours} hours on {height} x {width}: use at least 2 of each and at "
            f"most {int(80 / RESOLUTION)} rows."
        )
    root = Path(root)
    times = START + np.arange(hours) * HOUR
    months = times.astype("datetime64[M]")
    paths = {
        (v, m): root / LONG_NAMES[v] / f"{LONG_NAMES[v]}_{m}.nc"
        for v in variables
        for m in np.unique(months)
    }
    other = [p for s in SUFFIXES for p in root.rglob(f"*{s}") if p not in paths.values()]
    if other:
        raise ConfigError(
            f"{root} holds other data already ({other[0].name}): choose an empty folder by --out."
        )
    latitude, longitude = (
        centre + (np.arange(n) - (n - 1) / 2) * RESOLUTION
        for centre, n in zip(CENTRE, (height, width), strict=True)
    )
    fields = _simulate(times, latitude, longitude, np.random.default_rng(seed))
    for (variable, month), path in paths.items():
        within = months == month
        found = xr.Dataset(
            {
                variable: (
                    ("time", "lat", "lon"),
                    fields[variable][within],
                    {
                        "units": UNITS[variable],
                        "standard_name": STANDARD_NAMES[variable],
                        "long_name": LONG_NAMES[variable].replace("_", " "),
                    },
                )
            },
            {
                "time": times[within],
                "lat": ("lat", latitude, {"units": "degrees_north", "standard_name": "latitude"}),
                "lon": ("lon", longitude, {"units": "degrees_east", "standard_name": "longitude"}),
            },
            {"Conventions": "CF-1.8", "source": f"simulated by crossband, seed {seed}"},
        )
        with atomic_path(path) as temporary:
            found.to_netcdf(temporary)
    return root


def run(config: MakeConfig) -> None:
    """Run `data make`."""
    root = make_synthetic(
        config.out,
        hours=config.hours,
        height=config.height,
        width=config.width,
        seed=config.seed,
        variables=config.variables,
    )
    paths = sorted(root.rglob("*.nc"))
    if config.json:
        print_json({"files": [str(path) for path in paths]})
        return
    print(
        f"{config.hours} hours of {', '.join(config.variables)} on {config.height} x "
        f"{config.width}: {len(paths)} file(s) in {config.out}"
    )
    if not config.quiet:
        print(f"next: crossband spatiotemporal data check --data.root {config.out}")


def _simulate(
    times: np.ndarray, latitude: np.ndarray, longitude: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return fields (n, H, W) by variable."""
    hour = np.arange(len(times))[:, None, None]
    row, column = latitude[None, :, None], longitude[None, None, :]
    anomaly = _systems(len(times), latitude, longitude, rng)
    land = 0.6 + 0.4 * np.sin(np.deg2rad(6 * column + 4 * row))  # how strongly the sun heats
    sun = np.cos(2 * np.pi * ((hour + column / 15) / 24 - 14 / 24))  # warmest at 14 h local time
    slope, along = np.gradient(anomaly, RESOLUTION, axis=(1, 2))
    fields = {
        "t2m": 283 - 0.6 * (row - CENTRE[0]) + 4 * land * sun + anomaly,
        "u10": 4 - 4 * slope,  # thermal wind: along the isotherms
        "v10": 4 * along + 0 * hour,
    }
    return {
        name: (field + rng.normal(0, NOISE, field.shape)).astype(np.float32)
        for name, field in fields.items()
    }


def _systems(
    hours: int, latitude: np.ndarray, longitude: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the sum (n, H, W), in K, of warm and cold systems that come and go with the flow."""
    west, east = longitude[0] - 18, longitude[-1] + 18
    south, north = latitude[0] - 5, latitude[-1] + 5
    area = (east - west) * (north - south)
    lifetime = 96  # hours
    count = max(4, round(area / 150 * (hours + lifetime) / lifetime))  # about one per 150 deg^2
    born = rng.uniform(-lifetime, hours, count)
    x, y = rng.uniform(west, east, count), rng.uniform(south, north, count)
    strength = rng.normal(0, 6, count)
    radius = rng.uniform(3.0, 6.0, count)
    total = np.zeros((hours, len(latitude), len(longitude)))
    for age in range(lifetime):
        now = np.floor(born).astype(int) + age
        alive = (now >= 0) & (now < hours)
        grown = strength * np.sin(np.pi * (age + 0.5) / lifetime) ** 2
        rows = np.exp(-0.5 * ((latitude - y[:, None]) / radius[:, None]) ** 2)
        columns = np.exp(-0.5 * ((longitude - x[:, None]) / radius[:, None]) ** 2)
        shape = grown[:, None, None] * rows[:, :, None] * columns[:, None, :]
        np.add.at(total, now[alive], shape[alive])
        # A jet that is strongest in the middle and meanders with a wavelength of 60 degrees.
        eastward = 0.4 + 0.9 * np.exp(-(((y - CENTRE[0]) / 8) ** 2))
        northward = 0.35 * np.cos(2 * np.pi * x / 60)
        x = west + (x + eastward - west) % (east - west)
        y = y + northward
    return total
