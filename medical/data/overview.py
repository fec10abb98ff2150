"""What `data check` says of images and of volumes alike: progress, splits, lists, values."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from crossband.medical.data.masks import FOREGROUND, MaskClasses
from crossband.medical.data.records import Collection, Record
from crossband.medical.data.splits import SPLITS

SHOWN = 10  # files named in a list on the terminal
_EVERY = 10.0  # seconds between lines of progress
_VALUES = 24  # different values of masks that can be classes


class Progress:
    """Says now and then how far the reading is.

    Args:
        count: Files to read.
        silent: Say nothing.
    """

    def __init__(self, count: int, silent: bool) -> None:
        """Start the clock."""
        self.count, self.done, self.start = count, 0, time.monotonic()
        self.silent, self.last = silent, self.start

    def step(self) -> None:
        """Count a file."""
        self.done += 1
        now = time.monotonic()
        if self.silent or now - self.last < _EVERY:
            return
        self.last = now
        left = (now - self.start) / self.done * (self.count - self.done)
        print(f"read {self.done} of {self.count}, {left:.0f} s left", file=sys.stderr, flush=True)


def known_patients(records: Iterable[Record]) -> int | None:
    """Return the number of patients, or None where nobody is known."""
    return len({record.patient for record in records if record.patient is not None}) or None


def split_rows(data: Collection) -> list[dict[str, Any]]:
    """Return name, images and patients of every split that has images."""
    return [
        {"split": split, "images": len(part), "patients": known_patients(part)}
        for split in SPLITS
        if (part := data.split(split))
    ]


def set_facts(data: Collection) -> dict[str, Any]:
    """Return what there is to say of any data set, ready for JSON."""
    return {
        "data": str(data.root),
        "layout": data.layout,
        "images": len(data.records),
        "patients": known_patients(data.records),
        "splits": split_rows(data),
        "masks": sum(record.mask is not None for record in data.records),
    }


def counts_text(counts: Mapping[str, int]) -> str:
    """Return `256 x 256 (12), 224 x 224 (3)`, the first ten."""
    shown = [f"{name} ({count})" for name, count in list(counts.items())[:SHOWN]]
    more = len(counts) - SHOWN
    return ", ".join([*shown, f"and {more} others"] if more > 0 else shown) or "-"


def print_list(title: str, lines: Sequence[str]) -> None:
    """Print a title with the number of lines, and the first ten of them; nothing without lines."""
    if not lines:
        return
    print(f"{title}: {len(lines)}")
    for line in lines[:SHOWN]:
        print(f"  {line}")
    if len(lines) > SHOWN:
        print(f"  and {len(lines) - SHOWN} more (--json lists all)")


def value_name(value: int, classes: MaskClasses | None) -> str | None:
    """Return the class that a value of masks stands for, or None where nobody said."""
    if classes is None:
        return None
    if classes.values:
        return classes.names[classes.values.index(value)] if value in classes.values else None
    if len(classes) == 2:
        return classes.names[int(value != 0)]
    return classes.names[value] if 0 <= value < len(classes) else None


def value_remark(values: Counter[int], classes: MaskClasses | None) -> str | None:
    """Return what a user has to know of the values of all masks, or None.

    Args:
        values: Masks, or voxels, by value.
        classes: As the options or the set name them, or None.
    """
    there = sorted(values)
    if not there:
        return None
    if len(there) > _VALUES:
        return (
            f"masks hold {len(there)} values, {there[0]} to {there[-1]}: they are no class ids, as "
            "of a JPEG or of soft edges; without --data.mask_values all but 0 is one class"
        )
    if classes is not None:
        unknown = [str(value) for value in there if value_name(value, classes) is None]
        if not unknown:
            return None
        return (
            f"masks hold the values {', '.join(unknown)} that are no class: name them by "
            "--data.classes and --data.mask_values"
        )
    if len(there) <= 2:
        return None
    known = " ".join(map(str, there))
    return (
        f"masks hold {len(there)} values: {' and '.join(FOREGROUND)} are told apart by default; "
        f"give --data.classes with {len(there)} names"
        + ("" if there == list(range(len(there))) else f" and --data.mask_values {known}")
    )


def named_classes(
    data: Collection, names: Sequence[str], values: Sequence[int]
) -> MaskClasses | None:
    """Return the classes of masks: the options', else the set's, or None.

    Raises:
        ConfigError: names or values that cannot be.
    """
    if names:
        return MaskClasses.given(names, values)
    return MaskClasses(data.classes) if len(data.classes) > 1 else None
