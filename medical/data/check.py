"""A look at radiographs before training: `crossband medical data check`."""

from __future__ import annotations

import hashlib
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crossband.medical.config import CheckConfig
from crossband.medical.data.layouts import find
from crossband.medical.data.radiographs import Radiograph, read_radiograph, shrunk
from crossband.medical.data.records import Collection, Record, counted, label_matrix
from crossband.medical.data.splits import SPLITS, complete, leaks
from crossband.medical.privacy import NOT_A_DEVICE, Names
from crossband.shared.cli.output import format_table, print_json
from crossband.shared.data.images import read_photo
from crossband.shared.errors import EXIT_FAILED, EXIT_PARTIAL, ConfigError, DataError
from crossband.shared.files import atomic_path

_SHEET_IMAGES, _SHEET_COLUMNS, _TILE = 12, 4, 224
_SHOWN = 10  # files named in a list on the terminal
_EVERY = 10.0  # seconds between lines of progress


@dataclass
class Look:
    """What lies in one data set.

    Attributes:
        data: The data set, with splits.
        leaks: Patients in more than one of its own splits.
        sizes: Images by (height, width).
        bits: Images by bits of their grey values.
        remarks: Images by what the reader said of them.
        unreadable: Name and reason of files that cannot be read.
        tiles: Small pictures for the contact sheet.
        total: Sum of the grey values of train, 0 to 1.
        square: Sum of their squares.
        pixels: Their number.
    """

    data: Collection
    leaks: list[str]
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    bits: Counter[int] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    tiles: list[np.ndarray] = field(default_factory=list)
    total: float = 0.0
    square: float = 0.0
    pixels: int = 0


def run(config: CheckConfig) -> int | None:
    """Print what lies where.

    Returns:
        1 if a patient is in two splits, else 3 if files cannot be read, else None.
    """
    if config.out and Path(config.out).suffix.lower() != ".png":
        raise ConfigError(f"--out {config.out}: name a picture that ends in .png.")
    names = Names(config.keep_ids)
    looks = []
    for collection in find(config.data):
        found = leaks(collection.records)
        complete(collection, config.data)
        looks.append(Look(collection, found))
    same = _Same()
    progress = _Progress(sum(len(look.data.records) for look in looks), config)
    for look in looks:
        _read_all(look, config, names, same, progress)
    copies = same.copies(names)
    facts = {
        "notice": NOT_A_DEVICE,
        "data": [_facts(look, names) for look in looks],
        "copies": copies,
    }
    if config.json:
        print_json(facts)
    else:
        print(NOT_A_DEVICE)
        for shown in facts["data"]:
            _print(shown)
        _print_list("files of the same content", [", ".join(names) for names in copies])
    if config.out:
        _write_sheet([tile for look in looks for tile in look.tiles], Path(config.out))
        if not config.json:
            print(f"contact sheet: {config.out}")
    if any(look.leaks for look in looks):
        return EXIT_FAILED
    return EXIT_PARTIAL if any(look.unreadable for look in looks) else None


class _Same:
    """Finds files of equal bytes."""

    def __init__(self) -> None:
        self._records: dict[bytes, list[Record]] = {}

    def add(self, record: Record) -> None:
        try:
            digest = hashlib.sha256(record.path.read_bytes()).digest()
        except OSError:
            return  # named among the unreadable ones
        self._records.setdefault(digest, []).append(record)

    def copies(self, names: Names) -> list[list[str]]:
        """Return names and splits of the files of each group."""
        groups = [records for records in self._records.values() if len(records) > 1]
        return [_named(records, names) for records in groups]


def _named(records: list[Record], names: Names) -> list[str]:
    """Return names with their splits; without `--keep-ids` equal bytes have one name."""
    splits: dict[str, list[str]] = {}
    for record in records:
        splits.setdefault(names.image(record.path, record.name), []).append(str(record.split))
    return [f"{name} ({', '.join(found)})" for name, found in splits.items()]


