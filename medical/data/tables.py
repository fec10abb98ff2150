"""Tables of findings: csv files, plain or gzipped, as spreadsheets and archives write them."""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crossband.medical.data.radiographs import is_radiograph_file
from crossband.medical.data.records import counted
from crossband.shared.errors import DataError, did_you_mean

_UNCERTAIN = -1.0
_NUMBERS = {"": np.nan, "nan": np.nan, "0": 0.0, "1": 1.0, "-1": _UNCERTAIN}
_FEMALE, _MALE = ("F", "FEMALE", "W", "WOMAN"), ("M", "MALE", "MAN")
_OLDEST = 120.0  # years; more is a slip of the pen
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass
class Table:
    """A csv file.

    Attributes:
        path: The file.
        header: Names of the columns.
        rows: Cells, stripped of blanks at both ends.
        lines: Line in the file of each row, for messages.
    """

    path: Path
    header: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        """Return the cells of a column.

        Raises:
            DataError: there is none of that name.
        """
        if name not in self.header:
            hint = did_you_mean(name, self.header) or f" There are: {', '.join(self.header)}."
            raise DataError(f"{self.path.name} has no column {name!r}.{hint}")
        place = self.header.index(name)
        return [row[place] for row in self.rows]

    def require_unique(self, column: str) -> None:
        """Raise a DataError if a column names something twice; it names lines, not the cells."""
        require_unique(self.column(column), self.path.name, self.lines)


def read_table(path: Path) -> Table:
    """Read a csv file: UTF-8, separated by commas, semicolons or tabs, perhaps gzipped.

    Raises:
        DataError: missing, empty, not a text in UTF-8, a column named twice, or a row that is
            longer or shorter than the header.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix.lower() == ".gz" else data
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text in UTF-8: save it as csv (UTF-8).") from error
    except (OSError, EOFError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path} cannot be read: {reason}.") from error
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    header: tuple[str, ...] = ()
    rows, lines = [], []
    try:
        for row in reader:
            if not any(row):
                continue
            if not header:
                header = tuple(cell.strip() for cell in row)
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{path} has {len(row)} cells in line {reader.line_num} where the header names "
                    f"{len(header)} columns: correct that line."
                )
            rows.append([cell.strip() for cell in row])
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path} is not a csv file (line {reader.line_num}: {error}).") from error
    twice = [name for name, count in Counter(header).items() if count > 1 and name]
    if twice:
        raise DataError(f"{path} has two columns {twice[0]!r}: rename one of them.")
    if not rows:
        raise DataError(f"{path} holds no rows: give a csv with a header and a row per image.")
    return Table(path, header, rows, lines)


def require_unique(names: Sequence[str], where: str, lines: Sequence[int]) -> None:
    """Raise a DataError if a name stands twice; it tells the lines, since names tell patients."""
    seen: dict[str, int] = {}
    twice = [
        (line, other)
        for name, line in zip(names, lines, strict=True)
        if (other := seen.setdefault(name, line)) != line
    ]
    if twice:
        raise DataError(
            f"{where} lists {counted(len(twice), 'image')} a second time (lines {twice[0][1]} and "
            f"{twice[0][0]} first): give every image one row."
        )


def numbers(table: Table, columns: Sequence[str]) -> np.ndarray:
    """Return labels as float32 (N, K): 1, 0, -1 uncertain, NaN blank.

    Raises:
        DataError: a column that is not there, or another value.
    """
    found = np.empty((len(table.rows), len(columns)), np.float32)
    for place, name in enumerate(columns):
        for row, cell in enumerate(table.column(name)):
            value = label_value(cell)
            if value is None:
                raise DataError(
                    f"{table.path.name} has {cell[:20]!r} in line {table.lines[row]}, column "
                    f"{name!r}: labels are 1, 0, -1 (uncertain) or blank."
                )
            found[row, place] = value
    return found


def label_value(cell: str) -> float | None:
    """Return the value of a label, or None if it is none."""
    return _NUMBERS.get(cell.lower().removesuffix(".0"))


def settle(
    labels: np.ndarray, findings: Sequence[str], policy: str, paper: Mapping[str, float]
) -> tuple[np.ndarray, list[str]]:
    """Replace labels of -1 (uncertain) and return a note on it.

    Args:
        labels: (N, K), 1, 0, -1 or NaN.
        findings: K names.
        policy: `ones` (1), `zeros` (0), `ignore` (NaN), or `paper`.
        paper: Values by finding under `paper`; other findings get that of the key ``""``.
    """
    fixed = {"ones": 1.0, "zeros": 0.0, "ignore": np.nan}
    settled, notes = labels.copy(), []
    uncertain = labels == _UNCERTAIN
    for place, name in enumerate(findings):
        value = fixed[policy] if policy in fixed else paper.get(name, paper[""])
        settled[uncertain[:, place], place] = value
    if uncertain.any():
        many = counted(int(uncertain.sum()), "uncertain label")
        how = {"ones": "present", "zeros": "absent", "ignore": "unknown"}.get(policy, "the paper")
        notes.append(f"{many} (-1) taken as {how}")
        if policy not in fixed:
            notes[0] = f"{many} (-1) settled as the paper does"
    return settled, notes


def split_name(cell: str, where: str) -> str:
    """Return `train`, `val` or `test`.

    Raises:
        DataError: another word.
    """
    known = _SPLITS.get(cell.lower())
    if known is None:
        raise DataError(f"{where} has the split {cell[:20]!r}: write train, val or test.")
    return known


def sex_of(cell: str) -> str | None:
    """Return `F`, `M` or None."""
    capitals = cell.upper()
    return "F" if capitals in _FEMALE else "M" if capitals in _MALE else None


def age_of(cell: str) -> float | None:
    """Return years, or None where there are none or more than anyone lives; `058Y` is 58."""
    try:
        years = float(cell.upper().removesuffix("Y"))
    except ValueError:
        return None
    return years if 0 <= years <= _OLDEST else None


def walk(root: Path) -> Iterator[Path]:
    """Yield the radiographs in a folder, all levels, in order; hidden ones are left out."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder) / name
            if not name.startswith(".") and is_radiograph_file(path):
                yield path


class Files:
    """Finds the files that a list means: by path, else by name, with or without its suffix.

    Args:
        root: Folder that holds the list.
        files: Those that can be meant.
    """

    def __init__(self, root: Path, files: Iterable[Path]) -> None:
        """Index the names."""
        self.root = root
        self._names: dict[str, list[Path]] = {}
        for path in files:
            for name in {path.name, path.stem}:
                self._names.setdefault(name, []).append(path)

    def find(self, name: str) -> Path:
        """Return the file, or where it would lie; see `Collection` for those that are missing.

        Raises:
            DataError: several files in different folders have the name.
        """
        exact = self.root / name.replace("\\", "/")
        if exact.is_file():
            return exact
        found = self._names.get(exact.name, [])
        if len(found) > 1:
            raise DataError(
                f"{self.root}: an image of the list lies in {len(found)} folders: write the paths "
                "with their folders into the list."
            )
        return found[0] if found else exact
