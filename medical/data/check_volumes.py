"""A look at volumes before training: sizes, spacings, and how much of them each class is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crossband.medical.config import CheckConfig, SourceConfig
from crossband.medical.data import contact_sheet
from crossband.medical.data.masks import IGNORE, MaskClasses
from crossband.medical.data.overview import (
    Progress,
    counts_text,
    named_classes,
    print_list,
    set_facts,
    value_name,
    value_remark,
)
from crossband.medical.data.records import Collection, Record
from crossband.medical.data.scans import Scan, open_scan
from crossband.medical.privacy import Names
from crossband.shared.cli.output import format_table
from crossband.shared.errors import DataError


@dataclass
class VolumeLook:
    """What lies in one set of volumes.

    Attributes:
        data: The set, with splits.
        leaks: Patients in more than one of its own splits.
        shapes: Volumes by their number of voxels along each axis.
        spacings: Of every volume that tells, in mm along each axis.
        slices: Of all volumes.
        voxels: By value of the masks.
        holding: Masks by the values in them.
        unreadable: Name and reason of files that cannot be read.
        tiles: Small pictures for the contact sheet.
    """

    data: Collection
    leaks: list[str]
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    spacings: list[tuple[float, ...]] = field(default_factory=list)
    slices: int = 0
    voxels: Counter[int] = field(default_factory=Counter)
    holding: Counter[int] = field(default_factory=Counter)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    tiles: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class _Counting(MaskClasses):
    """Counts the values of a mask, whatever they are; ids are their ranks."""

    counts: Counter[int] = field(default_factory=Counter)

    def ids(self, mask: np.ndarray, path: str | Path) -> np.ndarray:
        if not np.isfinite(mask).all():
            raise DataError(f"The mask {path} holds what is no number: replace it.")
        whole = np.rint(mask).astype(np.int64)
        values, ranks, counts = np.unique(whole, return_inverse=True, return_counts=True)
        self.counts.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        ids = ranks.reshape(mask.shape) + int(values[0] != 0)
        return ids.clip(max=IGNORE).astype(np.uint8)


def read_all(look: VolumeLook, config: CheckConfig, names: Names, progress: Progress) -> None:
    """Read every volume and its masks."""
    every = max(1, len(look.data.records) // contact_sheet.IMAGES)
    for number, record in enumerate(look.data.records):
        progress.step()
        wanted = number % every == 0 and len(look.tiles) < contact_sheet.IMAGES
        try:
            _read(look, record, config.data, tiled=bool(config.out) and wanted)
        except DataError as error:
            files = (record.path, record.mask, *record.more_masks, *record.sequences)
            name = names.image(record.path, record.name)
            look.unreadable.append((name, names.error(error, *files)))


def _read(look: VolumeLook, record: Record, config: SourceConfig, *, tiled: bool) -> None:
    scan = open_scan(
        record.path, axis=config.axis, window=config.window, sequences=record.sequences
    )
    ids: np.ndarray | None = None
    for mask in (record.mask, *record.more_masks):
        if mask is None:
            continue
        counting = _Counting()
        found = scan.truth(mask, counting)
        ids = found if ids is None else np.maximum(ids, found)
        look.voxels.update(counting.counts)
        look.holding.update(counting.counts.keys())
    look.shapes[tuple(scan.shape)] += 1
    look.slices += len(scan)
    if scan.spacing is not None:
        look.spacings.append(scan.spacing)
    if tiled:
        look.tiles.append(_tile(scan, ids))


def _tile(scan: Scan, ids: np.ndarray | None) -> np.ndarray:
    """Return the middle slice, of those with a label where there are some."""
    if ids is None:
        return contact_sheet.tile(scan.picture(len(scan) // 2))
    others = tuple(axis for axis in range(ids.ndim) if axis != scan.across)
    labelled = np.flatnonzero((ids > 0).any(others))
    place = int(labelled[len(labelled) // 2]) if len(labelled) else len(scan) // 2
    return contact_sheet.tile(scan.picture(place), scan.mask_picture(ids, place))


def facts(look: VolumeLook, config: SourceConfig, names: Names) -> dict[str, Any]:
    """Return what was seen, ready for JSON."""
    records = look.data.records
    classes = named_classes(look.data, config.classes, config.mask_values)
    total = sum(look.voxels.values())
    remark = value_remark(look.voxels, classes)
    spacings = np.array(look.spacings)
    return {
        **set_facts(look.data),
        "sequences": max((1 + len(record.sequences) for record in records), default=1),
        "shapes": {" x ".join(map(str, s)): count for s, count in look.shapes.most_common()},
        "slices": look.slices,
        "spacing": [
            {"least": round(float(low), 4), "most": round(float(high), 4)}
            for low, high in zip(spacings.min(0), spacings.max(0), strict=True)
        ]
        if len(spacings)
        else None,
        "mask_values": [
            {
                "value": value,
                "class": value_name(value, classes),
                "masks": look.holding[value],
                "percent": round(100 * count / total, 4),
            }
            for value, count in sorted(look.voxels.items())
        ],
        "patients_in_two_splits": [names.patient(patient) for patient in look.leaks],
        "unreadable": [{"image": name, "reason": reason} for name, reason in look.unreadable],
        "notes": [*look.data.notes, *([remark] if remark else [])],
    }


def print_facts(found: dict[str, Any]) -> None:
    """Print what `facts` returns."""
    print(f"\n{found['data']}: layout {found['layout']}, {found['images']} volumes")
    rows = [tuple(row.values()) for row in found["splits"]]
    print(format_table(("split", "volumes", "patients"), rows))
    print(f"voxels: {counts_text(found['shapes'])}; {found['slices']} slices")
    if found["spacing"]:
        axes = [
            f"{axis['least']:g}"
            if axis["least"] == axis["most"]
            else "{least:g} to {most:g}".format(**axis)
            for axis in found["spacing"]
        ]
        print(f"spacing: {' x '.join(axes)} mm")
    if found["sequences"] > 1:
        print(f"sequences: {found['sequences']}")
    print(f"masks: {found['masks']}")
    if found["mask_values"]:
        rows = [
            (row["value"], row["class"] or "-", row["masks"], row["percent"])
            for row in found["mask_values"][:24]
        ]
        print(format_table(("value", "class", "masks", "% of voxels"), rows))
    for note in found["notes"]:
        print(f"note: {note}")
    print_list("patients in more than one split", found["patients_in_two_splits"])
    broken = [f"{entry['image']}: {entry['reason']}" for entry in found["unreadable"]]
    print_list("volumes that cannot be read", broken)
    if not broken:
        print("all volumes can be read")