class _Progress:
    """Says now and then how far the reading is."""

    def __init__(self, count: int, config: CheckConfig) -> None:
        self.count, self.done, self.start = count, 0, time.monotonic()
        self.silent, self.last = config.quiet or config.json, self.start

    def step(self) -> None:
        self.done += 1
        now = time.monotonic()
        if self.silent or now - self.last < _EVERY:
            return
        self.last = now
        left = (now - self.start) / self.done * (self.count - self.done)
        print(f"read {self.done} of {self.count}, {left:.0f} s left", file=sys.stderr, flush=True)


def _read_all(
    look: Look, config: CheckConfig, names: Names, same: _Same, progress: _Progress
) -> None:
    every = max(1, len(look.data.records) // _SHEET_IMAGES)
    for number, record in enumerate(look.data.records):
        progress.step()
        same.add(record)
        try:
            image = read_radiograph(record.path, config.data.window)
            mask = read_photo(record.mask).pixels.shape[:2] if record.mask else None
        except DataError as error:
            name = names.image(record.path, record.name)
            look.unreadable.append((name, names.error(error, record.path, record.mask)))
            continue
        _count(look, record, image)
        if mask is not None and mask != image.pixels.shape:
            look.remarks["The mask has another size than the image."] += 1
        if config.out and number % every == 0 and len(look.tiles) < _SHEET_IMAGES:
            look.tiles.append(_tile(image.pixels))


def _count(look: Look, record: Record, image: Radiograph) -> None:
    look.sizes[image.pixels.shape] += 1  # type: ignore[index]
    look.bits[image.bits] += 1
    look.remarks.update(image.notes)
    if record.view and image.view and record.view != image.view:
        look.remarks[f"The list says view {record.view}, the header {image.view}."] += 1
    if record.split == "train":
        histogram = np.bincount(image.pixels.ravel(), minlength=256)
        values = np.arange(256) / 255
        look.total += float(histogram @ values)
        look.square += float(histogram @ values**2)
        look.pixels += image.pixels.size


def _facts(look: Look, names: Names) -> dict[str, Any]:
    records = look.data.records
    mean = look.total / max(look.pixels, 1)
    variance = max(0.0, look.square / max(look.pixels, 1) - mean**2)
    ages = [record.age for record in records if record.age is not None]
    return {
        "data": str(look.data.root),
        "layout": look.data.layout,
        "images": len(records),
        "patients": _patients(records),
        "splits": [
            {"split": split, "images": len(part), "patients": _patients(part)}
            for split in SPLITS
            if (part := look.data.split(split))
        ],
        "masks": sum(record.mask is not None for record in records),
        "sizes": {f"{h} x {w}": count for (h, w), count in look.sizes.most_common()},
        "bits": {str(bits): count for bits, count in sorted(look.bits.items())},
        "train_pixels": {"mean": round(mean, 4), "std": round(variance**0.5, 4)}
        if look.pixels
        else None,
        "views": dict(Counter(record.view or "unknown" for record in records).most_common()),
        "sex": dict(Counter(record.sex or "unknown" for record in records).most_common()),
        "age": {
            "known": len(ages),
            "median": float(np.median(ages)),
            "least": min(ages),
            "most": max(ages),
        }
        if ages
        else None,
        "exclusive": look.data.exclusive,
        "findings": _prevalence(look.data),
        "patients_in_two_splits": [names.patient(patient) for patient in look.leaks],
        "unreadable": [{"image": name, "reason": reason} for name, reason in look.unreadable],
        "remarks": dict(look.remarks.most_common()),
        "notes": look.data.notes,
    }


def _patients(records: list[Record]) -> int | None:
    known = {record.patient for record in records if record.patient is not None}
    return len(known) or None


def _prevalence(data: Collection) -> list[dict[str, Any]]:
    """Return images with each finding, per split: present, known, and their ratio in percent."""
    rows: list[dict[str, Any]] = [{"finding": name} for name in data.findings]
    for split in SPLITS:
        part = data.split(split)
        if not part or not rows:
            continue
        labels = label_matrix(part)
        for place, row in enumerate(rows):
            present = int(np.nansum(labels[:, place]))
            known = int((~np.isnan(labels[:, place])).sum())
            percent = round(100 * present / known, 2) if known else None
            row[split] = {"present": present, "known": known, "percent": percent}
    return rows


def _print(facts: dict[str, Any]) -> None:
    print(f"\n{facts['data']}: layout {facts['layout']}, {facts['images']} images")
    print(
        format_table(("split", "images", "patients"), [tuple(s.values()) for s in facts["splits"]])
    )
    print(f"size: {_counts(facts['sizes'])}")
    print(f"bits: {_counts(facts['bits'])}")
    if facts["train_pixels"]:
        print("train pixels (0 to 1): mean {mean}, std {std}".format(**facts["train_pixels"]))
    print(f"view: {_counts(facts['views'])}")
    print(f"sex: {_counts(facts['sex'])}")
    if facts["age"]:
        print(
            "age: median {median:g}, {least:g} to {most:g} ({known} known)".format(**facts["age"])
        )
    if facts["masks"]:
        print(f"masks: {facts['masks']}")
    if facts["findings"]:
        print(_prevalence_table(facts["findings"]))
    for note in facts["notes"]:
        print(f"note: {note}")
    for remark, count in facts["remarks"].items():
        print(f"note: {counted(count, 'image')}: {remark}")
    _print_list("patients in more than one split", facts["patients_in_two_splits"])
    broken = [f"{entry['image']}: {entry['reason']}" for entry in facts["unreadable"]]
    _print_list("files that cannot be read", broken)
    if not broken:
        print("all files can be read")


def _prevalence_table(rows: list[dict[str, Any]]) -> str:
    splits = [split for split in SPLITS if split in rows[0]]
    header = ["finding", *(f"{s} {word}" for s in splits for word in ("present", "of", "%"))]
    return format_table(
        header, [[row["finding"], *(v for s in splits for v in row[s].values())] for row in rows]
    )


def _counts(counts: dict[str, int]) -> str:
    shown = [f"{name} ({count})" for name, count in list(counts.items())[:_SHOWN]]
    more = len(counts) - _SHOWN
    return ", ".join([*shown, f"and {more} others"] if more > 0 else shown) or "-"


def _print_list(title: str, lines: list[str]) -> None:
    if not lines:
        return
    print(f"{title}: {len(lines)}")
    for line in lines[:_SHOWN]:
        print(f"  {line}")
    if len(lines) > _SHOWN:
        print(f"  and {len(lines) - _SHOWN} more (--json lists all)")


def _tile(pixels: np.ndarray) -> np.ndarray:
    """Return the middle square of an image, (_TILE, _TILE)."""
    side = min(pixels.shape)
    top, left = ((length - side) // 2 for length in pixels.shape)
    square = shrunk(pixels[top : top + side, left : left + side], _TILE)
    tile = np.zeros((_TILE, _TILE), np.uint8)
    top = (_TILE - square.shape[0]) // 2
    tile[top : top + square.shape[0], top : top + square.shape[1]] = square
    return tile


def _write_sheet(tiles: list[np.ndarray], path: Path) -> None:
    from PIL import Image

    if not tiles:
        raise DataError("There is no readable image to show on a contact sheet.")
    columns = min(_SHEET_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * (_TILE + 4) - 4, columns * (_TILE + 4) - 4), 255, np.uint8)
    for place, tile in enumerate(tiles):
        top, left = (place // columns) * (_TILE + 4), (place % columns) * (_TILE + 4)
        sheet[top : top + _TILE, left : left + _TILE] = tile
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary)
