"""VinDr-CXR (Nguyen et al., Sci Data 2022): boxes of up to three radiologists per image.

| form | files |
|---|---|
| Kaggle | `train.csv`: image_id, class_name, class_id, rad_id, x_min, y_min, x_max, y_max |
| PhysioNet | `annotations_train.csv` with rad_id, `annotations_test.csv` of consensus |

The csv lie in the folder or in `annotations/`, images anywhere below it: DICOM, PNG or JPEG named
by image_id. Class "No finding" (14) has no box. No patients are known.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from crossband.medical.config import SourceConfig
from crossband.medical.data.records import Collection, Record, counted
from crossband.medical.data.tables import Files, Table, read_table, walk
from crossband.medical.detection.data import Boxes, Marked
from crossband.medical.detection.fusion import OVERLAP, Fusion, fuse
from crossband.shared.errors import ConfigError, DataError, did_you_mean

# In the order of Kaggle's class ids; PhysioNet's files have eight more.
CLASSES = (
    *("Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Consolidation"),
    *("ILD", "Infiltration", "Lung Opacity", "Nodule/Mass", "Other lesion", "Pleural effusion"),
    *("Pleural thickening", "Pneumothorax", "Pulmonary fibrosis"),
)
NO_FINDING = "no finding"
_CORNERS = ("x_min", "y_min", "x_max", "y_max")
_TABLES = {"annotations_train.csv": "train", "annotations_test.csv": "test", "train.csv": None}
_HOW = {
    "wbf": f"boxes of several readers fused by weighted box fusion (IoU {OVERLAP:g})",
    "nms": f"of overlapping boxes of several readers (IoU {OVERLAP:g}) one kept, by NMS",
    "none": "boxes of several readers all kept",
}


def detect(root: Path) -> bool:
    """Whether a folder holds it."""
    for path in _tables(root):
        try:
            header = read_table(path).header
        except DataError:
            continue
        if {"image_id", "class_name", *_CORNERS} <= set(header):
            return True
    return False


def read(root: Path, config: SourceConfig, fusion: Fusion) -> Marked:
    """Read its boxes.

    Args:
        root: Folder.
        config: Options; `labels` chooses other classes than the 14 of Kaggle.
        fusion: What becomes of the boxes of several readers; see `fusion.fuse`.

    Raises:
        ConfigError: a class that is not there.
        DataError: no csv, one that is not as it should be, or an image in two of them.
    """
    tables = _tables(root)
    if not tables:
        raise DataError(
            f"{root} holds neither train.csv nor annotations_train.csv: give the folder of "
            "VinDr-CXR, or another --data.layout."
        )
    sheets = [_Sheet(read_table(path), split) for path, split in tables.items()]
    classes = _classes(sheets, config, root)
    files = Files(root, walk(root))
    records: list[Record] = []
    boxes: dict[str, Boxes] = {}
    other = bad = 0
    for sheet in sheets:
        found, left, wrong = sheet.boxes(classes)
        other, bad = other + left, bad + wrong
        for name, drawn in found.items():
            if name in boxes:
                raise DataError(
                    f"{root}: an image is listed in more than one csv of boxes: take it out of all "
                    "but one."
                )
            boxes[name] = fuse(drawn, fusion) if sheet.readers else drawn
            records.append(Record(files.find(name), name, split=sheet.split))
    collection = Collection(root, "vindr", classes, False, records)
    if any(sheet.readers for sheet in sheets):
        collection.notes.append(_HOW[fusion])
    if other:
        collection.notes.append(f"{counted(other, 'row')} of other classes left out")
    if bad:
        collection.notes.append(f"{counted(bad, 'row')} left out, with a box of no area")
    return Marked(collection, classes, boxes)


def _tables(root: Path) -> dict[Path, str | None]:
    for folder in (root, root / "annotations"):
        found = {folder / name: split for name, split in _TABLES.items()}
        found = {path: split for path, split in found.items() if path.is_file()}
        if any(split for split in found.values()):  # PhysioNet's know their split
            return {path: split for path, split in found.items() if split}
        if found:
            return found
    return {}


class _Sheet:
    """One csv of boxes."""

    def __init__(self, table: Table, split: str | None) -> None:
        self.table, self.split = table, split
        self.readers = "rad_id" in table.header
        self.names = table.column("class_name")

    def boxes(self, classes: tuple[str, ...]) -> tuple[dict[str, Boxes], int, int]:
        """Return the boxes of every image, and how many rows were of other classes, or empty."""
        numbers = {name.lower(): k for k, name in enumerate(classes)}
        columns = [self.table.column(name) for name in _CORNERS]
        rows: dict[str, list[list[float]]] = defaultdict(list)
        labels: dict[str, list[int]] = defaultdict(list)
        images = self.table.column("image_id")
        other = bad = 0
        for place, (image, name) in enumerate(zip(images, self.names, strict=True)):
            found = rows[image]  # an image without boxes is one too
            cells = [column[place] for column in columns]
            if name.lower() == NO_FINDING or not any(cells):
                continue
            if name.lower() not in numbers:
                other += 1
                continue
            try:
                x0, y0, x1, y1 = map(float, cells)
            except ValueError:
                raise DataError(
                    f"{self.table.path.name} has no four numbers for the box in line "
                    f"{self.table.lines[place]}: correct that line."
                ) from None
            if not (x1 > x0 and y1 > y0):
                bad += 1
                continue
            found.append([x0, y0, x1, y1])
            labels[image].append(numbers[name.lower()])
        return {name: Boxes.of(found, labels[name]) for name, found in rows.items()}, other, bad


def _classes(sheets: list[_Sheet], config: SourceConfig, root: Path) -> tuple[str, ...]:
    there = {name.lower(): name for sheet in sheets for name in sheet.names}
    there.pop(NO_FINDING, None)
    for name in config.labels:
        if name.lower() not in there and name not in CLASSES:
            hint = did_you_mean(name, there.values()) or f" There are: {', '.join(there.values())}."
            raise ConfigError(f"--data.labels: {root} has no class {name!r}.{hint}")
    if config.labels:
        return tuple(config.labels)
    return CLASSES
