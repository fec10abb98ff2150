"""Lists of file names: which images train, validate and test, or were learnt from.

A split list is a json file: `{"train": [...], "valid": [...], "test": [...]}` of names, as LVM-Med
writes them, or a data list of MSD, nnU-Net or MONAI: `{"training": [{"image": ..., "fold": 0}],
"validation": [...], "test": [...]}`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from crossband.medical.config import SourceConfig
from crossband.medical.data.csv_set import ROLES
from crossband.medical.data.pairs import split_word
from crossband.medical.data.radiographs import DICOM_SUFFIXES
from crossband.medical.data.records import Collection, Record, counted
from crossband.medical.data.volumes import FOREIGN_VOLUMES, VOLUME_SUFFIXES
from crossband.shared.data.images import FOREIGN_SUFFIXES, SUFFIXES
from crossband.shared.errors import ConfigError, DataError

LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".lst", ".list")
_KNOWN = (
    *(*VOLUME_SUFFIXES, *FOREIGN_VOLUMES),  # .nii.gz before what ends like it
    *(*SUFFIXES, *FOREIGN_SUFFIXES, *DICOM_SUFFIXES),
)
_ENDS = "|".join(re.escape(end) for end in sorted(_KNOWN, key=len, reverse=True))
# A name and, after it, what some lists add: labels, a split.
_LINE = re.compile(rf"(.+?(?:{_ENDS}))(?:[\s,;].*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Listed:
    """A name in a list.

    Attributes:
        name: As the list writes it, with `/` between folders.
        line: Its place: a line of a text, a row of a csv file, a number in a json file, from 1.
        split: `train`, `val`, `test`, or None where the list does not say.
        fold: Number of a MONAI data list, or None.
    """

    name: str
    line: int
    split: str | None = None
    fold: int | None = None


def bare_name(name: str) -> str:
    """Return a file's name without folders and the suffix of an image or volume."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return without_suffix(last)


def without_suffix(name: str) -> str:
    """Return a name without the suffix of an image or volume; other dots stay."""
    suffix = next((end for end in _KNOWN if name.lower().endswith(end)), "")
    return name[: len(name) - len(suffix)] if len(suffix) < len(name) else name


def apply_lists(collection: Collection, config: SourceConfig) -> None:
    """Give the images of a set the splits of `--data.lists`, in place, with notes.

    Names may have folders and suffixes or not. Images that the lists do not name are left out.

    Raises:
        ConfigError: a fold that the list does not have.
        DataError: no such file, not a json file of lists, a name of several files, a file in two
            splits, or no file that is there.
    """
    if config.lists is None:
        return
    path = _list_path(collection.root, config.lists)
    entries = _with_folds(read_json(path), config, path, collection)
    index = _Index(collection)
    splits: dict[int, str] = {}
    missing: set[str] = set()
    clashes: set[int] = set()
    for entry in entries:
        if entry.split is None:
            continue
        place = index.find(entry, path)
        if place is None:
            missing.add(entry.name)
        elif splits.setdefault(place, entry.split) != entry.split:
            clashes.add(place)
    if clashes:
        raise DataError(
            f"{path} has {counted(len(clashes), 'file')} in two splits, which makes results look "
            "better than they are: leave each in one."
        )
    if not splits:
        raise DataError(
            f"{path}: none of its {counted(len(missing), 'name')} is a file of {collection.root}: "
            "give names as they are there."
        )
    left = len(collection.records) - len(splits)
    if left:
        collection.notes.append(f"{counted(left, 'image')} left out, not in {path.name}")
    if missing:
        collection.notes.append(
            f"{counted(len(missing), 'name')} of {path.name} passed over, not there"
        )
    collection.records = [
        replace(record, split=splits[place])
        for place, record in enumerate(collection.records)
        if place in splits
    ]


def read_names(path: Path) -> list[Listed]:
    """Read the names of a list: a text of one per line, a csv file with a column of them, or json.

    Raises:
        DataError: it cannot be read, or holds no names.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        found = read_json(path)
    else:
        lines = _text(path).splitlines()
        found = _csv_names(path, lines) if suffix in (".csv", ".tsv") else _text_names(lines)
    if not found:
        raise DataError(f"{path} holds no names of files: write one per line.")
    return found


def read_json(path: Path) -> list[Listed]:
    """Read a json file: a list of names, or lists of names by split.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a json file ({error}): correct it.") from error
    if isinstance(content, list):
        return [_entry(item, place, None, path) for place, item in enumerate(content, 1)]
    found: list[Listed] = []
    for key, items in content.items() if isinstance(content, dict) else ():
        split = split_word(str(key).strip())
        if isinstance(items, list) and split is not None:
            found += [_entry(item, place, split, path) for place, item in enumerate(items, 1)]
    if not found:
        raise DataError(
            f'{path} holds no lists of names: write {{"train": [...], "val": [...], "test": '
            "[...]}."
        )
    return found


