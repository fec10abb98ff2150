"""Images with boxes, whatever their data set looks like, and their COCO json files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crossband.medical.data.radiographs import DICOM_SUFFIXES, has_dicom_magic
from crossband.medical.data.records import Collection, Record
from crossband.shared.data.images import photo_size
from crossband.shared.errors import DataError
from crossband.shared.files import write_text


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image.

    Attributes:
        corners: float32 (N, 4), x0, y0, x1, y1 in pixels of the image as it is looked at; x1 and
            y1 are the first pixel outside.
        labels: int64 (N,), class ids.
        scores: float32 (N,) of boxes that a network found; None of those that were drawn.
    """

    corners: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]], labels: Sequence[int]) -> Boxes:
        """Return the boxes of plain numbers."""
        corners = np.array(rows, np.float32).reshape(-1, 4)
        return cls(corners, np.array(labels, np.int64).reshape(-1))

    def __len__(self) -> int:
        """Return the number of boxes."""
        return len(self.labels)

    def take(self, kept: np.ndarray) -> Boxes:
        """Return some of the boxes, by numbers or a mask."""
        scores = None if self.scores is None else self.scores[kept]
        return Boxes(self.corners[kept], self.labels[kept], scores)

    def inside(self, size: tuple[int, int]) -> Boxes:
        """Return the boxes cut at the edges of an image (height, width), without empty ones."""
        height, width = size
        corners = self.corners.clip(0, np.array([width, height] * 2, np.float32))
        there = ((corners[:, 2:] - corners[:, :2]) >= 1).all(axis=1)
        return Boxes(corners, self.labels, self.scores).take(there)


@dataclass(frozen=True)
class Boxed:
    """One image with its boxes.

    Attributes:
        record: The image, its patient and split.
        boxes: What was drawn in it.
    """

    record: Record
    boxes: Boxes


@dataclass
class Marked:
    """A data set with boxes.

    Attributes:
        collection: Its images.
        classes: Names of the class ids.
        boxes: By `Record.name`; images that are not named have none.
    """

    collection: Collection
    classes: tuple[str, ...]
    boxes: dict[str, Boxes]


@dataclass
class BoxData:
    """The images of all roots, by split.

    Attributes:
        classes: Names of the class ids.
        train: Images to learn from.
        val: Images to choose by.
        test: Images to tell the result on.
        notes: What was left out or drawn, a sentence each, without patient identifiers.
        collections: The data sets, with the splits that were drawn.
    """

    classes: tuple[str, ...]
    train: list[Boxed] = field(default_factory=list)
    val: list[Boxed] = field(default_factory=list)
    test: list[Boxed] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    collections: list[Collection] = field(default_factory=list)


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of an image from its header alone.

    Raises:
        DataError: the header cannot be read.
    """
    if path.suffix.lower() not in DICOM_SUFFIXES and not has_dicom_magic(path):
        return photo_size(path)
    import pydicom

    from crossband.medical.data.dicom import quiet_pydicom

    try:
        with quiet_pydicom():
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_SIZE)
        return int(header.Rows), int(header.Columns)
    except Exception as error:  # pydicom raises many kinds on damaged files
        raise DataError(
            f"{path} is damaged or no DICOM image ({type(error).__name__}): copy it again."
        ) from error


_SIZE = ["Rows", "Columns"]


def with_sizes(
    items: Iterable[Boxed],
) -> tuple[list[tuple[Boxed, tuple[int, int]]], list[tuple[Path, DataError]]]:
    """Return images with boxes inside of them and (height, width), and those that are broken."""
    found, broken = [], []
    for item in items:
        try:
            size = image_size(item.record.path)
        except DataError as error:
            broken.append((item.record.path, error))
            continue
        found.append((Boxed(item.record, item.boxes.inside(size)), size))
    return found, broken


def coco_content(
    items: Sequence[tuple[Boxed, tuple[int, int]]], classes: Sequence[str]
) -> dict[str, Any]:
    """Return what a COCO json file says of images; ids count from 1, paths are absolute."""
    images, annotations = [], []
    for number, (item, (height, width)) in enumerate(items, start=1):
        path = str(item.record.path.resolve())
        images.append({"id": number, "file_name": path, "height": height, "width": width})
        for (x0, y0, x1, y1), label in zip(
            item.boxes.corners.tolist(), item.boxes.labels.tolist(), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(path: Path, content: dict[str, Any]) -> None:
    """Write a COCO json file."""
    write_text(path, json.dumps(content, ensure_ascii=False) + "\n")
