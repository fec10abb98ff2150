"""`crossband spatiotemporal data check`: what the data are, and everything wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from crossband.shared.cli.output import format_table, print_json
from crossband.shared.errors import EXIT_FAILED, EXIT_OK, CrossbandError, DataError
from crossband.shared.files import atomic_path
from crossband.spatiotemporal.config import CheckConfig
from crossband.spatiotemporal.data.grid import Grid, find_files, open_grid, variables_of
from crossband.spatiotemporal.data.windows import split_times, window_starts

CHUNK_BYTES = 256e6
LISTED = 8  # lines of one kind before "and so many more"
PATCH_SIZES = (2, 4, 8, 16)


def run(config: CheckConfig) -> int:
    """Run `data check`: print the report; the exit code is 1 if anything is wrong."""
    report, grid = check_data(config)
    if config.out and grid is not None:
        write_contact_sheet(grid, config.out)
        report["picture"] = config.out
    if config.json:
        print_json(report)
    else:
        print(describe(report))
    return EXIT_FAILED if report["problems"] else EXIT_OK


def check_data(config: CheckConfig) -> tuple[dict[str, Any], Grid | None]:
    """Read everything once and tell what is there.

    A broken file is listed and left out, and the rest is checked as if it were not there.

    Returns:
        The report, JSON-able: `files`, `unused`, `problems` (file or what, reason), and where
        anything could be read `variables`, `grid`, `times`, `parts`; and the grid itself.

    Raises:
        DataError: no file at all.
    """
    data = config.data
    problems: list[dict[str, str]] = []
    good, unused = _sort_files(find_files(data.root), data.variables, data.mask, problems)
    report: dict[str, Any] = {
        "files": [str(path) for path in good],
        "unused": [str(path) for path in unused],
        "problems": problems,
    }
    while good:
        try:
            grid = open_grid(good, data.variables, step=data.step, mask=data.mask)
            values = _values(grid)
        except DataError as error:
            broken = _unreadable(good, data.variables)
            if not broken:  # each file by itself is in order, together they are not
                problems.append({"what": "the files together", "reason": str(error)})
                break
            problems += [{"what": str(p), "reason": reason} for p, reason in broken.items()]
            good = [path for path in good if path not in broken]
            report["files"] = [str(path) for path in good]
            continue
        report |= {"variables": values, "grid": _grid(grid), "times": _times(grid)}
        report["notes"] = list(grid.notes)
        problems += _value_problems(values)
        report["parts"] = _parts(grid, config, problems)
        return report, grid
    if not good and not problems:
        problems.append({"what": "the data", "reason": "no file holds a variable asked for"})
    return report, None


def describe(report: dict[str, Any]) -> str:
    """Return the report as text."""
    lines = [f"files      {len(report['files'])} read"]
    if report["unused"]:
        lines[0] += f", {len(report['unused'])} without the variables asked for"
    if "grid" in report:
        grid, times = report["grid"], report["times"]
        lines += [f"grid       {grid['height']} x {grid['width']}{_extent(grid)}"]
        if not grid["patch_sizes"]:
            lines.append("           no patch size tiles it: train with --data.fit pad or crop")
        else:
            tiles = ", ".join(map(str, grid["patch_sizes"]))
            lines.append(f"           patch sizes that tile it: {tiles}")
        lines.append(
            f"times      {times['first']} to {times['last']}: {times['count']} frames, "
            f"every {_duration(times['spacing_seconds'])}"
        )
        gaps = [
            f"gap        {gap['after']} to {gap['before']}: {gap['missing_frames']} frames missing"
            for gap in times["gaps"]
        ]
        lines += _shortened(gaps)
        lines += [f"note       {note}" for note in report["notes"]]
        rows = [
            [v["name"], v["unit"], v["min"], v["mean"], v["max"], v["std"],
             f"{100 * v['missing']:.3g} %"]
            for v in report["variables"]
        ]  # fmt: skip
        headers = ["variable", "unit", "min", "mean", "max", "std", "missing"]
        lines += ["", format_table(headers, rows)]
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


def write_contact_sheet(grid: Grid, path: str | Path) -> None:
    """Draw every variable at six times spread over the series, and its mean, to a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    places = np.unique(np.linspace(0, len(grid) - 1, 6).round().astype(int))
    frames = np.concatenate([grid.read(int(i), int(i) + 1) for i in places])
    north_up = grid.latitude is None or grid.latitude[0] > grid.latitude[-1]
    figure, axes = plt.subplots(
        grid.shape[0],
        len(places),
        figsize=(2.6 * len(places), 2.4 * grid.shape[0]),
        squeeze=False,
        layout="constrained",
    )
    for row, name in enumerate(grid.variables):
        seen = frames[:, row][np.isfinite(frames[:, row])]
        low, high = np.percentile(seen, (1, 99)) if len(seen) else (0, 1)
        for axis, frame, place in zip(axes[row], frames[:, row], places, strict=True):
            image = axis.imshow(frame, vmin=low, vmax=high, origin="upper" if north_up else "lower")
            axis.set(xticks=[], yticks=[])
            axis.set_facecolor("lightgrey")  # where nothing was observed
            if row == 0:
                axis.set_title(_text(grid.times[place]), fontsize=9)
        axes[row, 0].set_ylabel(name)
        figure.colorbar(image, ax=axes[row], label=grid.units[row])
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
    plt.close(figure)


