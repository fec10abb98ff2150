"""A folder per class, as the brain tumour MRI set and many others lie on disk.

| folders | splits |
|---|---|
| `Training/<class>/`, `Testing/<class>/` | the folders (also train, valid, val, validation, test) |
| `<class>/` | none |

Images may lie in further folders below a class. A set that is the only folder of its root is found.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice
from pathlib import Path

from crossband.medical.config import SourceConfig
from crossband.medical.data.pairs import IMAGE_WORDS, MASK_WORDS, name_words, split_word
from crossband.medical.data.records import Collection, Record, counted
from crossband.medical.data.tables import walk
from crossband.shared.errors import DataError

_MOST = 50  # classes, where nobody has said that the folders are classes
_LEAST = 2  # images of each class, where nobody has said so
_SHOWN = 6  # classes named in a note
_NOT_A_CLASS = re.compile(
    r"(?:patients?|subjects?|sub|subj|pt|p|s|case|study|series|session|visit|scan|volume|vol|img|"
    r"images?|batch|part|fold|set)[\s_-]*\d+",
    re.IGNORECASE,
)


def detect(root: Path) -> bool:
    """Whether the folders look like classes: two to fifty, no roles, and not numbered patients."""
    top = _top(root)
    splits = _splits(top)
    names = {folder.name for part in (splits or [top]) for folder in _folders(part)}
    if not 2 <= len(names) <= _MOST or any(map(_is_no_class, names)):
        return False
    if not splits and any(path.parent == top for path in islice(walk(top), 1)):
        return False
    return all(
        len(list(islice(walk(folder), _LEAST))) == _LEAST
        for part in (splits or [top])
        for folder in _folders(part)
    )


def read(root: Path, config: SourceConfig) -> Collection:
    """Take the images of every class; classes are in the order of their names.

    Raises:
        DataError: fewer than two classes.
    """
    top = _top(root)
    splits = _splits(top)
    found: list[tuple[Path, str, str | None]] = []
    classes: dict[str | None, set[str]] = {}
    outside = 0
    for part in splits or [top]:
        split = split_word(part.name) if splits else None
        for path in walk(part):
            folders = path.relative_to(part).parts[:-1]
            if not folders:
                outside += 1
                continue
            found.append((path, folders[0], split))
            classes.setdefault(split, set()).add(folders[0])
    names = sorted({name for part in classes.values() for name in part})
    if len(names) < 2:
        raise DataError(
            f"{root} has {counted(len(names), 'folder')} of images where two classes or more are "
            "needed: lay every class into a folder of its name, below train/ and test/ if it is "
            "split."
        )
    records = [
        Record(
            path,
            path.relative_to(root).as_posix(),
            labels=tuple(float(name == other) for other in names),
            split=split,
        )
        for path, name, split in found
    ]
    counts = Counter(name for _, name, _ in found)
    shown = [f"{name} ({counts[name]})" for name in names[:_SHOWN]]
    shown += ["..."] if len(names) > _SHOWN else []
    notes = [f"{len(names)} folders taken as classes: {', '.join(shown)}"]
    if outside:
        notes.append(f"{counted(outside, 'image')} in no folder of a class left out")
    missing = {name for part in classes.values() for name in names if name not in part}
    if missing:
        notes.append(f"not in every split: {', '.join(sorted(missing))}")
    return Collection(root, "class-folders", tuple(names), True, records, notes)


def _top(root: Path) -> Path:
    """Return the folder that has more than one folder, or images."""
    while len(inside := _folders(root)) == 1 and not split_word(inside[0].name):
        if next(walk(root)).parent == root:
            break
        root = inside[0]
    return root


def _folders(folder: Path) -> list[Path]:
    """Return the folders that hold images, at any level, in order."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir()
        and not path.name.startswith((".", "__MACOSX"))
        and next(walk(path), None) is not None
    ]


def _splits(folder: Path) -> list[Path]:
    """Return the folders of the splits, if there are any."""
    return [path for path in _folders(folder) if split_word(path.name)]


def _is_no_class(name: str) -> bool:
    words = set(name_words(name))
    return bool(words & (MASK_WORDS | IMAGE_WORDS) or _NOT_A_CLASS.fullmatch(name))