def _list_path(root: Path, named: str) -> Path:
    for path in (Path(named), root / named):
        if path.is_file():
            return path
    raise DataError(f"--data.lists {named}: there is no such file, here or in {root}.")


def _with_folds(
    entries: list[Listed], config: SourceConfig, path: Path, collection: Collection
) -> list[Listed]:
    """Return the entries; where no list validates, one fold of those that train does."""
    known = sorted({entry.fold for entry in entries if entry.fold is not None})
    if not known or config.folds or any(entry.split == "val" for entry in entries):
        return entries
    if config.fold not in known:
        raise ConfigError(
            f"--data.fold {config.fold}: {path.name} has the folds {', '.join(map(str, known))}."
        )
    collection.notes.append(f"fold {config.fold} of {path.name} validates, the others train")
    return [
        replace(entry, split="val")
        if entry.split == "train" and entry.fold == config.fold
        else entry
        for entry in entries
    ]


class _Index:
    """Finds the records that names of lists mean: by as many folders as both have."""

    def __init__(self, collection: Collection) -> None:
        self.root = collection.root
        self._places: dict[str, set[int]] = {}
        for place, record in enumerate(collection.records):
            for tail in self._tails_of(record):
                self._places.setdefault(tail, set()).add(place)

    def find(self, entry: Listed, path: Path) -> int | None:
        for tail in _tails(entry.name):
            found = self._places.get(tail) or self._places.get(without_suffix(tail)) or set()
            if len(found) == 1:
                return next(iter(found))
            if found:
                raise DataError(
                    f"{path}: name {entry.line} of {entry.split} is that of {len(found)} files of "
                    f"{self.root}: write the folders before it."
                )
        return None

    def _tails_of(self, record: Record) -> set[str]:
        """Return what a file may be called: its name, with folders before it, without suffix."""
        files = [path for path in (record.path, *record.sequences) if self.root in path.parents]
        names = {record.name, *(path.relative_to(self.root).as_posix() for path in files)}
        tails = {tail for name in names for tail in _tails(name)}
        return tails | {without_suffix(tail) for tail in tails}


def _tails(name: str) -> list[str]:
    """Return a path and its ends, longest first: a/b/c, b/c, c."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _entry(item: Any, place: int, split: str | None, path: Path) -> Listed:
    fold = None
    if isinstance(item, dict):
        fold = item.get("fold") if isinstance(item.get("fold"), int) else None
        item = next((item[key] for key in ("image", "file_name", "path") if key in item), None)
    if isinstance(item, list) and item:
        item = item[0]  # sequences of one study
    if not isinstance(item, str) or not item.strip():
        where = f" of {split}" if split else ""
        raise DataError(
            f"{path}: entry {place}{where} is no name of a file: write names, or objects with the "
            "key image."
        )
    return Listed(_clean(item), place, split, fold)


def _clean(name: str) -> str:
    return PurePosixPath(name.strip().replace("\\", "/")).as_posix()


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text in UTF-8: save it so.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _text_names(lines: Iterable[str]) -> list[Listed]:
    found = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text and not text.startswith("#"):
            match = _LINE.fullmatch(text)
            found.append(Listed(_clean(match[1] if match else text), number))
    return found


def _csv_names(path: Path, lines: list[str]) -> list[Listed]:
    """Return the column of images by its usual names, or the one that holds names of files."""
    separator = max(",;\t", key=lines[0].count) if lines else ","
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)]
    except csv.Error as error:
        raise DataError(f"{path} is not a csv file ({error}): save it again.") from error
    header = [re.sub(r"[^a-z0-9]", "", cell.lower()) for cell in rows[0]] if rows else []
    column = next((header.index(name) for name in ROLES["image"] if name in header), None)
    split = next((header.index(name) for name in ROLES["split"] if name in header), None)
    first = 1
    if column is None:
        first, split = 0, None
        counts = [
            sum(len(row) > place and row[place].lower().endswith(_KNOWN) for row in rows)
            for place in range(len(header))
        ]
        if not any(counts):
            raise DataError(f"{path} has no column of file names: call it image.")
        column = counts.index(max(counts))
        first = int(not rows[0][column].lower().endswith(_KNOWN))
    return [
        Listed(
            _clean(row[column]),
            number,
            split_word(row[split]) if split is not None and len(row) > split else None,
        )
        for number, row in enumerate(rows[first:], first + 1)
        if len(row) > column and row[column]
    ]
