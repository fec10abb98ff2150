"""Data sets of images and volumes where they lie: one file per layout on disk.

Layouts are looked for in this order; the first that is there is taken.

| layout | known by |
|---|---|
| `nih` | `Data_Entry_2017*.csv`, or `{train,val,test}_official.txt` |
| `mimic` | `mimic-cxr-2.0.0-split.csv` or `.csv.gz` |
| `covidx` | `train_COVIDx*.txt` |
| `chexpert` | `train.csv` or `valid.csv` with the columns Path and Frontal/Lateral |
| `volumes` | NIfTI or npy volumes with masks; before csv, since BraTS brings tables |
| `csv` | another csv |
| `pairs` | images with masks in folders of splits, or beside them by the ends of their names |
| `class-folders` | a folder per class, perhaps below folders of splits |
| `images` | nothing but files, perhaps with masks of equal names in `masks/` |

`vindr` and `coco` hold boxes and are read by `--task detection` alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from crossband.medical.config import SourceConfig
from crossband.medical.data import (
    chexpert,
    class_folders,
    covidx,
    csv_set,
    mimic,
    nih,
    pairs,
    volume_sets,
)
from crossband.medical.data.records import FRONTAL, Collection, Record, counted, normal_view
from crossband.medical.data.split_lists import apply_lists
from crossband.shared.errors import ConfigError, DataError, did_you_mean

_READERS: dict[str, Callable[[Path, SourceConfig], Collection]] = {
    "nih": nih.read,
    "chexpert": chexpert.read,
    "mimic": mimic.read,
    "covidx": covidx.read,
    "volumes": volume_sets.read,
    "csv": csv_set.read,
    "pairs": pairs.read,
    "class-folders": class_folders.read,
    "images": csv_set.read_images,
}
# What `--data.target` may name where there is no csv of the user's own.
_TARGETS = ("view", "sex")
_BOXES = ("vindr", "coco")  # layouts of detection


def find(config: SourceConfig) -> list[Collection]:
    """Find the data sets, one per root, as the options want them.

    Files that a list names and that are not there, and images of other views than wanted, are left
    out and counted in the notes.

    Raises:
        ConfigError: no root or one given twice, a finding or class that is not there.
        DataError: no such folder, no image in it, or lists that are not as they should be.
    """
    if not config.root:
        raise ConfigError("There are no images: give --data.root (a folder).")
    roots = [Path(root) for root in config.root]
    twice = [root for root, count in Counter(p.resolve() for p in roots).items() if count > 1]
    if twice:
        raise ConfigError(f"--data.root {twice[0]} is given twice: give it once.")
    return [_find(root, config) for root in roots]


def _find(root: Path, config: SourceConfig) -> Collection:
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}: give the folder of a data set as --data.root.")
    layout = _detect(root, config) if config.layout == "auto" else config.layout
    if layout in _BOXES:
        raise ConfigError(f"--data.layout {layout} holds boxes: give --task detection.")
    collection = _READERS[layout](root, config)
    if not collection.records:
        raise DataError(
            f"{root} (layout {layout}) holds no radiograph or other image: PNG, JPEG, TIFF, BMP, "
            "WebP and DICOM files are read, and NIfTI and npy volumes."
        )
    _leave_out_missing(collection)
    apply_lists(collection, config)
    if config.target is not None:
        if layout != "csv":
            collection = _by_attribute(collection, config)
    elif config.labels and layout != "images":
        _pick(collection, config.labels)
    _leave_out_views(collection, config.views)
    return collection


def _detect(root: Path, config: SourceConfig) -> str:
    if config.table is not None:
        return "csv"
    for name, module in (
        ("nih", nih),
        ("mimic", mimic),
        ("covidx", covidx),
        ("chexpert", chexpert),
    ):
        if module.detect(root):
            return name
    if volume_sets.detect(root):
        return "volumes"
    if csv_set.detect(root, config):
        return "csv"
    if pairs.detect(root):
        return "pairs"
    return "class-folders" if class_folders.detect(root) else "images"


def _leave_out_missing(collection: Collection) -> None:
    kept, missing, masks = [], 0, 0
    for record in collection.records:
        if not record.path.exists():  # a DICOM series is a folder
            missing += 1
            continue
        if record.mask is not None and not record.mask.is_file():
            masks += 1
            record = replace(record, mask=None)
        kept.append(record)
    if not kept:
        raise DataError(
            f"{collection.root} (layout {collection.layout}): none of "
            f"{counted(missing, 'image')} in its lists is there; give the folder that holds both "
            "lists and images."
        )
    same = len(kept) - len({record.path for record in kept})
    if same:
        raise DataError(
            f"{collection.root} (layout {collection.layout}): its lists name "
            f"{counted(same, 'file')} a second time under another name: give every image one row."
        )
    if missing:
        collection.notes.append(f"{counted(missing, 'image')} left out, listed but not there")
    if masks:
        collection.notes.append(f"{counted(masks, 'mask')} left out, listed but not there")
    collection.records = kept


def _pick(collection: Collection, labels: Sequence[str]) -> None:
    """Take the findings that are wanted, in that order."""
    for name in labels:
        if name not in collection.findings:
            known = collection.findings
            hint = did_you_mean(name, known) or f" There are: {', '.join(known) or 'none'}."
            raise ConfigError(f"--data.labels: {collection.root} has no finding {name!r}.{hint}")
    if len(set(labels)) < len(labels):
        raise ConfigError(f"--data.labels {' '.join(labels)}: name every finding once.")
    places = [collection.findings.index(name) for name in labels]
    kept = [
        replace(record, labels=tuple(record.labels[place] for place in places))
        for record in collection.records
    ]
    if collection.exclusive:
        left = len(kept)
        kept = [record for record in kept if sum(record.labels) == 1]
        if len(kept) < left:
            collection.notes.append(
                f"{counted(left - len(kept), 'image')} left out, of other classes"
            )
    collection.findings, collection.records = tuple(labels), kept


def _by_attribute(collection: Collection, config: SourceConfig) -> Collection:
    """Make classes of what is known of every image."""
    if config.target == "class" and collection.exclusive:
        if config.labels:
            _pick(collection, config.labels)
        return collection
    if config.target not in _TARGETS:
        raise ConfigError(
            f"--data.target {config.target}: layout {collection.layout} has "
            f"{' and '.join(_TARGETS)}; class is of folders of classes, and other columns need a "
            "csv of your own (layout csv)."
        )

    def value(record: Record) -> str | None:
        return record.view if config.target == "view" else record.sex

    there = sorted({found for record in collection.records if (found := value(record))})
    classes = tuple(config.labels) or tuple(there)
    if len(classes) < 2 or set(classes) - set(there):
        raise ConfigError(
            f"--data.target {config.target}: {collection.root} has {', '.join(there) or 'none'}; "
            "two classes or more are needed, and --data.labels can only name those."
        )
    kept = [
        replace(record, labels=tuple(float(name == value(record)) for name in classes))
        for record in collection.records
        if value(record) in classes
    ]
    left = len(collection.records) - len(kept)
    notes = (
        [f"{counted(left, 'image')} left out, of another {config.target} or none"] if left else []
    )
    return Collection(
        collection.root, collection.layout, classes, True, kept, [*collection.notes, *notes]
    )


def _leave_out_views(collection: Collection, views: Sequence[str]) -> None:
    wanted = {normal_view(view) for view in views} or set(FRONTAL)
    other = Counter(
        record.view for record in collection.records if record.view not in {None, *wanted}
    )
    if not other:
        return
    for view, count in sorted(other.items()):
        shown = view if view in FRONTAL or view is None else view.lower()
        collection.notes.append(f"{counted(count, f'{shown} view')} left out")
    collection.records = [record for record in collection.records if record.view in {None, *wanted}]
    if not collection.records:
        raise DataError(
            f"{collection.root} holds no image of the views {', '.join(sorted(map(str, wanted)))}: "
            f"it has {', '.join(sorted(map(str, other)))}; name them by --data.views."
        )
