"""Boxes from a csv: image, x0, y0, x1, y1 in pixels of the image, and perhaps class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from crossband.medical.data.tables import Table, read_table
from crossband.medical.privacy import Names
from crossband.shared.errors import ConfigError, DataError

_CORNERS = ("x0", "y0", "x1", "y1")


@dataclass
class Boxes:
    """What an image is prompted with.

    Attributes:
        corners: x0, y0, x1, y1 of each box, float32 (N, 4), pixels of the image.
        kinds: Class id of each box, (N,).
    """

    corners: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    kinds: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        """Return the number of boxes."""
        return len(self.kinds)


@dataclass(frozen=True)
class BoxTable:
    """The rows of a csv of boxes.

    Attributes:
        images: What each row calls its image.
        boxes: Box and class of each row.
        lines: Of each row in the file.
    """

    images: tuple[str, ...]
    boxes: Boxes
    lines: tuple[int, ...]

    @classmethod
    def read(cls, path: str | Path, classes: Sequence[str]) -> BoxTable:
        """Read a csv.

        Args:
            path: The file.
            classes: Names by id, the background first; the column `class` holds names or ids, and
                may be left out where there is one class beside the background.

        Raises:
            DataError: it cannot be read, lacks a column, or a row that is no box.
        """
        table = read_table(Path(path))
        images = table.column("image")
        cells = zip(*(table.column(name) for name in _CORNERS), strict=True)
        corners = [_box(row, line, table) for row, line in zip(cells, table.lines, strict=True)]
        if "class" in table.header:
            words = table.column("class")
            kinds = [
                _class(word, line, table, classes)
                for word, line in zip(words, table.lines, strict=True)
            ]
        elif len(classes) == 2:
            kinds = [1] * len(images)
        else:
            raise DataError(
                f"{path} has no column 'class', and there are several classes "
                f"({', '.join(classes[1:])}): add one with the class of each box."
            )
        boxes = Boxes(np.array(corners, np.float32), np.array(kinds))
        return cls(tuple(images), boxes, tuple(table.lines))

    def assign(
        self, images: Sequence[tuple[Path, str | None]], names: Names
    ) -> tuple[list[Boxes], int]:
        """Return the boxes of each image, and how many rows are of none of them.

        A row means an image by its path, by the end of its path, by how its data set lists it, or
        by what it is called in results.

        Args:
            images: File of each image, and how its data set lists it.
            names: What images are called.

        Raises:
            DataError: a row that may mean several images.
        """
        rows: list[list[int]] = [[] for _ in images]
        ends: dict[str, list[int]] = {}
        for place, (path, _) in enumerate(images):
            ends.setdefault(path.name, []).append(place)
        listed = {name: place for place, (_, name) in enumerate(images) if name}
        shown: dict[str, int] | None = None
        unused = 0
        for row, word in enumerate(self.images):
            meant = [
                place
                for place in ends.get(Path(word).name, ())
                if _ends_with(images[place][0], word)
            ]
            if len(meant) > 1:
                here = Path(word).resolve()
                meant = [p for p in meant if images[p][0].resolve() == here] or meant
            if word in listed:
                meant = [listed[word]]
            elif not meant:
                if shown is None:
                    shown = {names.image(path, name): n for n, (path, name) in enumerate(images)}
                meant = [shown[word]] if word in shown else []
            if len(meant) > 1:
                raise DataError(
                    f"Line {self.lines[row]} of the boxes may mean {len(meant)} images of that "
                    "name: give its path."
                )
            unused += not meant
            for place in meant:
                rows[place].append(row)
        found = [Boxes(self.boxes.corners[own], self.boxes.kinds[own]) for own in map(_ints, rows)]
        return found, unused


def needed(path: str | None, classes: Sequence[str]) -> BoxTable:
    """Read the boxes that `predict` cannot do without.

    Raises:
        ConfigError: none are given.
        DataError: they cannot be read.
    """
    if not path:
        raise ConfigError(
            "These weights outline what a box holds: give --boxes boxes.csv with the columns "
            "image, x0, y0, x1, y1 (pixels), and class where there are several."
        )
    return BoxTable.read(path, classes)


def _ends_with(path: Path, word: str) -> bool:
    parts = Path(word).parts
    same = path.parts[-len(parts) :] == parts
    return same or Path(word).resolve() == path.resolve()


def _ints(rows: Sequence[int]) -> np.ndarray:
    return np.array(rows, np.int64)


def _box(cells: Sequence[str], line: int, table: Table) -> list[float]:
    try:
        x0, y0, x1, y1 = map(float, cells)
    except ValueError:
        x0 = y0 = x1 = y1 = math.nan
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 < x0 or y1 < y0:
        raise DataError(
            f"{table.path.name} has no box in line {line} ({', '.join(cells)}): give numbers with "
            "x0 up to x1 and y0 up to y1."
        )
    return [x0, y0, x1, y1]


def _class(word: str, line: int, table: Table, classes: Sequence[str]) -> int:
    if word in classes[1:]:
        return list(classes).index(word, 1)
    if word.isdecimal() and 1 <= int(word) < len(classes):
        return int(word)
    raise DataError(
        f"{table.path.name} has the class {word!r} in line {line}: the classes are "
        f"{', '.join(classes[1:])}."
    )
