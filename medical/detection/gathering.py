"""Finds images with boxes, and says who trains and who tests: patients are never divided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from crossband.medical.config import SourceConfig
from crossband.medical.data import coco, vindr
from crossband.medical.data.layouts import find
from crossband.medical.data.masks import MaskClasses
from crossband.medical.data.records import Collection, counted
from crossband.medical.data.splits import SPLITS, complete, require_disjoint
from crossband.medical.detection.data import BoxData, Boxed, Boxes, Marked
from crossband.medical.detection.fusion import Fusion
from crossband.medical.detection.masks import OBJECT, boxes_of
from crossband.medical.privacy import Names
from crossband.shared.errors import ConfigError, DataError

_BOXED = ("vindr", "coco")


def gather_boxes(
    config: SourceConfig,
    fusion: Fusion,
    names: Names,
    classes: Sequence[str] = (),
) -> BoxData:
    """Find the data sets, their boxes, and the split of every image.

    Layouts `vindr` and `coco` have boxes; in all others masks show what to draw them around (see
    `masks.boxes_of`). What is listed and not there, and masks that cannot be read, are left out
    and counted in the notes.

    Args:
        config: Options of the data.
        fusion: What becomes of the boxes of several readers of `vindr`.
        names: What files may be called.
        classes: Of a network that is scored: they are taken, in its order.

    Raises:
        ConfigError: no root, or a class that is not there.
        DataError: no image with boxes, a patient in two splits, or roots of different classes.
    """
    if not config.root:
        raise ConfigError("There are no images: give --data.root (a folder).")
    sets = [_marked(Path(root), config, fusion, names, classes) for root in config.root]
    if other := next((one for one in sets if one.classes != sets[0].classes), None):
        raise DataError(
            f"{sets[0].collection.root} and {other.collection.root} have different classes "
            f"({', '.join(sets[0].classes)}; {', '.join(other.classes)}): name those to take by "
            "--data.labels."
        )
    collections = [one.collection for one in sets]
    require_disjoint(collections)
    data = BoxData(sets[0].classes, collections=collections)
    for one in sets:
        collection = one.collection
        complete(collection, config)
        before = f"{collection.root.name}: " if len(sets) > 1 else ""
        data.notes += [before + note for note in collection.notes]
        if len(sets) > 1:  # the same number is another patient in another set
            collection.records = [
                replace(r, patient=r.patient and f"{collection.root.name}: {r.patient}")
                for r in collection.records
            ]
        for split in SPLITS:
            getattr(data, split).extend(
                Boxed(record, one.boxes.get(record.name, Boxes.of([], [])))
                for record in collection.split(split)
            )
    return data


def _marked(
    root: Path, config: SourceConfig, fusion: Fusion, names: Names, classes: Sequence[str]
) -> Marked:
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}: give the folder of a data set as --data.root.")
    layout = _detect(root, config) if config.layout == "auto" else config.layout
    if layout not in _BOXED:
        return _from_masks(replace(config, root=[str(root)]), names, classes)
    found = vindr.read(root, config, fusion) if layout == "vindr" else coco.read(root, config)
    found = _in_order(found, classes)
    _leave_out_missing(found.collection)
    return found


def _detect(root: Path, config: SourceConfig) -> str:
    if config.table is not None:
        return "csv"
    return next((n for n, m in (("vindr", vindr), ("coco", coco)) if m.detect(root)), "auto")


def _in_order(found: Marked, classes: Sequence[str]) -> Marked:
    """Bring the classes into a network's order; those that it does not know are left out."""
    if not classes or found.classes == tuple(classes):
        return found
    numbers = {k: classes.index(n) for k, n in enumerate(found.classes) if n in classes}
    if not numbers:
        raise DataError(
            f"{found.collection.root} has boxes of {', '.join(found.classes)} and the network "
            f"finds {', '.join(classes)}: give data of the same classes."
        )
    boxes = {}
    for name, drawn in found.boxes.items():
        kept = [place for place, label in enumerate(drawn.labels) if int(label) in numbers]
        labels = [numbers[int(drawn.labels[place])] for place in kept]
        boxes[name] = Boxes.of(drawn.corners[kept].tolist(), labels)
    left = [name for name in found.classes if name not in classes]
    if left:
        found.collection.notes.append(
            f"boxes of {', '.join(left)} left out: the network does not know them"
        )
    return Marked(found.collection, tuple(classes), boxes)


def _leave_out_missing(collection: Collection) -> None:
    kept = [record for record in collection.records if record.path.is_file()]
    missing = len(collection.records) - len(kept)
    if not kept:
        raise DataError(
            f"{collection.root} (layout {collection.layout}): none of "
            f"{counted(missing, 'image')} in its lists is there; give the folder that holds both "
            "lists and images."
        )
    if missing:
        collection.notes.append(f"{counted(missing, 'image')} left out, listed but not there")
    collection.records = kept


def _from_masks(config: SourceConfig, names: Names, classes: Sequence[str]) -> Marked:
    if config.labels:
        raise ConfigError(
            "--data.labels chooses classes of boxes: those of masks are named by --data.classes, "
            "the background first."
        )
    collection = find(config)[0]
    many = len(config.classes) > 2 or bool(config.mask_values)
    of_masks = MaskClasses.given(config.classes, config.mask_values) if many else None
    found = tuple(config.classes[1:]) or tuple(classes if len(classes) == 1 else OBJECT)
    kept, boxes, done = [], {}, Counter[str]()
    broken: list[str] = []
    without = 0
    for record in collection.records:
        if record.mask is None:
            without += 1
            continue
        try:
            boxes[record.name] = boxes_of(record, of_masks, lambda what: done.update([what]))
            kept.append(record)
        except DataError as error:
            broken.append(names.error(error, record.path, record.mask, *record.more_masks))
    if not kept:
        why = f"; the first: {broken[0]}" if broken else ""
        raise DataError(
            f"{collection.root} has neither boxes nor masks that can be read{why}: give VinDr-CXR, "
            "COCO's json files, or images with masks."
        )
    if without:
        collection.notes.append(f"{counted(without, 'image')} left out, without a mask")
    collection.notes += broken
    collection.notes += [f"{counted(n, 'mask')} {what}" for what, n in done.items()]
    collection.records = kept
    return _in_order(Marked(collection, found, boxes), classes)
