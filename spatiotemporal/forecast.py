"""Forecasts from a checkpoint or an exported file, in physical units, as NetCDF."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from crossband import __version__
from crossband.shared.devices import AUTOCAST, select_device
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.export import is_exported, load_exported
from crossband.shared.files import atomic_path
from crossband.shared.prediction import predict_each
from crossband.spatiotemporal.config import PredictConfig
from crossband.spatiotemporal.data.grid import Grid, find_files, open_grid
from crossband.spatiotemporal.forecast_network import ForecastNetwork, frames_ahead
from crossband.spatiotemporal.scheme import Scheme, load_network


@dataclass
class Forecaster:
    """A trained network with all it needs to turn observed fields into forecasts.

    Attributes:
        path: Where it was loaded from.
        scheme: Variables, windows, scaling.
        config: The checkpoint's configuration.
        run: Maps scaled frames (B, T, C, H, W) and background to (B, T', C, H, W).
        network: The network, or None for an exported file.
    """

    path: Path
    scheme: Scheme
    config: dict[str, Any]
    run: Callable[..., Tensor]
    network: ForecastNetwork | None

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", precision: str = "32") -> Forecaster:
        """Load a checkpoint of `train`, or what `export` made of it (.onnx, .pt2).

        Raises:
            CheckpointError: missing, foreign or damaged.
        """
        path = Path(path)
        if is_exported(path):
            run, config = load_exported(path)
            climatology = config.pop("climatology", None)
            scheme = Scheme.from_dict(
                config["scheme"],
                None if climatology is None else np.asarray(climatology, np.float32),
            )
            return cls(path, scheme, config, run, None)
        network, scheme, config = load_network(path)
        place = select_device(device)
        network.to(place)

        def run(*inputs: Tensor) -> Tensor:
            dtype = AUTOCAST.get(precision)
            with torch.autocast(place.type, dtype, enabled=dtype is not None):
                return network(*(x.to(place) for x in inputs)).float().cpu()

        return cls(path, scheme, config, run, network)

    def forecast(self, scaled: Tensor, background: Tensor | None, horizon: int = 0) -> np.ndarray:
        """Forecast windows.

        Args:
            scaled: (B, T, C, H, W), scaled and fitted to the network's grid.
            background: (B, T + whole passes, C, H, W), or None.
            horizon: Frames; 0: as trained.

        Returns:
            (B, horizon, C, H, W) in physical units on the data's grid (cropped where the scheme
            crops).

        Raises:
            ConfigError: an exported file asked for more frames than it was exported for.
        """
        horizon = horizon or self.scheme.horizon
        if self.network is not None:
            self.network.horizon = horizon
        elif horizon > self.scheme.horizon:
            raise ConfigError(
                f"{self.path} was exported for {self.scheme.horizon} frames, {horizon} are asked "
                f"for: use the checkpoint, or export it with --horizon {horizon}."
            )
        inputs = (scaled,) if background is None else (scaled, background)
        with torch.inference_mode():
            frames = self.run(*inputs)[:, :horizon]
        physical = self.scheme.normalisation.invert(frames).numpy()
        return self.scheme.fit.invert(physical)

    def check_grid(self, grid: Grid) -> None:
        """Compare a grid with the one trained on.

        Raises:
            DataError: other variables, spacing, size or coordinates.
        """
        scheme = self.scheme
        if grid.shape[1:] != scheme.fit.source:
            raise DataError(
                f"The data are on a grid of {grid.shape[1]} x {grid.shape[2]}, the network was "
                f"trained on {scheme.fit.source[0]} x {scheme.fit.source[1]}: regrid the data, or "
                "train on this grid."
            )
        if len(grid) > 1 and grid.spacing != scheme.spacing:
            raise DataError(
                f"The data have a time step of {_hours(grid.spacing):g} h, the network was "
                f"trained with {_hours(scheme.spacing):g} h: resample the data."
            )
        for name, units, own in zip(scheme.variables, grid.units, scheme.units, strict=True):
            if units and own and units != own:
                raise DataError(
                    f"'{name}' is in '{units}', the network was trained with '{own}': convert it."
                )
        for name in ("latitude", "longitude"):
            here, there = getattr(grid, name), self.config["protocol"][name]
            if here is not None and there is not None and not np.allclose(here, there, atol=1e-3):
                turned = np.allclose(here[::-1], there, atol=1e-3)
                raise DataError(
                    f"The data's {name}s {'run the other way than' if turned else 'differ from'} "
                    f"those trained on: {here[0]:g} to {here[-1]:g} against {there[0]:g} to "
                    f"{there[-1]:g}; bring them to the grid of the training data."
                )

    def predict(
        self,
        data: str | Path | Sequence[str | Path],
        *,
        origins: Sequence[str] = ("last",),
        horizon: int = 0,
        batch_size: int = 8,
    ) -> xr.Dataset:
        """Forecast from the fields of files.

        Args:
            data: NetCDF files, folders or Zarr stores, read as one data set.
            origins: Times of the last observed frame: `last`, `all`, or dates.
            horizon: Frames to forecast; 0: as trained.
            batch_size: Windows per pass.

        Returns:
            Forecasts in physical units with dimensions time (of the origin), lead, rows and
            columns, and the coordinate valid_time (time, lead).

        Raises:
            DataError: data that do not fit, or too few frames before an origin.
        """
        roots = [data] if isinstance(data, str | Path) else list(data)
        protocol = self.config["protocol"]
        grid = open_grid(roots, self.scheme.variables, step=protocol["step"], mask=protocol["mask"])
        self.check_grid(grid)
        ends = _find_origins(grid, self.scheme.history, self.scheme.spacing, origins)
        horizon = horizon or self.scheme.horizon
        frames = [
            self._forecast_at(grid, ends[i : i + batch_size], horizon)
            for i in range(0, len(ends), batch_size)
        ]
        return self._dataset(grid, grid.times[ends], np.concatenate(frames))

    def _forecast_at(self, grid: Grid, ends: np.ndarray, horizon: int) -> np.ndarray:
        scheme = self.scheme
        history = scheme.history
        frames = np.stack([grid.read(end - history + 1, end + 1) for end in ends])
        for end, window in zip(ends, frames, strict=True):
            empty = ~np.isfinite(window).any(axis=(0, 2, 3))
            if empty.any():
                raise DataError(
                    f"'{grid.variables[int(empty.argmax())]}' has no value in the {history} frames "
                    f"up to {_text(grid.times[end])}: choose another --origins."
                )
        fitted = scheme.fit.apply(np.nan_to_num(frames))
        scaled = scheme.normalisation.apply(fitted)
        scaled[~scheme.fit.apply(np.isfinite(frames))] = 0.0
        background = None
        if scheme.climatology is not None:
            ahead = frames_ahead(history, scheme.leads, horizon)
            steps = np.arange(-history + 1, ahead + 1) * scheme.spacing
            fields = np.stack([scheme.climatology.at(grid.times[end] + steps) for end in ends])
            background = torch.from_numpy(scheme.normalisation.apply(scheme.fit.apply(fields)))
        return self.forecast(torch.from_numpy(scaled), background, horizon)

    def _dataset(self, grid: Grid, origins: np.ndarray, frames: np.ndarray) -> xr.Dataset:
        scheme = self.scheme
        _, row, column = grid.dims
        leads = np.arange(1, frames.shape[1] + 1) * scheme.spacing
        dims = ("time", "lead", row, column)
        fields = {}
        for index, name in enumerate(scheme.variables):
            attrs = {**grid.attrs.get(name, {}), "units": scheme.units[index]}
            fields[name.replace("@", "_")] = (dims, frames[:, :, index], attrs)
        # CF: numbers with units rather than time deltas, so that every reader shows hours.
        hours = leads / np.timedelta64(1, "h")
        coordinates: dict[str, Any] = {
            "time": ("time", origins, {"standard_name": "forecast_reference_time"}),
            "lead": (
                "lead",
                hours,
                {"standard_name": "forecast_period", "units": "hours", "long_name": "lead time"},
            ),
            "valid_time": (
                ("time", "lead"),
                origins[:, None] + leads[None],
                {"standard_name": "time", "long_name": "time of validity"},
            ),
        }
        for axis, (dim, values) in enumerate(((row, grid.latitude), (column, grid.longitude))):
            if values is not None:
                kept = scheme.fit.coordinates(values, axis)
                coordinates[dim] = (dim, kept, _axis_attrs(axis, grid.attrs.get(dim, {})))
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        model = self.config["model"]["name"]
        attrs = {
            "Conventions": "CF-1.10",
            "title": f"Forecast by {model}",
            "source": f"crossband {__version__}, model {model}",
            "history": f"{now}: crossband spatiotemporal predict with {self.path.name}",
        }
        return xr.Dataset(fields, coordinates, attrs)


def write_netcdf(dataset: xr.Dataset, path: str | Path) -> None:
    """Write a data set atomically, compressed, times as hours since the first origin."""
    start = str(dataset.time.values[0].astype("datetime64[h]")).replace("T", " ")
    times = {"units": f"hours since {start}:00:00", "dtype": "float64"}
    encoding: dict[str, Any] = {"time": times, "valid_time": times}
    for name in dataset.data_vars:
        encoding[name] = {"zlib": True, "complevel": 4, "dtype": "float32"}
    with atomic_path(path) as temporary:
        try:
            dataset.to_netcdf(temporary, engine="netcdf4", encoding=encoding)
        except RuntimeError as error:  # how netCDF4 reports a full disk
            raise OSError(None, str(error)) from error


def predict(config: PredictConfig) -> int | None:
    """Run `crossband spatiotemporal predict`."""
    if not config.inputs:
        raise ConfigError("predict needs inputs: NetCDF files, Zarr stores or folders.")
    for name, suffixes in (("plot", (".gif", ".png")), ("error_plot", (".png",))):
        value = getattr(config, name)
        if value and Path(value).suffix not in suffixes:
            raise ConfigError(f"--{name} {value}: name a file ending in {' or '.join(suffixes)}.")
    forecaster = Forecaster.load(config.weights, device=config.device, precision=config.precision)
    files = [str(p) for p in find_files(config.inputs)]
    jobs = [files] if config.combine else [[file] for file in files]
    out = Path(config.out)
    single = out.suffix == ".nc"
    if single and len(jobs) > 1:
        raise ConfigError(
            f"--out {out} names one file but there are {len(jobs)} inputs: name a folder, or add "
            "--combine to read them as one data set."
        )
    if not single and len(jobs) > 1 and (config.plot or config.error_plot):
        raise ConfigError("--plot and --error-plot take one input: name one file, or --combine.")

    def forecast(job: list[str]) -> dict[str, Any]:
        target = out if single else out / f"{Path(job[0]).stem}.nc"
        dataset = forecaster.predict(
            job, origins=config.origins, horizon=config.horizon, batch_size=config.batch_size
        )
        write_netcdf(dataset, target)
        _pictures(config, forecaster, job, dataset)
        return _entry(job, target, dataset)

    return predict_each(
        jobs,
        forecast,
        name=lambda job: job[0],
        describe=_sentence,
        options=config,
        folder=None if single else out,
        key="forecasts",
    )


def _pictures(
    config: PredictConfig, forecaster: Forecaster, job: list[str], dataset: xr.Dataset
) -> None:
    from crossband.spatiotemporal import plots

    if config.plot:
        plots.write_map(dataset, config.plot)
    if config.error_plot:
        truth = _truth(forecaster, job, dataset)
        plots.write_error_by_lead(dataset, truth, config.error_plot)
    if not config.quiet and not config.json:
        for path in filter(None, (config.plot, config.error_plot)):
            print(f"picture: {path}")


def _truth(forecaster: Forecaster, job: list[str], dataset: xr.Dataset) -> np.ndarray:
    """Return the observed fields (n, T', C, H, W) at the forecast times; NaN where there are none.

    Raises:
        DataError: none of the times was observed.
    """
    protocol = forecaster.config["protocol"]
    grid = open_grid(job, forecaster.scheme.variables, step=protocol["step"], mask=protocol["mask"])
    valid = dataset.valid_time.values
    truth = np.full((*valid.shape, *grid.shape), np.nan, np.float32)
    for index in np.ndindex(valid.shape):
        place = int(np.searchsorted(grid.times, valid[index]))
        if place < len(grid) and grid.times[place] == valid[index]:
            truth[index] = grid.read(place, place + 1)[0]
    if not np.isfinite(truth).any():
        raise DataError(
            "The inputs hold no field at any forecast time, so there is no error to plot: choose "
            "an earlier --origins, or leave out --error-plot."
        )
    fit = forecaster.scheme.fit
    return fit.invert(fit.apply(truth))


def _find_origins(
    grid: Grid, history: int, spacing: np.timedelta64, origins: Sequence[str]
) -> np.ndarray:
    """Return the indices of the last observed frames.

    Raises:
        DataError: fewer frames than the history, a gap in it, or an origin that is not there.
    """
    if len(grid) < history:
        raise DataError(
            f"The data hold {len(grid)} time(s), the network needs {history} before its forecast: "
            "give more data."
        )
    even = np.diff(grid.times) == spacing
    run = np.concatenate([[0], np.cumsum(~even)])
    possible = np.arange(history - 1, len(grid))
    whole = possible[run[possible] == run[possible - history + 1]]
    if origins == ["last"] or tuple(origins) == ("last",):
        if len(grid) - 1 not in whole:
            raise DataError(
                f"The last {history} frames are not evenly spaced: fill the gap before "
                f"{_text(grid.times[-1])}, or name earlier --origins."
            )
        return np.array([len(grid) - 1])
    if list(origins) == ["all"]:
        if not len(whole):
            raise DataError(f"There are no {history} evenly spaced frames: fill the gaps.")
        return whole
    found = []
    for text in origins:
        try:
            time = np.datetime64(text).astype("datetime64[ns]")
        except ValueError as error:
            raise ConfigError(
                f"--origins {text!r} is neither last, all nor a date like 2019-03-25T12."
            ) from error
        place = int(np.searchsorted(grid.times, time))
        if place >= len(grid) or grid.times[place] != time or place not in whole:
            raise DataError(
                f"--origins {text}: the data (from {_text(grid.times[0])} to "
                f"{_text(grid.times[-1])}) do not hold this time with {history - 1} evenly spaced "
                "frames before it."
            )
        found.append(place)
    return np.array(found)


def _axis_attrs(axis: int, given: dict[str, Any]) -> dict[str, Any]:
    name, units = (("latitude", "degrees_north"), ("longitude", "degrees_east"))[axis]
    return {"standard_name": name, "units": units, **given}


def _entry(job: list[str], target: Path, dataset: xr.Dataset) -> dict[str, Any]:
    return {
        "input": job if len(job) > 1 else job[0],
        "output": str(target),
        "origins": [_text(t) for t in dataset.time.values],
        "leads": int(dataset.sizes["lead"]),
        "last_valid": _text(dataset.valid_time.values[-1, -1]),
    }


def _sentence(entry: dict[str, Any]) -> str:
    origins = entry["origins"]
    count = f"{len(origins)} forecasts" if len(origins) > 1 else "forecast"
    return (
        f"{entry['output']}: {count} from {origins[0]}, {entry['leads']} leads, "
        f"to {entry['last_valid']}"
    )


def _hours(spacing: np.timedelta64) -> float:
    return float(spacing / np.timedelta64(1, "h"))


def _text(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]"))
