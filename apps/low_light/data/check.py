"""A look at the data before training: `crossband low-light data check`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from crossband.apps.low_light.config import CheckConfig
from crossband.apps.low_light.data.pairs import find_pairs
from crossband.apps.low_light.data.photos import alike, fingerprint
from crossband.shared.cli.output import format_table, print_json
from crossband.shared.data.images import find_photos, read_photo
from crossband.shared.errors import EXIT_FAILED, DataError


def run(config: CheckConfig) -> int | None:
    """Print what lies where; exit code 1 if a file cannot be read or a scene lies in both parts."""
    reports = [_look(root) for root in [*config.root, *config.against]]
    doubles = []
    for left in reports[: len(config.root)]:
        for right in reports[len(config.root) :]:
            doubles += [
                (a, b)
                for a, mark in left["marks"].items()
                for b, other in right["marks"].items()
                if alike(mark, other)
            ]
    problems = [problem for report in reports for problem in report["problems"]]
    shown = [{k: v for k, v in r.items() if k not in ("marks", "problems")} for r in reports]
    if config.json:
        print_json({"data": shown, "problems": problems, "doubles": doubles})
    else:
        rows = [tuple(r.values()) for r in shown]
        print(format_table(tuple(shown[0]), rows))
        for problem in problems:
            print(f"problem: {problem}")
        for a, b in doubles:
            print(f"the same scene in both: {a} and {b}")
        if not problems and not doubles:
            print("all files can be read" + (", no scene in both" if config.against else ""))
    return EXIT_FAILED if problems or doubles else None


def _look(root: str) -> dict[str, Any]:
    pairs, problems = find_pairs(root) if Path(root).is_dir() else ([], [])
    lows = [pair.low for pair in pairs]
    scenes = sorted({pair.high for pair in pairs})
    if not pairs:
        scenes = [path for path, _ in find_photos([root])[0]]
    marks: dict[str, str] = {}
    sizes: set[tuple[int, int]] = set()
    levels: dict[str, list[float]] = {"dark": [], "bright": []}
    for path in [*lows, *scenes]:
        try:
            photo = read_photo(path)
        except DataError as error:
            problems.append(str(error))
            continue
        sizes.add(photo.pixels.shape[:2])
        levels["dark" if path in lows else "bright"].append(photo.pixels.mean() / photo.white)
        if path not in lows:
            eight = photo.pixels if photo.white == 255 else photo.pixels // 257
            marks[str(path)] = fingerprint(eight.astype(np.uint8))
    smallest, largest = (min(sizes), max(sizes)) if sizes else (None, None)
    return {
        "data": root,
        "kind": "pairs" if pairs else "photographs",
        "files": len(lows) + len(scenes),
        "sizes": _sizes(smallest, largest),
        "of dark files": _percent(levels["dark"]),
        "mean level": _percent(levels["bright"]),
        "marks": marks,
        "problems": problems,
    }


def _sizes(smallest: tuple[int, int] | None, largest: tuple[int, int] | None) -> str:
    if smallest is None or largest is None:
        return "-"
    one = f"{smallest[0]} x {smallest[1]}"
    return one if smallest == largest else f"{one} to {largest[0]} x {largest[1]}"


def _percent(levels: list[float]) -> str:
    return f"{100 * float(np.mean(levels)):.0f} %" if levels else "-"
