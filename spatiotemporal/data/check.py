"""`crossband spatiotemporal data check`: what the data are, and everything wrong with them.

A problem is what training would refuse or learn wrongly; a note is what it copes with: gaps,
repeated times, missing frames.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crossband.shared.cli.output import format_table, print_json
from crossband.shared.errors import EXIT_FAILED, EXIT_OK, ConfigError, CrossbandError, DataError
from crossband.shared.files import atomic_path
from crossband.spatiotemporal.config import CheckConfig
from crossband.spatiotemporal.data.grid import Grid, find_files, open_grid, variables_of
from crossband.spatiotemporal.data.normalisation import Normalisation
from crossband.spatiotemporal.data.windows import split_times, window_starts

LISTED = 8  # lines of one kind before "and so many more"
PATCH_SIZES = (2, 4, 8, 16)
# What stands for "missing" in files that do not declare it; beyond the last, any value does.
FILL_VALUES = (-999.0, -9999.0, -32767.0, -32768.0)
LARGEST = 1e15
COLDEST_MEAN = 100.0  # K; a lower mean is of another unit


def run(config: CheckConfig) -> int:
    """Run `data check`: print the report; the exit code is 1 if anything is wrong.

    Raises:
        CrossbandError: no file at all, or a picture that cannot be written.
    """
    if config.out and Path(config.out).suffix.lower() != ".png":
        raise ConfigError(f"--out {config.out} must be a PNG file: end its name in .png.")
    report, grid = check_data(config)
    if config.out and grid is not None:
        with atomic_path(config.out) as temporary:
            contact_sheet(grid).savefig(temporary, format="png", dpi=80)
        report["picture"] = config.out
    if config.json:
        print_json(report)
    else:
        print(describe(report))
    return EXIT_FAILED if report["problems"] else EXIT_OK


def check_data(config: CheckConfig) -> tuple[dict[str, Any], Grid | None]:
    """Read everything and tell what is there.

    A broken file is listed and left out, and the rest is checked as if it were not there.

    Returns:
        The report, JSON-able: `files` (path, variables, first and last time), `unused` (paths),
        `problems` (file or what, reason), and where anything could be read `variables`, `grid`,
        `times`, `notes`, `parts`; and the grid itself.

    Raises:
        DataError: no file at all.
    """
    data = config.data
    problems: list[dict[str, str]] = []
    good, unused = _sort_files(find_files(data.root), data.variables, data.mask, problems)
    report: dict[str, Any] = {"unused": [str(path) for path in unused], "problems": problems}
    while good:
        try:
            grid = open_grid(good, data.variables, step=data.step, mask=data.mask)
            if grid.nbytes <= data.cache_gb * 1e9:
                grid.load()
            values = _values(grid)
        except DataError as error:
            broken = _unreadable(good, data.variables)
            if not broken:  # each file by itself is in order, together they are not
                problems.append({"what": "the files together", "reason": str(error)})
                break
            problems += [{"what": str(p), "reason": reason} for p, reason in broken.items()]
            good = [path for path in good if path not in broken]
            continue
        report |= {"files": _files(grid), "variables": values}
        report |= {"grid": _grid(grid, problems), "times": _times(grid)}
        report["notes"] = [*grid.notes, *_value_notes(values)]
        problems += _value_problems(values)
        report["parts"] = _parts(grid, config, problems)
        return report, grid
    if not good and not problems:
        asked = ", ".join(data.variables) or "with a time, a row and a column dimension"
        problems.append({"what": "the data", "reason": f"no file holds a variable {asked}"})
    return report | {"files": [{"path": str(path)} for path in good]}, None


def describe(report: dict[str, Any]) -> str:
    """Return the report as text."""
    lines = [f"files      {len(report['files'])} read"]
    if report["unused"]:
        lines[0] += f", {len(report['unused'])} without the variables asked for"
    if "grid" in report:
        lines += _describe_grid(report)
    if report.get("parts"):
        rows = [
            [p["name"], p["first"], p["last"], p["frames"], p["windows"], p["lost_to_gaps"]]
            for p in report["parts"]
        ]
        headers = ["part", "first", "last", "frames", "windows", "lost to gaps"]
        lines += ["", format_table(headers, rows)]
    if "picture" in report:
        lines += ["", f"picture    {report['picture']}"]
    found = [f"PROBLEM    {p['what']}: {p['reason']}" for p in report["problems"]]
    lines += ["", *found] if found else ["", "nothing wrong was found"]
    return "\n".join(lines)


def _describe_grid(report: dict[str, Any]) -> list[str]:
    grid, times = report["grid"], report["times"]
    files = [
        f"           {Path(file['path']).name}: {', '.join(file['variables'])}, "
        f"{file['first']} to {file['last']}"
        for file in report["files"]
    ]
    tiles = ", ".join(map(str, grid["patch_sizes"]))
    gaps = f"{len(times['gaps'])} gap(s)" if times["gaps"] else "no gaps"
    lines = [
        *_shortened(files),
        f"grid       {grid['height']} x {grid['width']}{_extent(grid)}",
        f"           patch sizes that tile it: {tiles}"
        if tiles
        else "           no patch size tiles it: train with --data.fit pad or crop",
        f"times      {times['first']} to {times['last']}: {times['count']} frames, "
        f"every {_duration(times['spacing_seconds'])}, {gaps}",
        *_shortened([_gap_line(gap) for gap in times["gaps"]]),
        *(f"note       {note}" for note in report["notes"]),
    ]
    headers = ["variable", "unit", "min", "mean", "max", "std", "missing", "empty frames"]
    rows = [
        [v["name"], v["unit"], v["min"], v["mean"], v["max"], v["std"],
         f"{100 * v['missing']:.3g} %", v["empty_frames"]]
        for v in report["variables"]
    ]  # fmt: skip
    return [*lines, "", format_table(headers, rows)]


def contact_sheet(grid: Grid) -> Figure:
    """Draw first, middle and last frame and the standard deviation over time, per variable."""
    places = (0, len(grid) // 2, len(grid) - 1)
    frames = np.concatenate([grid.read(i, i + 1) for i in places])
    spread = std_over_time(grid)
    height = 0.6 + float(np.clip(3.2 * grid.shape[1] / grid.shape[2], 1.2, 4.5))
    figure = Figure(figsize=(15, height * grid.shape[0]), layout="constrained")
    axes = figure.subplots(grid.shape[0], 4, squeeze=False)
    for row, (name, unit) in enumerate(zip(grid.variables, grid.units, strict=True)):
        seen = frames[:, row][np.isfinite(frames[:, row])]
        low, high = (seen.min(), seen.max()) if len(seen) else (0, 1)
        for axis, frame, place in zip(axes[row, :3], frames[:, row], places, strict=True):
            image = _map(axis, grid, frame, vmin=low, vmax=high)
            axis.set_title(f"{name}  {_text(grid.times[place])}", fontsize=9)
        figure.colorbar(image, ax=axes[row, :3], label=unit)
        image = _map(axes[row, 3], grid, spread[row], cmap="magma")
        axes[row, 3].set_title(f"{name}  standard deviation over time", fontsize=9)
        figure.colorbar(image, ax=axes[row, 3], label=unit)
    return figure


def _map(axis: Axes, grid: Grid, frame: np.ndarray, **style: Any) -> Any:
    """Draw one field, in its coordinates where they are known."""
    axis.set_facecolor("lightgrey")  # where nothing was observed
    axis.tick_params(labelsize=7)
    if grid.latitude is None or grid.longitude is None:
        return axis.imshow(frame, **style)
    return axis.pcolormesh(grid.longitude, grid.latitude, frame, shading="nearest", **style)


def std_over_time(grid: Grid) -> np.ndarray:
    """Return the standard deviation of each cell (C, H, W), NaN where it was never observed."""
    count, total, square = (np.zeros(grid.shape) for _ in range(3))
    shift: np.ndarray | None = None
    for _, frames in grid.chunks(0, len(grid)):
        seen = np.isfinite(frames)
        if shift is None:  # sums of squares around a typical value keep their digits
            first = np.where(seen, frames, 0.0).sum(axis=0, dtype=np.float64)
            shift = first / np.maximum(seen.sum(axis=0), 1)
        values = np.where(seen, frames - shift, 0.0)
        count += seen.sum(axis=0)
        total += values.sum(axis=0)
        square += (values**2).sum(axis=0)
    often = np.maximum(count, 1)
    variance = np.maximum(square / often - (total / often) ** 2, 0.0)
    return np.where(count > 0, np.sqrt(variance), np.nan)


def _sort_files(
    files: list[Path], variables: list[str], mask: str | None, problems: list[dict[str, str]]
) -> tuple[list[Path], list[Path]]:
    """Return files that hold something asked for, and those that open but do not."""
    good, unused = [], []
    for path in files:
        try:
            held = variables_of(path, variables) or (mask and variables_of(path, [mask]))
        except DataError as error:
            problems.append({"what": str(path), "reason": _after_name(error, path)})
            continue
        (good if held else unused).append(path)
    return good, unused


def _unreadable(files: list[Path], variables: list[str]) -> dict[Path, str]:
    """Read every frame of every file by itself; return those that fail, with the reason."""
    broken = {}
    for path in files:
        try:
            held = variables_of(path, variables)
            if held:
                _values(open_grid([path], held))
        except DataError as error:
            broken[path] = _after_name(error, path)
    return broken


def _files(grid: Grid) -> list[dict[str, Any]]:
    """Return each file that the grid is read from, with what it holds of it."""
    files: dict[str, dict[str, Any]] = {}
    for variable, segments in zip(grid.variables, grid.segments, strict=False):  # mask: last
        for segment in segments:
            first, last = _text(segment.times.min()), _text(segment.times.max())
            file = {"path": segment.path, "variables": [], "first": first, "last": last}
            files.setdefault(segment.path, file)["variables"].append(variable)
    return sorted(files.values(), key=lambda file: file["first"])


def _values(grid: Grid) -> list[dict[str, Any]]:
    """Read everything, chunk by chunk; return what values each variable has."""
    channels = grid.shape[0]
    low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
    count, empty = np.zeros(channels), np.zeros(channels, int)
    mean, square = np.zeros(channels), np.zeros(channels)
    for _, frames in grid.chunks(0, len(grid)):
        values = frames.transpose(1, 0, 2, 3).reshape(channels, len(frames), -1)
        seen = np.isfinite(values)
        empty += (~seen.any(axis=2)).sum(axis=1)
        low = np.minimum(low, np.where(seen, values, np.inf).min(axis=(1, 2)))
        high = np.maximum(high, np.where(seen, values, -np.inf).max(axis=(1, 2)))
        # Chan's update: mean and squares of a chunk are joined with those so far.
        more = seen.sum(axis=(1, 2))
        chunk = np.where(seen, values, 0.0).sum(axis=(1, 2), dtype=np.float64)
        chunk /= np.maximum(more, 1)
        spread = np.where(seen, values - chunk[:, None, None], 0.0) ** 2
        total = np.maximum(count + more, 1)
        square += spread.sum(axis=(1, 2)) + (chunk - mean) ** 2 * count * more / total
        mean += (chunk - mean) * more / total
        count += more
    cells = len(grid) * grid.shape[1] * grid.shape[2]
    nothing = count == 0
    low, high, mean = (np.where(nothing, np.nan, v) for v in (low, high, mean))
    return [
        {
            "name": name,
            "unit": unit,
            "min": float(low[c]),
            "mean": float(mean[c]),
            "max": float(high[c]),
            "std": float(np.sqrt(square[c] / max(count[c], 1))),
            "missing": float(1 - count[c] / cells),
            "empty_frames": int(empty[c]),
        }
        for c, (name, unit) in enumerate(zip(grid.variables, grid.units, strict=True))
    ]


def _value_notes(values: list[dict[str, Any]]) -> list[str]:
    notes = []
    for value in values:
        if not value["unit"]:
            notes.append(f"{value['name']} has no units; its forecasts will have none either")
        if value["unit"] == "K" and value["mean"] < COLDEST_MEAN:
            notes.append(f"{value['name']}: a mean of {value['mean']:.3g} is hardly in K")
        if value["empty_frames"] and value["missing"] < 1:
            notes.append(f"{value['name']} is observed nowhere in {value['empty_frames']} frame(s)")
    return notes


def _value_problems(values: list[dict[str, Any]]) -> list[dict[str, str]]:
    problems = []
    for value in values:
        fill = [v for v in (value["min"], value["max"]) if v in FILL_VALUES or abs(v) > LARGEST]
        if value["missing"] == 1:
            reason = "no value at all (all NaN or masked): leave it out of --data.variables"
        elif value["min"] == value["max"]:
            reason = f"constant ({value['min']:g}): leave it out of --data.variables"
        elif fill:
            reason = (
                f"holds {fill[0]:g}, a fill value that the files do not declare: set the "
                "variable's attribute _FillValue, or replace it by NaN"
            )
        else:
            continue
        problems.append({"what": value["name"], "reason": reason})
    return problems


def _grid(grid: Grid, problems: list[dict[str, str]]) -> dict[str, Any]:
    height, width = grid.shape[1:]
    found: dict[str, Any] = {
        "height": height,
        "width": width,
        "dims": list(grid.dims),
        "patch_sizes": [p for p in PATCH_SIZES if height % p == 0 and width % p == 0],
    }
    for name, values in (("latitude", grid.latitude), ("longitude", grid.longitude)):
        if values is None:
            continue
        steps = np.diff(values.astype(np.float64))
        if not (np.all(steps > 0) or np.all(steps < 0)):
            reason = "neither rises nor falls all along: sort the grid by it first"
            problems.append({"what": name, "reason": reason})
        even = len(steps) > 0 and np.allclose(steps, steps.mean(), rtol=0.01)
        found[name] = {
            "first": float(values[0]),
            "last": float(values[-1]),
            "step": float(steps.mean()) if even else None,
        }
    return found


def _times(grid: Grid) -> dict[str, Any]:
    steps = np.diff(grid.times)
    gaps = np.flatnonzero(steps != grid.spacing)
    return {
        "first": _text(grid.times[0]),
        "last": _text(grid.times[-1]),
        "count": len(grid),
        "spacing_seconds": float(grid.spacing / np.timedelta64(1, "s")),
        "gaps": [
            {
                "after": _text(grid.times[i]),
                "before": _text(grid.times[i + 1]),
                "missing_frames": _missing_frames(steps[i], grid.spacing),
            }
            for i in gaps
        ],
    }


def _missing_frames(step: np.timedelta64, spacing: np.timedelta64) -> int | None:
    """Return how many frames a step leaves out; None if it is no multiple of the spacing."""
    return int(step // spacing) - 1 if step % spacing == np.timedelta64(0) else None


def _parts(grid: Grid, config: CheckConfig, problems: list[dict[str, str]]) -> list[dict[str, Any]]:
    data = config.data
    length = data.history + data.horizon
    dates = {"train": data.train, "val": data.val, "test": data.test}
    try:
        parts = split_times(grid.times, data.split, dates)
    except CrossbandError as error:
        problems.append({"what": "the split", "reason": str(error)})
        return []
    if not any(problem["what"] in grid.variables for problem in problems):
        try:
            Normalisation.fit(grid, parts["train"].start, parts["train"].stop)
        except DataError as error:
            problems.append({"what": "the train part", "reason": str(error)})
    rows = []
    for name, part in parts.items():
        starts, lost = window_starts(grid, part, length)
        frames = part.stop - part.start
        rows.append(
            {
                "name": name,
                "first": part.first,
                "last": part.last,
                "frames": frames,
                "windows": len(starts),
                "lost_to_gaps": lost,
            }
        )
        if not len(starts):
            reason = (
                f"no window of {data.history} + {data.horizon} evenly spaced frames fits into its "
                f"{frames}: lower --data.history or --data.horizon, or move the split"
            )
            problems.append({"what": f"the {name} part", "reason": reason})
    return rows


def _after_name(error: DataError, path: Path) -> str:
    """Return the message without the name of the file that it starts with."""
    return str(error).removeprefix(str(path)).lstrip(": ")


def _shortened(lines: list[str]) -> list[str]:
    rest = len(lines) - LISTED
    return lines if rest <= 0 else [*lines[:LISTED], f"           and {rest} more"]


def _gap_line(gap: dict[str, Any]) -> str:
    missing = gap["missing_frames"]
    size = "an odd step" if missing is None else f"{missing} frames missing"
    return f"gap        {gap['after']} to {gap['before']}: {size}"


def _extent(grid: dict[str, Any]) -> str:
    parts = []
    for name in ("latitude", "longitude"):
        if name in grid:
            first, last, step = grid[name].values()
            every = "unevenly" if step is None else f"by {abs(step):.4g}"
            parts.append(f", {name} {first:g} to {last:g} {every}")
    if "latitude" not in grid:
        parts.append(", no latitudes (scores will not be weighted)")
    return "".join(parts)


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def _text(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]"))
