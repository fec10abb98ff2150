"""`crossband spatiotemporal evaluate`: scores by lead beside rivals, with intervals."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from crossband.shared.cli.output import format_table, print_json
from crossband.shared.environment import machine
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.reports.html import Report
from crossband.shared.training.run_folder import RunFolder
from crossband.spatiotemporal import plots
from crossband.spatiotemporal.baselines import create_baseline
from crossband.spatiotemporal.config import EvaluateConfig
from crossband.spatiotemporal.data.grid import Grid
from crossband.spatiotemporal.data.normalisation import DAY
from crossband.spatiotemporal.data.windows import GridWindows, Part, between
from crossband.spatiotemporal.forecast import Forecaster
from crossband.spatiotemporal.metrics import (
    ForecastScores,
    block_resamples,
    difference,
    interval,
)
from crossband.spatiotemporal.scheme import data_digest, open_source

NETWORK = "network"
EXPLANATION = (
    "rmse, mae and acc are WeatherBench's (weighted by the cosine of latitude; anomalies of acc "
    "from the time mean of the scored fields); mse_plain, mae_plain and rmse_plain are OpenSTL's "
    "(plain means). Intervals: 95 %, circular block bootstrap over windows."
)


@dataclass
class Evaluation:
    """Scores of the network and its rivals, and the windows to show."""

    scores: dict[str, ForecastScores]
    weights: np.ndarray
    lead_hours: np.ndarray
    variables: tuple[str, ...]
    units: tuple[str, ...]
    protocol: dict[str, Any]
    worst: list[int]
    examples: dict[str, plots.Example] = field(default_factory=dict)

    def rows(self, variable: int = 0) -> list[dict[str, Any]]:
        """Return one row per lead: RMSE of all, and the difference to the best rival."""
        rows = []
        own = interval(self.scores[NETWORK], "rmse", self.weights)
        rivals = {n: s for n, s in self.scores.items() if n != NETWORK}
        gaps = {
            n: difference(self.scores[NETWORK], s, "rmse", self.weights) for n, s in rivals.items()
        }
        values = {n: s.scores()["rmse"][:, variable] for n, s in rivals.items()}
        for lead, hours in enumerate(self.lead_hours):
            at = (lead, variable)
            row: dict[str, Any] = {
                "lead_h": float(hours),
                NETWORK: float(own.value[at]),
                "95 %": _range(own.low[at], own.high[at], "{:.3g}-{:.3g}"),
            }
            row |= {name: float(value[lead]) for name, value in values.items()}
            if values:
                best = min(values, key=lambda name: values[name][lead])
                gap = gaps[best]
                row["best rival"] = best
                row["difference"] = float(gap.value[at])
                row["difference 95 %"] = _range(gap.low[at], gap.high[at], "{:+.3f} to {:+.3f}")
                row["verdict"] = _verdict(gap.low[at], gap.high[at])
            rows.append(row)
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able numbers."""
        result: dict[str, Any] = {"protocol": self.protocol, "scores": {}, "differences": {}}
        for model, scores in self.scores.items():
            own = result["scores"].setdefault(model, {})
            for name in scores.scores():
                found = interval(scores, name, self.weights)
                for index, variable in enumerate(self.variables):
                    own.setdefault(variable, {})[name] = _lists(found, index)
            if model != NETWORK:
                gap = difference(self.scores[NETWORK], scores, "rmse", self.weights)
                result["differences"][f"rmse {NETWORK} - {model}"] = {
                    variable: _lists(gap, index) for index, variable in enumerate(self.variables)
                }
        return result


def evaluate(config: EvaluateConfig) -> None:
    """Run the command: score, print the table, write metrics.json and report.html."""
    evaluation = evaluate_checkpoint(config)
    default = Path(config.weights).parent / f"evaluation-{config.part}"
    write_evaluation(evaluation, RunFolder(config.out or default), config)


