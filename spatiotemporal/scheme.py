"""From options to data and network: what training, evaluation and forecasting share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossband.shared.checkpoints import load_checkpoint, load_state
from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.registry import create_model, get_entry
from crossband.spatiotemporal.config import DataConfig, SourceConfig, TrainConfig
from crossband.spatiotemporal.data.fitting import Fit, fit_grid
from crossband.spatiotemporal.data.grid import Grid, open_grid
from crossband.spatiotemporal.data.normalisation import Climatology, Normalisation
from crossband.spatiotemporal.data.windows import GridWindows, Part, split_times
from crossband.spatiotemporal.forecast_network import ForecastNetwork, LinearSkip, frames_ahead


def open_source(source: SourceConfig, variables: Sequence[str], step: int) -> Grid:
    """Open the data that options name; kept in memory where they are small enough."""
    grid = open_grid(source.root, variables, step=step, mask=source.mask)
    if grid.nbytes <= source.cache_gb * 1e9:
        grid.load()
    return grid


@dataclass(frozen=True)
class Scheme:
    """What a forecast is made with besides the network; stored in its checkpoint.

    Attributes:
        variables: Names.
        units: One per variable.
        spacing: Distance of frames.
        history: Frames seen.
        horizon: Frames forecast.
        leads: Frames of one pass of the network that training compared.
        fit: Crop or padding of the grid.
        normalisation: Scaling.
        climatology: Background, or None.
    """

    variables: tuple[str, ...]
    units: tuple[str, ...]
    spacing: np.timedelta64
    history: int
    horizon: int
    leads: int
    fit: Fit
    normalisation: Normalisation
    climatology: Climatology | None

    def windows(self, grid: Grid, part: Part, horizon: int, *, training: bool = False):
        """Return the windows of a part, with background enough for `horizon` frames."""
        return GridWindows(
            grid,
            part,
            self.history,
            horizon,
            self.normalisation,
            self.fit,
            self.climatology,
            training=training,
            background_frames=frames_ahead(self.history, self.leads, horizon),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores; the climatology is a tensor of the network."""
        return {
            "variables": list(self.variables),
            "units": list(self.units),
            "spacing_seconds": self.spacing / np.timedelta64(1, "s"),
            "history": self.history,
            "horizon": self.horizon,
            "leads": self.leads,
            "grid": list(self.fit.source),
            "fitted_grid": list(self.fit.target),
            "normalisation": self.normalisation.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], climatology: np.ndarray | None) -> Scheme:
        """Read what `to_dict` wrote."""
        spacing = np.timedelta64(round(values["spacing_seconds"] * 1e9), "ns")
        return cls(
            tuple(values["variables"]),
            tuple(values["units"]),
            spacing,
            values["history"],
            values["horizon"],
            values["leads"],
            Fit(tuple(values["grid"]), tuple(values["fitted_grid"])),
            Normalisation.from_dict(values["normalisation"]),
            None if climatology is None else Climatology.from_fields(climatology, spacing),
        )


def split(grid: Grid, data: DataConfig) -> dict[str, Part]:
    """Split a grid's times as options say."""
    dates = {"train": data.train, "val": data.val, "test": data.test}
    return split_times(grid.times, data.split, dates)


def make_scheme(grid: Grid, train: Part, config: TrainConfig) -> Scheme:
    """Fit scaling and background on the training part."""
    data = config.data
    if data.history < 1 or data.horizon < 1:
        raise ConfigError("--data.history and --data.horizon must be at least 1.")
    patch_size = int(config.arguments.get("patch_size", _default_patch_size(config.model)))
    fit = fit_grid(grid.shape[1:], patch_size, data.fit)
    return Scheme(
        grid.variables,
        grid.units,
        grid.spacing,
        data.history,
        data.horizon,
        min(data.history, data.horizon),
        fit,
        Normalisation.fit(grid, train.start, train.stop),
        Climatology.fit(grid, train.start, train.stop) if config.background else None,
    )


def model_arguments(scheme: Scheme, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the network's arguments: those given, and what the data determine."""
    channels = len(scheme.variables)
    height, width = scheme.fit.target
    determined = {
        "history": scheme.history,
        "in_channels": 3 * channels if scheme.climatology else channels,
        "out_channels": channels,
        "height": height,
        "width": width,
    }
    for name, value in determined.items():
        if name in arguments and arguments[name] != value:
            raise ConfigError(
                f"--arguments {name}={arguments[name]} contradicts the data, which say {value}: "
                "leave it out."
            )
    return {**arguments, **determined}


def build_network(
    name: str, arguments: dict[str, Any], scheme: Scheme, *, linear_skip: bool
) -> ForecastNetwork:
    """Build the network with what it needs around it; the skip is not fitted yet."""
    skip = None
    if linear_skip:
        skip = LinearSkip(scheme.history, scheme.leads, len(scheme.variables))
    climatology = scheme.climatology
    return ForecastNetwork(
        create_model(name, **arguments),
        scheme.history,
        scheme.horizon,
        leads=scheme.leads,
        climatology=None if climatology is None else torch.from_numpy(climatology.fields()),
        skip=skip,
    )


def load_network(path: str | Path) -> tuple[ForecastNetwork, Scheme, dict[str, Any]]:
    """Rebuild network and scheme from a checkpoint alone.

    Raises:
        CheckpointError: missing, foreign or damaged, or not of a forecast.
    """
    checkpoint = load_checkpoint(path)
    config = checkpoint.config
    if config.get("task") != "forecasting" or "scheme" not in config:
        raise CheckpointError(
            f"{path} is a checkpoint of the task '{config.get('task')}' without normalisation and "
            "dates: forecasts need one that `crossband spatiotemporal train` wrote."
        )
    climatology = checkpoint.state_dict.get("climatology")
    scheme = Scheme.from_dict(
        config["scheme"], None if climatology is None else climatology.numpy()
    )
    network = build_network(
        config["model"]["name"],
        config["model"]["arguments"],
        scheme,
        linear_skip=config["linear_skip"],
    )
    load_state(network, checkpoint.state_dict, path)
    return network.eval(), scheme, config


def data_digest(grid: Grid) -> str:
    """Return the sha256 of the list of files with their sizes, variables and times."""
    digest = hashlib.sha256()
    for path in sorted({s.path for segments in grid.segments for s in segments}):
        place = Path(path)
        size = place.stat().st_size if place.is_file() else 0
        digest.update(f"{place.name} {size}\n".encode())
    digest.update(" ".join(grid.variables).encode())
    digest.update(grid.times.tobytes())
    return digest.hexdigest()


def _default_patch_size(model: str) -> int:
    import inspect

    from crossband.shared.cli.domain import load_object

    entry = get_entry(model)
    if "patch_size" in entry.arguments:
        return entry.arguments["patch_size"]
    parameter = inspect.signature(load_object(entry.target)).parameters.get("patch_size")
    return parameter.default if parameter else 1
