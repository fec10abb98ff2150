"""A look at images and volumes before training: `crossband medical data check`."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crossband.medical.config import CheckConfig, SourceConfig
from crossband.medical.data import check_volumes, contact_sheet
from crossband.medical.data.check_volumes import VolumeLook
from crossband.medical.data.layouts import find
from crossband.medical.data.masks import mask_values
from crossband.medical.data.overview import (
    Progress,
    counts_text,
    named_classes,
    print_list,
    set_facts,
    value_remark,
)
from crossband.medical.data.radiographs import Radiograph, read_radiograph
from crossband.medical.data.records import Collection, Record, counted, label_matrix
from crossband.medical.data.splits import SPLITS, complete, leaks
from crossband.medical.privacy import NOT_A_DEVICE, Names
from crossband.shared.cli.output import format_table, print_json
from crossband.shared.errors import EXIT_FAILED, EXIT_PARTIAL, ConfigError, DataError

_GREY_NOTE = "taken as grey"  # of what the reader says of colours


@dataclass
class Look:
    """What lies in one data set.

    Attributes:
        data: The data set, with splits.
        leaks: Patients in more than one of its own splits.
        sizes: Images by (height, width).
        bits: Images by bits of their grey values.
        remarks: Images by what the reader said of them.
        values: Masks by the values in them.
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
    values: Counter[int] = field(default_factory=Counter)
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
    looks: list[Look | VolumeLook] = []
    for collection in find(config.data):
        found = leaks(collection.records)
        complete(collection, config.data)
        kind = VolumeLook if collection.layout == "volumes" else Look
        looks.append(kind(collection, found))
    same = _Same()
    progress = Progress(sum(len(look.data.records) for look in looks), config.quiet or config.json)
    for look in looks:
        for record in look.data.records:
            same.add(record)
        if isinstance(look, VolumeLook):
            check_volumes.read_all(look, config, names, progress)
        else:
            _read_all(look, config, names, progress)
    copies = same.copies(names)
    facts = {
        "notice": NOT_A_DEVICE,
        "data": [
            check_volumes.facts(look, config.data, names)
            if isinstance(look, VolumeLook)
            else _facts(look, config.data, names)
            for look in looks
        ],
        "copies": copies,
        "copies_in_two_splits": same.crossing,
    }
    if config.json:
        print_json(facts)
    else:
        print(NOT_A_DEVICE)
        for shown in facts["data"]:
            if shown["layout"] == "volumes":
                check_volumes.print_facts(shown)
            else:
                _print(shown)
        print_list("files of the same content", [", ".join(group) for group in copies])
        if same.crossing:
            print(
                f"of them in more than one split: {same.crossing}, scored too well if learnt from"
            )
    if config.out:
        contact_sheet.write_sheet([t for look in looks for t in look.tiles], Path(config.out))
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
        return [_named(records, names) for records in self._groups()]

    @property
    def crossing(self) -> int:
        """Number of groups in more than one split."""
        return sum(len({record.split for record in records}) > 1 for records in self._groups())

    def _groups(self) -> list[list[Record]]:
        return [records for records in self._records.values() if len(records) > 1]


def _named(records: list[Record], names: Names) -> list[str]:
    """Return names with their splits; without `--keep-ids` equal bytes have one name."""
    splits: dict[str, list[str]] = {}
    for record in records:
        splits.setdefault(names.image(record.path, record.name), []).append(str(record.split))
    return [f"{name} ({', '.join(found)})" for name, found in splits.items()]


def _read_all(look: Look, config: CheckConfig, names: Names, progress: Progress) -> None:
    every = max(1, len(look.data.records) // contact_sheet.IMAGES)
    for number, record in enumerate(look.data.records):
        progress.step()
        masks = [mask for mask in (record.mask, *record.more_masks) if mask is not None]
        try:
            image = read_radiograph(record.path, config.data.window)
            arrays = [mask_values(mask) for mask in masks]
        except DataError as error:
            name = names.image(record.path, record.name)
            look.unreadable.append((name, names.error(error, record.path, *masks)))
            continue
        _count(look, record, image, config.data.colours)
        look.values.update({int(value) for array in arrays for value in np.unique(array)})
        same = all(array.shape == image.pixels.shape for array in arrays)
        if not same:
            look.remarks["The mask has another size than the image."] += 1
        if config.out and number % every == 0 and len(look.tiles) < contact_sheet.IMAGES:
            ids = np.max([array != 0 for array in arrays], 0) if arrays and same else None
            look.tiles.append(contact_sheet.tile(image.pixels, ids))


def _count(look: Look, record: Record, image: Radiograph, colours: bool) -> None:
    look.sizes[image.pixels.shape] += 1  # type: ignore[index]
    look.bits[image.bits] += 1
    look.remarks.update(n for n in image.notes if not (colours and _GREY_NOTE in n))
    if record.view and image.view and record.view != image.view:
        look.remarks[f"The list says view {record.view}, the header {image.view}."] += 1
    if record.split == "train":
        histogram = np.bincount(image.pixels.ravel(), minlength=256)
        values = np.arange(256) / 255
        look.total += float(histogram @ values)
        look.square += float(histogram @ values**2)
        look.pixels += image.pixels.size


def _facts(look: Look, config: SourceConfig, names: Names) -> dict[str, Any]:
    records = look.data.records
    mean = look.total / max(look.pixels, 1)
    variance = max(0.0, look.square / max(look.pixels, 1) - mean**2)
    remark = value_remark(look.values, named_classes(look.data, config.classes, config.mask_values))
    ages = [record.age for record in records if record.age is not None]
    return {
        **set_facts(look.data),
        "mask_values": {str(value): count for value, count in sorted(look.values.items())},
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
        "notes": [*look.data.notes, *([remark] if remark else [])],
    }


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
    print(f"size: {counts_text(facts['sizes'])}")
    print(f"bits: {counts_text(facts['bits'])}")
    if facts["train_pixels"]:
        print("train pixels (0 to 1): mean {mean}, std {std}".format(**facts["train_pixels"]))
    print(f"view: {counts_text(facts['views'])}")
    print(f"sex: {counts_text(facts['sex'])}")
    if facts["age"]:
        print(
            "age: median {median:g}, {least:g} to {most:g} ({known} known)".format(**facts["age"])
        )
    if facts["masks"]:
        print(f"masks: {facts['masks']}, with the values {counts_text(facts['mask_values'])}")
    if facts["findings"]:
        print(_prevalence_table(facts["findings"]))
    for note in facts["notes"]:
        print(f"note: {note}")
    for remark, count in facts["remarks"].items():
        print(f"note: {counted(count, 'image')}: {remark}")
    print_list("patients in more than one split", facts["patients_in_two_splits"])
    broken = [f"{entry['image']}: {entry['reason']}" for entry in facts["unreadable"]]
    print_list("files that cannot be read", broken)
    if not broken:
        print("all files can be read")


def _prevalence_table(rows: list[dict[str, Any]]) -> str:
    splits = [split for split in SPLITS if split in rows[0]]
    header = ["finding", *(f"{s} {word}" for s in splits for word in ("present", "of", "%"))]
    return format_table(
        header, [[row["finding"], *(v for s in splits for v in row[s].values())] for row in rows]
    )