def evaluate_checkpoint(config: EvaluateConfig, grid: Grid | None = None) -> Evaluation:
    """Score a checkpoint or exported file.

    Args:
        config: Options.
        grid: The data if they are open already.

    Raises:
        CrossbandError: weights or data that do not fit; a part without windows.
    """
    forecaster = Forecaster.load(config.weights, device=config.device, precision=config.precision)
    scheme, protocol = forecaster.scheme, forecaster.config["protocol"]
    if grid is None:
        source = replace(config.data, mask=config.data.mask or protocol["mask"])
        grid = open_source(source, scheme.variables, protocol["step"])
    forecaster.check_grid(grid)
    horizon = config.horizon or scheme.horizon
    part = _part(grid, config, protocol)
    windows = scheme.windows(grid, part, horizon)
    train = _part_between(grid, protocol["parts"]["train"])
    block = config.block or max(1, int(DAY // scheme.spacing))
    weights = block_resamples(len(windows), block, config.resamples, config.seed)
    rivals, left_out = {}, []
    for name in config.baselines:
        rival = create_baseline(name)
        if train is None and name != "persistence":
            left_out.append(name)
            continue
        rival.fit(grid, train or part, scheme.history, horizon)
        rivals[name] = rival

    cut, latitude = _scored_region(scheme.fit, grid)
    shape = tuple(s.stop - s.start for s in cut)
    names = [NETWORK, *rivals]
    scores = {n: ForecastScores(horizon, scheme.variables, latitude, shape) for n in names}
    climatology = _time_mean(grid, part)[:, cut[0], cut[1]]
    errors = []
    loader = DataLoader(
        windows, batch_size=config.loader.batch_size, num_workers=config.loader.num_workers
    )
    for batch in loader:
        index = batch["index"].numpy()
        predicted = forecaster.forecast(batch["image"], batch.get("background"), horizon)
        frames, truth = _frames(windows, index)
        truth = truth[..., cut[0], cut[1]]
        scores[NETWORK].update(predicted, truth, climatology=climatology)
        with np.errstate(invalid="ignore"):
            wrong = np.where(np.isfinite(truth), (predicted - truth) ** 2, 0.0)
        errors.append(wrong.mean(axis=(1, 2, 3, 4)))
        for name, rival in rivals.items():
            other = rival.predict(frames, windows.origins[index])[..., cut[0], cut[1]]
            scores[name].update(other, truth, climatology=climatology)
    order = np.argsort(np.concatenate(errors))
    evaluation = Evaluation(
        scores=scores,
        weights=weights,
        lead_hours=np.arange(1, horizon + 1) * (scheme.spacing / np.timedelta64(1, "h")),
        variables=scheme.variables,
        units=scheme.units,
        protocol={
            "weights": str(config.weights),
            "model": forecaster.config["model"]["name"],
            "part": config.part if not config.between else " to ".join(config.between),
            "first": part.first,
            "last": part.last,
            "windows": len(windows),
            "history": scheme.history,
            "horizon": horizon,
            "trained_on": protocol["parts"]["train"],
            "validated_on": protocol["parts"]["val"],
            "selection": protocol["selection"],
            "weighting": "cos(latitude)" if latitude is not None else "none (no latitudes)",
            "bootstrap": {"block_windows": block, "resamples": len(weights)},
            "fit": protocol["fit"],
            "precision": config.precision,
            "baselines_left_out_without_training_data": left_out,
            "data_sha256": data_digest(grid),
            "explanation": EXPLANATION,
            "machine": machine(),
        },
        worst=[int(i) for i in order[::-1][:5]],
    )
    for name, place in (("median window", order[len(order) // 2]), ("worst window", order[-1])):
        evaluation.examples[name] = _example(forecaster, windows, int(place), cut)
    return evaluation


def write_evaluation(
    evaluation: Evaluation,
    folder: RunFolder,
    config: EvaluateConfig,
    history: list[dict[str, float]] | None = None,
) -> None:
    """Write metrics.json and report.html; print the table."""
    result = evaluation.to_dict()
    if history:
        result["training"] = history
    folder.write_results(result)
    _report(evaluation, history).write(folder.report)
    if config.json:
        print_json(result)
        return
    if not config.quiet:
        print(protocol_line(evaluation.protocol))
    for index, variable in enumerate(evaluation.variables):
        rows = evaluation.rows(index)
        unit = f" in {evaluation.units[index]}" if evaluation.units[index] else ""
        print(f"\n{variable}: RMSE{unit} by lead ({evaluation.protocol['weighting']} weighting)")
        print(format_table(list(rows[0]), [list(row.values()) for row in rows]))
    if not config.quiet:
        print(f"\nreport: {folder.report}")


def protocol_line(protocol: dict[str, Any]) -> str:
    """Return the protocol in a sentence."""
    boot = protocol["bootstrap"]
    line = (
        f"{protocol['model']} on the {protocol['part']} part, {protocol['first']} to "
        f"{protocol['last']}: {protocol['windows']} windows of {protocol['history']} + "
        f"{protocol['horizon']} frames; trained on {' to '.join(protocol['trained_on'])}, "
        f"validated on {' to '.join(protocol['validated_on'])} (weights kept: "
        f"{protocol['selection']}); "
    )
    line += (
        f"95 % intervals by circular block bootstrap, blocks of {boot['block_windows']} windows, "
        f"{boot['resamples']} resamples."
        if boot["resamples"]
        else f"too few windows for intervals (less than three blocks of {boot['block_windows']}; "
        "--block takes shorter ones)."
    )
    left_out = protocol["baselines_left_out_without_training_data"]
    if left_out:
        line += (
            f" Left out, because the data do not hold the training dates: {', '.join(left_out)}."
        )
    return line


def _report(evaluation: Evaluation, history: list[dict[str, float]] | None) -> Report:
    protocol = evaluation.protocol
    report = Report(f"Forecasts by {protocol['model']}", protocol_line(protocol))
    for index, variable in enumerate(evaluation.variables):
        report.heading(f"{variable}: error by lead time")
        report.figure(plots.error_curves(evaluation, index), "Shading: 95 % interval.")
        report.table(evaluation.rows(index), "RMSE. " + protocol["explanation"])
    for name, example in evaluation.examples.items():
        report.heading(f"{name[0].upper()}{name[1:]}")
        report.figure(plots.example_maps(example), example.title)
    if history:
        report.heading("Training")
        report.figure(plots.training_curves(history), "Loss in normalised units.")
    report.heading("Protocol")
    report.table([{"item": k, "value": str(v)} for k, v in protocol.items()])
    return report


def _part(grid: Grid, config: EvaluateConfig, protocol: dict[str, Any]) -> Part:
    if config.between:
        if len(config.between) != 2:
            raise ConfigError("--between takes a first and a last date.")
        dates = config.between
    elif config.part == "all":
        dates = [_text(grid.times[0]), _text(grid.times[-1])]
    else:
        dates = protocol["parts"][config.part]
    part = _part_between(grid, dates)
    if part is None:
        raise DataError(
            f"The data ({_text(grid.times[0])} to {_text(grid.times[-1])}) hold nothing of the "
            f"part to score ({dates[0]} to {dates[1]}): choose --part all or --between."
        )
    return part


def _part_between(grid: Grid, dates: list[str]) -> Part | None:
    start, stop = between(grid.times, *dates)
    if stop <= start:
        return None
    return Part(start, stop, _text(grid.times[start]), _text(grid.times[stop - 1]))


def _scored_region(fit: Any, grid: Grid) -> tuple[tuple[slice, slice], np.ndarray | None]:
    """Return the rows and columns that the network forecasts, and their latitudes."""
    rows = fit.coordinates(np.arange(grid.shape[1]), 0)
    columns = fit.coordinates(np.arange(grid.shape[2]), 1)
    cut = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return cut, None if grid.latitude is None else grid.latitude[cut[0]]


def _time_mean(grid: Grid, part: Part) -> np.ndarray:
    """Return the mean field of a part (C, H, W), ignoring what is not observed."""
    total, count = np.zeros(grid.shape), np.zeros(grid.shape)
    for _, frames in grid.chunks(part.start, part.stop):
        total += np.nan_to_num(frames).sum(axis=0, dtype=np.float64)
        count += np.isfinite(frames).sum(axis=0)
    return total / np.maximum(count, 1)


def _frames(windows: GridWindows, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return history and truth of windows in physical units, NaN where not observed."""
    length = windows.history + windows.horizon
    starts = windows.starts[index]
    frames = np.stack([windows.grid.read(int(s), int(s) + length) for s in starts])
    return frames[:, : windows.history], frames[:, windows.history :]


def _example(
    forecaster: Forecaster, windows: GridWindows, index: int, cut: tuple[slice, slice]
) -> plots.Example:
    item = {name: value[None] for name, value in windows[index].items()}
    forecast = forecaster.forecast(item["image"], item.get("background"), windows.horizon)
    _, truth = _frames(windows, np.array([index]))
    spacing = float(windows.grid.spacing / np.timedelta64(1, "h"))
    return plots.Example(
        title=f"{windows.grid.variables[0]}, forecast from {_text(windows.origins[index])}",
        forecast=forecast[0, :, 0],
        truth=truth[0, :, 0][..., cut[0], cut[1]],
        lead_hours=np.arange(1, windows.horizon + 1) * spacing,
        unit=windows.grid.units[0],
        north_up=windows.grid.latitude is None
        or bool(windows.grid.latitude[0] > windows.grid.latitude[-1]),
    )


def _range(low: float, high: float, form: str) -> str:
    return "-" if np.isnan(low) else form.format(low, high)


def _verdict(low: float, high: float) -> str:
    if np.isnan(low):
        return "too few windows"
    if high < 0:
        return "better"
    return "worse" if low > 0 else "not distinguishable"


def _lists(found: Any, variable: int) -> dict[str, list[float]]:
    return {
        "value": found.value[:, variable].tolist(),
        "low": found.low[:, variable].tolist(),
        "high": found.high[:, variable].tolist(),
    }


def _text(time: np.datetime64) -> str:
    return str(time.astype("datetime64[s]"))
