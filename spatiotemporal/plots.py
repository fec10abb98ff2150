"""Pictures of forecasts: maps, animations, errors by lead time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import xarray as xr

from crossband.shared.files import atomic_path

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402 - after the backend is chosen
from matplotlib.figure import Figure  # noqa: E402

if TYPE_CHECKING:
    from crossband.spatiotemporal.evaluation import Evaluation

_COLOURS = {"network": "#0b6e4f", "persistence": "#d1495b", "climatology": "#8d99ae",
            "ridge": "#edae49"}  # fmt: skip


@dataclass(frozen=True)
class Example:
    """One forecast beside what happened."""

    title: str
    forecast: np.ndarray  # (T', H, W)
    truth: np.ndarray  # (T', H, W)
    lead_hours: np.ndarray
    unit: str
    north_up: bool  # the first row is the northern one


def error_curves(evaluation: Evaluation, variable: int) -> Figure:
    """Draw RMSE by lead for the network and its rivals, with intervals."""
    from crossband.spatiotemporal.metrics import interval

    figure, axis = plt.subplots(figsize=(7.5, 4))
    for name, scores in evaluation.scores.items():
        found = interval(scores, "rmse", evaluation.weights)
        colour = _COLOURS.get(name)
        axis.plot(evaluation.lead_hours, found.value[:, variable], "o-", label=name, color=colour)
        axis.fill_between(
            evaluation.lead_hours,
            found.low[:, variable],
            found.high[:, variable],
            alpha=0.15,
            color=colour,
            lw=0,
        )
    unit = evaluation.units[variable]
    axis.set(xlabel="lead time (h)", ylabel=f"RMSE{f' ({unit})' if unit else ''}", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return figure


def training_curves(history: list[dict[str, float]]) -> Figure:
    """Draw training and validation loss by epoch."""
    figure, axis = plt.subplots(figsize=(7.5, 3))
    epochs = [row["epoch"] for row in history]
    axis.plot(epochs, [row["train_loss"] for row in history], label="training")
    axis.plot(epochs, [row["val_loss"] for row in history], label="validation")
    axis.set(xlabel="epoch", ylabel="mean squared error")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return figure


def example_maps(example: Example, columns: int = 4) -> Figure:
    """Draw truth, forecast and error at a few leads."""
    leads = np.unique(np.linspace(0, len(example.lead_hours) - 1, columns).round().astype(int))
    low, high = np.nanpercentile(np.concatenate([example.truth, example.forecast]), (1, 99))
    error = example.forecast - example.truth
    bound = float(np.nanpercentile(np.abs(error), 99)) or 1.0
    origin = "upper" if example.north_up else "lower"
    figure, axes = plt.subplots(
        3, len(leads), figsize=(2.6 * len(leads), 6), squeeze=False, layout="constrained"
    )
    for column, lead in enumerate(leads):
        rows = (
            ("observed", example.truth[lead], {"vmin": low, "vmax": high, "cmap": "viridis"}),
            ("forecast", example.forecast[lead], {"vmin": low, "vmax": high, "cmap": "viridis"}),
            ("error", error[lead], {"vmin": -bound, "vmax": bound, "cmap": "RdBu_r"}),
        )
        for row, (name, field, style) in enumerate(rows):
            axis = axes[row, column]
            image = axis.imshow(field, origin=origin, **style)
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(f"+{example.lead_hours[lead]:g} h")
            if column == 0:
                axis.set_ylabel(name)
            if row and column == len(leads) - 1:  # one bar for both fields, one for the error
                figure.colorbar(image, ax=axes[:2] if row == 1 else axes[2], label=example.unit)
    return figure


def write_map(dataset: xr.Dataset, path: str | Path) -> None:
    """Write the last forecast of a data set: an animation (.gif) or all leads (.png)."""
    path = Path(path)
    name = next(iter(dataset.data_vars))
    fields = dataset[name].isel(time=-1)
    low, high = np.nanpercentile(fields.values, (1, 99))
    style = {"vmin": low, "vmax": high, "cmap": "viridis", **_extent(fields)}
    if path.suffix == ".png":
        count = fields.sizes["lead"]
        columns = min(4, count)
        rows = -(-count // columns)
        figure, axes = plt.subplots(
            rows, columns, figsize=(3 * columns, 2.4 * rows), squeeze=False, layout="constrained"
        )
        for axis in axes.flat[count:]:
            axis.axis("off")
        for lead, axis in zip(range(count), axes.flat, strict=False):
            image = axis.imshow(fields.values[lead], **style)
            axis.set_title(f"+{float(fields.lead[lead]):g} h", fontsize=9)
        figure.colorbar(image, ax=axes, label=fields.attrs.get("units", ""), shrink=0.7)
        figure.suptitle(f"{name} from {_text(fields.time.values)}")
        _save(figure, path)
        return
    _animate(fields, path, style)


def _animate(fields: xr.DataArray, path: Path, style: dict[str, Any]) -> None:
    from matplotlib.animation import FuncAnimation, PillowWriter

    figure, axis = plt.subplots(figsize=(6, 4.2), layout="constrained")
    image = axis.imshow(fields.values[0], **style)
    figure.colorbar(image, ax=axis, label=fields.attrs.get("units", ""), shrink=0.8)
    axis.set(xlabel=fields.dims[-1], ylabel=fields.dims[-2])

    def draw(lead: int) -> list[Any]:
        image.set_data(fields.values[lead])
        valid = _text(fields.valid_time.values[lead])
        axis.set_title(f"{fields.name}  +{float(fields.lead[lead]):g} h  valid {valid}")
        return [image]

    animation = FuncAnimation(figure, draw, frames=fields.sizes["lead"])
    with atomic_path(path) as temporary:
        animation.save(temporary, writer=PillowWriter(fps=4), dpi=90)
    plt.close(figure)


def write_error_by_lead(dataset: xr.Dataset, truth: np.ndarray, path: str | Path) -> None:
    """Write RMSE by lead of a forecast data set against the truth (n, T', C, H, W) as .png."""
    from crossband.spatiotemporal.metrics import ForecastScores

    names = tuple(dataset.data_vars)
    forecast = np.stack([dataset[name].values for name in names], axis=2)
    row = dataset[names[0]].dims[-2]
    latitude = dataset[row].values if row in dataset.coords and row.startswith("lat") else None
    scores = ForecastScores(truth.shape[1], names, latitude, truth.shape[3:])
    scores.update(forecast, truth)
    rmse = scores.scores()["rmse"]
    figure, axes = plt.subplots(
        1, len(names), figsize=(5.5 * len(names), 3.6), squeeze=False, layout="constrained"
    )
    for index, (name, axis) in enumerate(zip(names, axes.flat, strict=True)):
        unit = dataset[name].attrs.get("units", "")
        axis.plot(dataset.lead.values, rmse[:, index], "o-", color=_COLOURS["network"])
        axis.set(
            title=f"{name}, {len(forecast)} forecast(s)",
            xlabel="lead time (h)",
            ylabel=f"RMSE{f' ({unit})' if unit else ''}",
            ylim=(0, None),
        )
        axis.grid(alpha=0.3)
    _save(figure, Path(path))


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def _extent(fields: xr.DataArray) -> dict[str, Any]:
    """Return origin and extent of a map, with north up where there are coordinates."""
    row, column = fields.dims[-2:]
    if row not in fields.coords or column not in fields.coords:
        return {"origin": "upper"}
    y, x = fields[row].values, fields[column].values
    upper = y[0] > y[-1]
    bottom, top = (y[-1], y[0]) if upper else (y[0], y[-1])
    return {
        "origin": "upper" if upper else "lower",
        "extent": (float(x[0]), float(x[-1]), float(bottom), float(top)),
        "aspect": "auto",
    }


def _text(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]")).replace("T", " ")