def _sort_files(
    files: list[Path], variables: list[str], mask: str | None, problems: list[dict[str, str]]
) -> tuple[list[Path], list[Path]]:
    """Return files that hold something asked for, and those that open but do not."""
    good, unused = [], []
    for path in files:
        try:
            held = variables_of(path, [*variables, *([mask] if mask else [])])
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


def _values(grid: Grid) -> list[dict[str, Any]]:
    """Read everything, chunk by chunk; return what values each variable has."""
    size = max(1, int(CHUNK_BYTES / (4 * np.prod(grid.shape))))
    channels = grid.shape[0]
    low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
    count, empty = np.zeros(channels), np.zeros(channels, int)
    mean, square = np.zeros(channels), np.zeros(channels)
    for _, frames in grid.chunks(0, len(grid), size):
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


def _value_problems(values: list[dict[str, Any]]) -> list[dict[str, str]]:
    problems = []
    for value in values:
        if value["missing"] == 1:
            reason = "no value at all (all NaN or masked): leave it out of --data.variables"
        elif value["min"] == value["max"]:
            reason = f"constant ({value['min']:g}): leave it out of --data.variables"
        else:
            continue
        problems.append({"what": value["name"], "reason": reason})
    return problems


def _grid(grid: Grid) -> dict[str, Any]:
    height, width = grid.shape[1:]
    found: dict[str, Any] = {
        "height": height,
        "width": width,
        "dims": list(grid.dims),
        "patch_sizes": [p for p in PATCH_SIZES if height % p == 0 and width % p == 0],
    }
    for name, values in (("latitude", grid.latitude), ("longitude", grid.longitude)):
        if values is not None:
            found[name] = [float(values[0]), float(values[-1])]
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
                "missing_frames": max(0, round(steps[i] / grid.spacing) - 1),
            }
            for i in gaps
        ],
    }


def _parts(grid: Grid, config: CheckConfig, problems: list[dict[str, str]]) -> list[dict[str, Any]]:
    data = config.data
    length = data.history + data.horizon
    dates = {"train": data.train, "val": data.val, "test": data.test}
    try:
        parts = split_times(grid.times, data.split, dates)
    except CrossbandError as error:
        problems.append({"what": "the split", "reason": str(error)})
        return []
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


def _extent(grid: dict[str, Any]) -> str:
    parts = [
        f", {name} {grid[name][0]:g} to {grid[name][1]:g}"
        for name in ("latitude", "longitude")
        if name in grid
    ]
    return "".join(parts) or ", no coordinates (no latitude weights)"


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def _text(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]"))
