"""A folder of images and a csv with a row per image; or nothing but images.

Columns are known by their usual names (`--data.columns` names others); the findings are all other
columns that hold nothing but 1, 0, -1 (uncertain) and blanks (unknown).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crossband.medical.config import SourceConfig
from crossband.medical.data import chexpert
from crossband.medical.data.records import Collection, Record, counted, normal_view
from crossband.medical.data.tables import (
    Files,
    Table,
    age_of,
    label_value,
    numbers,
    read_table,
    settle,
    sex_of,
    split_name,
    walk,
)
from crossband.shared.errors import ConfigError, DataError, did_you_mean

# Usual names, in small letters and digits alone; the first that a csv has is taken.
ROLES = {
    "image": (
        *("image", "imagepath", "imagefile", "imagename", "imageid", "imageindex", "img"),
        *("path", "filepath", "file", "filename", "dicom", "dicompath", "dicomid"),
    ),
    "patient": ("patientid", "patient", "subjectid", "subject", "pid"),
    "split": ("split", "subset", "partition", "set"),
    "view": ("view", "viewposition", "projection"),
    "sex": ("sex", "gender", "patientsex", "patientgender"),
    "age": ("age", "patientage", "ageyears"),
    "mask": ("mask", "lungmask", "maskpath", "maskfile", "segmentation"),
}
_SHOWN = 6  # columns named in a note
_MASK_FOLDERS = ("masks", "lung_masks", "mask")


def detect(root: Path, config: SourceConfig) -> bool:
    """Whether a folder holds a csv, or one was named."""
    return config.table is not None or any(root.glob("*.csv"))


def read(root: Path, config: SourceConfig) -> Collection:
    """Read the csv.

    Raises:
        ConfigError: a role that `columns` names and nobody has.
        DataError: no csv or several, no column of images, a column that is not there, or a cell
            that is not as it should be.
    """
    table = read_table(_table_path(root, config.table))
    roles = _roles(table, config.columns)
    table.require_unique(roles["image"])
    rows = _Rows(root, table, roles)
    findings, labels, notes = _labels(table, roles, config)
    records = [rows.record(place, row) for place, row in enumerate(labels) if row is not None]
    classes = _mask_classes(roles.get("mask", ""))
    exclusive = config.target is not None
    return Collection(root, "csv", findings, exclusive, records, notes, classes=classes)


def read_images(root: Path, config: SourceConfig) -> Collection:
    """Take all radiographs of a folder, with masks of the same stem in `masks/` if there are any.

    Raises:
        DataError: two images in `images/` of one stem, where there are masks.
    """
    masks: dict[str, Path] = {}
    folder = next((root / name for name in _MASK_FOLDERS if (root / name).is_dir()), None)
    if folder is not None:
        masks = {path.stem: path for path in walk(folder)}
    paths = [path for path in walk(root) if folder is None or folder not in path.parents]
    records = []
    for path in paths:
        name = path.relative_to(root).as_posix()
        records.append(Record(path, name, mask=masks.get(path.stem)))
    stems = [path.stem for path in paths if path.stem in masks]
    if len(set(stems)) < len(stems):
        raise DataError(
            f"{root} holds images of one name in different folders, so their masks in "
            f"{folder.name if folder else ''}/ are not certain: give a csv with a column mask."
        )
    classes = _mask_classes(folder.name if folder else "")
    return Collection(root, "images", (), False, records, classes=classes)


def _mask_classes(name: str) -> tuple[str, ...]:
    """Return the classes of masks whose column or folder says that they are of lungs."""
    return ("background", "lung") if "lung" in name.lower() else ()


def _table_path(root: Path, named: str | None) -> Path:
    if named is not None:
        for path in (root / named, Path(named)):
            if path.is_file():
                return path
        raise DataError(f"--data.table {named}: there is no such file in {root}.")
    found = sorted(root.glob("*.csv"))
    if not found:
        raise DataError(
            f"{root} holds no csv: put one with a column image and a column per finding there, "
            "or name it by --data.table."
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{root} holds several csv files ({names}): name one by --data.table.")
    return found[0]


def _roles(table: Table, columns: dict[str, str]) -> dict[str, str]:
    """Return the columns by what they hold."""
    plain: dict[str, str] = {}
    for name in table.header:
        plain.setdefault(re.sub(r"[^a-z0-9]", "", name.lower()), name)
    roles = {
        role: next(plain[usual] for usual in usuals if usual in plain)
        for role, usuals in ROLES.items()
        if any(usual in plain for usual in usuals)
    }
    for role, name in columns.items():
        if role not in ROLES:
            hint = did_you_mean(role, ROLES) or f" There are: {', '.join(ROLES)}."
            raise ConfigError(f"--data.columns: nothing is called {role!r}.{hint}")
        if not name:
            roles.pop(role, None)  # `split=`: do not use it
            continue
        table.column(name)
        roles[role] = name
    if "image" not in roles:
        raise DataError(
            f"{table.path.name} has no column of image files (it has {', '.join(table.header)}): "
            "name it by --data.columns image=NAME."
        )
    return roles


@dataclass
class _Rows:
    """Turns rows into records."""

    root: Path
    table: Table
    roles: dict[str, str]

    def __post_init__(self) -> None:
        self.cells = {role: self.table.column(name) for role, name in self.roles.items()}
        masks = {self.root / cell for cell in self.cells.get("mask", ()) if cell}
        self.files = Files(self.root, (path for path in walk(self.root) if path not in masks))

    def record(self, place: int, labels: tuple[float, ...]) -> Record:
        cell = {role: cells[place] for role, cells in self.cells.items()}
        split = cell.get("split")
        return Record(
            self.files.find(cell["image"]),
            cell["image"],
            patient=cell.get("patient") or None,
            labels=labels,
            split=None if split is None else split_name(split, self.table.path.name),
            view=normal_view(cell.get("view", "")),
            sex=sex_of(cell.get("sex", "")),
            age=age_of(cell.get("age", "")),
            mask=self.root / cell["mask"] if cell.get("mask") else None,
        )


def _labels(
    table: Table, roles: dict[str, str], config: SourceConfig
) -> tuple[tuple[str, ...], list[tuple[float, ...] | None], list[str]]:
    """Return the findings, labels per row (None: leave the row out), and notes."""
    if config.target is not None:
        return _classes(table, config)
    wanted = [name for name in config.labels if name in table.header]
    findings = tuple(
        name
        for place, name in enumerate(table.header)
        if name in wanted or (name and name not in roles.values() and _is_finding(table, place))
    )
    values, notes = settle(numbers(table, findings), findings, config.uncertain, chexpert.PAPER)
    other = [n for n in table.header if n and n not in findings and n not in roles.values()]
    if other:
        shown = ", ".join(other[:_SHOWN]) + (", ..." if len(other) > _SHOWN else "")
        many = counted(len(other), "column")
        notes.append(f"{many} passed over ({shown}): findings hold 1, 0, -1 and blanks alone")
    return findings, [tuple(row) for row in values.tolist()], notes


def _is_finding(table: Table, place: int) -> bool:
    values = {row[place] for row in table.rows}
    return values != {""} and all(label_value(value) is not None for value in values)


def _classes(
    table: Table, config: SourceConfig
) -> tuple[tuple[str, ...], list[tuple[float, ...] | None], list[str]]:
    cells = table.column(config.target or "")
    classes = tuple(config.labels) or tuple(sorted(set(cells) - {""}))
    unknown = [name for name in classes if name not in cells]
    if unknown:
        hint = (
            did_you_mean(unknown[0], set(cells)) or f" There are: {', '.join(sorted(set(cells)))}."
        )
        raise ConfigError(f"--data.labels: no image has {config.target} {unknown[0]!r}.{hint}")
    if len(classes) < 2:
        raise DataError(
            f"Column {config.target!r} of {table.path.name} holds fewer than two classes: "
            "name another --data.target."
        )
    eye = np.eye(len(classes)).tolist()
    labels = [tuple(eye[classes.index(cell)]) if cell in classes else None for cell in cells]
    left = labels.count(None)
    notes = (
        [f"{counted(left, 'image')} left out, of another {config.target} or none"] if left else []
    )
    return classes, labels, notes
