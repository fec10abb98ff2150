"""Images with masks in folders or beside them, as segmentation sets lie on disk.

| known by | as in |
|---|---|
| `train/`, `train_labels/`, `valid/`, `valid_labels/`, `test/`, `test_labels/` | LVM-Med |
| `train/images/`, `train/masks/` ..., or `images/train/`, `masks/train/` | many |
| `..._Training_Input/`, `..._Training_GroundTruth/` | ISIC |
| `training/images/`, `training/1st_manual/`; `mask/` is then the field of view | DRIVE, HRF |
| `benign/benign (1).png`, `benign/benign (1)_mask.png`, `..._mask_1.png` | BUSI (BUID) |

Roles and splits are words of the folders' names; what else a folder is called must be the same for
an image and its mask, and so must the stems without their usual ends.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from crossband.medical.config import SourceConfig
from crossband.medical.data.radiographs import DICOM_SUFFIXES
from crossband.medical.data.records import Collection, Record, counted
from crossband.medical.data.tables import split_name
from crossband.shared.data.images import SUFFIXES
from crossband.shared.errors import DataError

MASK_WORDS = frozenset(
    (
        *("mask", "masks", "label", "labels", "annotation", "annotations", "annots", "gt"),
        *("truth", "groundtruth", "segmentation", "segmentations", "seg", "manual"),
    )
)
IMAGE_WORDS = frozenset(("image", "images", "img", "imgs", "input", "inputs", "data"))
_FLAT_MASKS = ("masks", "lung_masks", "mask")  # of the layout `images`
_MASK_SUFFIXES = (*SUFFIXES, ".gif")
_WORDS = re.compile(r"[A-Z]?[a-z]+|\d+[a-z]*|[A-Z]+(?![a-z])")
_MASK_END = re.compile(
    r"[\s_-](?:masks?|segmentation|seg|labels?|gt|groundtruth|annotation|manual1?|1stHO)"
    r"(?:[\s_-]?(?P<number>\d+))?$",
    re.IGNORECASE,
)
_IMAGE_END = re.compile(r"[\s_-](?:training|train|test|images?|img|input)$", re.IGNORECASE)
_SECOND_READER = re.compile(r"[\s_-](?:manual2|2ndHO)$", re.IGNORECASE)
_FIELD_OF_VIEW = re.compile(r"^\d+_(?:training|test)_mask$", re.IGNORECASE)
_OTHER = re.compile(r"_(?:superpixels|attribute_\w+)$", re.IGNORECASE)

# Split, folders that are neither a role nor a split, and stem without its usual ends.
_Key = tuple[str | None, tuple[str, ...], str]


@dataclass
class _Files:
    """Files of a folder by what they are.

    Attributes:
        images: Images by key.
        masks: Masks by key, each with the number at its end, or None.
        passed: What else is there, counted.
    """

    images: dict[_Key, list[Path]] = field(default_factory=dict)
    masks: dict[_Key, list[tuple[Path, str | None]]] = field(default_factory=dict)
    passed: Counter[str] = field(default_factory=Counter)


def split_word(text: str) -> str | None:
    """Return `train`, `val` or `test` if a word means one, as `valid` and `Testing` do."""
    try:
        return split_name(text, "")
    except DataError:
        return None


def name_words(text: str) -> list[str]:
    """Return the words of a file's or folder's name, small: `1st_GroundTruth`: 1st ground truth."""
    return [word.lower() for word in _WORDS.findall(text)]


def is_mask(relative: Path) -> bool:
    """Whether a file is a mask, by its folders within its set and the end of its name."""
    words = {word for part in relative.parts[:-1] for word in name_words(part)}
    return bool(MASK_WORDS & words or _MASK_END.search(relative.stem))


def detect(root: Path) -> bool:
    """Whether an image of the folder has a mask; `images/` and `masks/` alone are layout `images`.

    The layout `images` keeps sets with equal stems in `masks/` that have no splits.
    """
    files = _scan(root)
    both = files.images.keys() & files.masks.keys()
    if not both:
        return False
    flat = next((root / name for name in _FLAT_MASKS if (root / name).is_dir()), None)
    if flat is None or any(split for split, _, _ in both):
        return True
    stems = {path.stem for key in both for path, _ in files.masks[key] if flat in path.parents}
    return not any(path.stem in stems for key in both for path in files.images[key])


def read(root: Path, config: SourceConfig) -> Collection:
    """Take the images of a folder with their masks.

    With `--data.target class` the folders between the root and the images are the classes.

    Raises:
        DataError: an image with two possible masks, two images of one mask, no pair at all, or no
            classes where they are wanted.
    """
    files = _scan(root)
    if not files.images.keys() & files.masks.keys():
        raise DataError(
            f"{root}: no image has a mask ({counted(len(files.images), 'image')}, "
            f"{counted(len(files.masks), 'mask')}): give them equal names in folders as images/ "
            "and masks/, or the ends _mask or _segmentation."
        )
    records = []
    for key, paths in files.images.items():
        masks = _masks_of(root, key, paths, files.masks.get(key, []))
        for path in paths:
            name = path.relative_to(root).as_posix()
            more = tuple(masks[1:])
            mask = masks[0] if masks else None
            records.append(Record(path, name, split=key[0], mask=mask, more_masks=more))
    records.sort(key=lambda record: record.name)
    notes = [
        f"{counted(count, 'file')} passed over: {what}" for what, count in files.passed.items()
    ]
    bare = sum(record.mask is None for record in records)
    if bare:
        notes.append(f"{counted(bare, 'image')} without a mask")
    alone = sum(len(files.masks[key]) for key in files.masks.keys() - files.images.keys())
    if alone:
        notes.append(f"{counted(alone, 'mask')} without an image left out")
    collection = Collection(root, "pairs", (), False, records, notes)
    if config.target == "class":
        _take_classes(collection, files)
    return collection


def _masks_of(
    root: Path, key: _Key, images: list[Path], masks: list[tuple[Path, str | None]]
) -> list[Path]:
    """Return the masks of an image: one, and those numbered after it."""
    if not masks:
        return []
    folders = {path.parent.relative_to(root).parts for path, _ in masks}
    several = len({number for _, number in masks}) < len(masks)
    if several or len(folders) > 1 or len(images) > 1:
        # Further folders may be called after patients.
        shown = {"/".join(part for part in parts if part not in key[1]) for parts in folders}
        where = f" in {', '.join(sorted(shown))}" if any(shown) else ""
        raise DataError(
            f"{root}: {counted(len(masks), 'mask')}{where} could belong to "
            f"{counted(len(images), 'image')} of that name: leave one of each, or give a csv with "
            "a column mask."
        )
    ordered = sorted(masks, key=lambda item: int(item[1] or 0))
    return [path for path, _ in ordered]


def _take_classes(collection: Collection, files: _Files) -> None:
    """Make classes of the folders, in place."""
    folder = {path: key[1] for key, paths in files.images.items() for path in paths}
    names = sorted({folders[-1] if folders else "" for folders in folder.values()})
    if "" in names or len(names) < 2:
        raise DataError(
            f"{collection.root} has no folder per class: leave out --data.target class, or lay "
            "every class into a folder of its name."
        )
    collection.findings, collection.exclusive = tuple(names), True
    collection.records = [
        replace(record, labels=tuple(float(name == folder[record.path][-1]) for name in names))
        for record in collection.records
    ]


def _scan(root: Path) -> _Files:
    files = _Files()
    listed = list(_walk(root))
    manual = any("manual" in name_words(part) for folder, _ in listed for part in folder)
    for folder, names in listed:
        split, rest, role = _place(folder, manual)
        for name in names:
            _add(files, root.joinpath(*folder, name), split, rest, role)
    return files


def _place(folder: tuple[str, ...], manual: bool) -> tuple[str | None, tuple[str, ...], str]:
    """Return split, further folders and role of the files in a folder."""
    split, role, rest = None, "", []
    for part in folder:
        words = name_words(part)
        found = next((known for word in words if (known := split_word(word))), None)
        split = found or split
        if "2nd" in words:
            role = "second reader"
        elif manual and set(words) <= {"mask", "masks"}:
            role = "field of view"
        elif MASK_WORDS.intersection(words):
            role = "mask"
        elif found is None and not IMAGE_WORDS.intersection(words):
            rest.append(part)
    return split, tuple(rest), role


def _add(files: _Files, path: Path, split: str | None, rest: tuple[str, ...], role: str) -> None:
    """Put a file where it belongs; the end of its name may say more than its folder."""
    stem, end = path.stem, _MASK_END.search(path.stem)
    if role == "second reader" or _SECOND_READER.search(stem):
        files.passed["masks of a second reader"] += 1
    elif role == "field of view" or _FIELD_OF_VIEW.search(stem):
        files.passed["fields of view"] += 1
    elif _OTHER.search(stem):
        files.passed["superpixels and attributes"] += 1
    elif role == "mask" or end:
        if path.suffix.lower() in DICOM_SUFFIXES:
            files.passed["masks that are DICOM files"] += 1
            return
        number = end["number"] if end else None
        base = stem[: end.start()] if end else stem
        key = (split, rest, _IMAGE_END.sub("", base))
        files.masks.setdefault(key, []).append((path, number))
    elif path.suffix.lower() in (*SUFFIXES, *DICOM_SUFFIXES):
        key = (split, rest, _IMAGE_END.sub("", stem))
        files.images.setdefault(key, []).append(path)


def _walk(root: Path) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yield the folders below a root, as parts, each with the names of its images and masks."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        wanted = (*_MASK_SUFFIXES, *DICOM_SUFFIXES)
        kept = [
            name
            for name in sorted(names)
            if not name.startswith(".") and name.lower().endswith(wanted)
        ]
        if kept:
            yield Path(folder).relative_to(root).parts, kept
