"""A look at the data before training: `crossband infrared data check`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from crossband.infrared.config import CheckConfig, ReadConfig
from crossband.infrared.data.classes import palette
from crossband.infrared.data.crops import Frames
from crossband.infrared.data.frames import Stretch
from crossband.infrared.data.layouts import Labelled, find
from crossband.shared.cli.output import format_table, print_json
from crossband.shared.errors import EXIT_FAILED, ConfigError, DataError
from crossband.shared.files import atomic_path

_SHEET_IMAGES, _SHEET_COLUMNS, _TILE = 12, 4, 192


@dataclass
class Look:
    """What lies in one data set.

    Attributes:
        data: The data set.
        splits: Numbers per split.
        pixels: Labelled pixels per class, 255 last.
        images: Images that hold the class.
        problems: Files that cannot be used, and why.
        tiles: Pictures for the contact sheet.
    """

    data: Labelled
    splits: list[dict[str, Any]] = field(default_factory=list)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    images: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    problems: list[str] = field(default_factory=list)
    tiles: list[np.ndarray] = field(default_factory=list)


def run(config: CheckConfig) -> int | None:
    """Print what lies where; exit code 1 if a file cannot be used."""
    if not config.data.root:
        raise ConfigError("There is nothing to look at: give --data.root.")
    if config.out and Path(config.out).suffix.lower() != ".png":
        raise ConfigError(f"--out {config.out}: name a picture that ends in .png.")
    looks = [_look(root, config.data) for root in config.data.root]
    shown = [_facts(look) for look in looks]
    if config.json:
        print_json({"data": shown})
    else:
        for look, facts in zip(looks, shown, strict=True):
            _print(look, facts)
    if config.out:
        _write_sheet([tile for look in looks for tile in look.tiles], Path(config.out))
        if not config.json:
            print(f"contact sheet: {config.out}")
    return EXIT_FAILED if any(look.problems for look in looks) else None


def _look(root: str, source: ReadConfig) -> Look:
    data = find(root, source.layout)
    frames = Frames(
        len(data.classes),
        binary=data.binary,
        channel=source.channel,
        stretch=Stretch.of(source.value_range, always=source.stretch),
        cache_bytes=0,
    )
    look = Look(data, problems=[*data.lonely, *_shared(data)])
    colours = np.array(palette(data.classes), np.uint8)
    every = max(1, sum(map(len, data.splits.values())) // _SHEET_IMAGES)
    number = 0
    for split, items in data.splits.items():
        sizes: Counter[tuple[int, int]] = Counter()
        total = square = 0.0
        count = 0
        for item in items:
            if item.mask is None:
                continue
            try:
                pixels, mask = frames.read(item)
            except DataError as error:
                look.problems.append(str(error))
                continue
            sizes[mask.shape] += 1  # type: ignore[index]
            values = pixels.astype(np.float64)
            total, square = total + values.sum(), square + np.square(values).sum()
            count += values.size
            histogram = np.bincount(mask.ravel(), minlength=256)
            look.pixels += histogram
            look.images += histogram > 0
            if number % every == 0 and len(look.tiles) < _SHEET_IMAGES:
                look.tiles.append(_tile(pixels, mask, colours, item.name))
            number += 1
        mean = total / max(count, 1)
        look.splits.append(
            {
                "split": split,
                "images": sum(sizes.values()),
                "sizes": _sizes(sizes),
                "mean": round(mean, 2),
                "std": round(max(0.0, square / max(count, 1) - mean**2) ** 0.5, 2),
            }
        )
    return look


def _shared(data: Labelled) -> list[str]:
    """Return a sentence for every image that lies in two splits."""
    seen: dict[Path, str] = {}
    found = []
    for split, items in data.splits.items():
        for item in items:
            other = seen.setdefault(item.image, split)
            if other != split:
                found.append(f"{item.image} is in {other} and in {split}")
    return found


def _facts(look: Look) -> dict[str, Any]:
    total = max(int(look.pixels[:255].sum()), 1)
    return {
        "data": str(look.data.root),
        "layout": look.data.layout,
        "splits": look.splits,
        "classes": [
            {
                "id": number,
                "class": name,
                "pixels": int(look.pixels[number]),
                "percent": round(100 * int(look.pixels[number]) / total, 4),
                "images": int(look.images[number]),
            }
            for number, name in enumerate(look.data.classes)
        ],
        "ignored_pixels": int(look.pixels[255]),
        "problems": look.problems,
    }


def _print(look: Look, facts: dict[str, Any]) -> None:
    print(f"{facts['data']}: layout {facts['layout']}")
    for table in (facts["splits"], facts["classes"]):
        print(format_table(tuple(table[0]), [tuple(row.values()) for row in table]))
    if facts["ignored_pixels"]:
        print(f"ignored pixels (255): {facts['ignored_pixels']}")
    rare = [row["class"] for row in facts["classes"] if not row["pixels"]]
    if rare:
        print(f"no pixel of: {', '.join(rare)}")
    for problem in look.problems:
        print(f"problem: {problem}")
    if not look.problems:
        print("all files can be read, every image has its mask")


def _sizes(sizes: Counter) -> str:
    if not sizes:
        return "-"
    if len(sizes) == 1:
        height, width = next(iter(sizes))
        return f"{height} x {width}"
    heights, widths = zip(*sizes, strict=True)
    return f"{min(heights)}-{max(heights)} x {min(widths)}-{max(widths)}"


def _tile(pixels: np.ndarray, mask: np.ndarray, colours: np.ndarray, name: str) -> np.ndarray:
    """Return an image and its labels, (_TILE, 2 _TILE, 3), with the name."""
    from crossband.shared.reports.figures import overlay

    marked = np.where(mask < len(colours), mask, 0).astype(np.uint8)
    halves = [overlay(pixels, ids, colours) for ids in (np.zeros_like(marked), marked)]
    tile = np.full((_TILE + 18, 2 * _TILE + 8, 3), 255, np.uint8)
    scale = _TILE / max(pixels.shape[:2])
    size = (max(1, int(pixels.shape[1] * scale)), max(1, int(pixels.shape[0] * scale)))
    for place, half in enumerate(halves):
        small = cv2.resize(half, size, interpolation=cv2.INTER_AREA)
        left = place * (_TILE + 4)
        tile[: size[1], left : left + size[0]] = small
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(tile, name[:50], (2, _TILE + 13), font, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return tile


def _write_sheet(tiles: list[np.ndarray], path: Path) -> None:
    if not tiles:
        raise DataError("There is no readable image to show on a contact sheet.")
    columns = min(_SHEET_COLUMNS, len(tiles))
    while len(tiles) % columns:
        tiles.append(np.full_like(tiles[0], 255))
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    with atomic_path(path) as temporary:
        Image.fromarray(np.vstack(rows)).save(temporary)
