"""What is learned from: a class of an image, with its box and its mask."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from crossband.medical.cases import fitted
from crossband.medical.data.masks import MaskClasses, read_mask
from crossband.medical.data.records import Record, counted
from crossband.medical.privacy import Names, Store
from crossband.medical.prompted.frames import (
    class_boxes,
    framed_boxes,
    framed_mask,
    inner_size,
    shaken,
)
from crossband.shared.data.images import SUFFIXES, photo_size
from crossband.shared.errors import DataError
from crossband.shared.training.sampler import item_random


@dataclass(frozen=True)
class Outlined:
    """An image whose mask was looked at.

    Attributes:
        record: The files.
        inner: Height and width of the image in the frame.
        boxes: Exact box of each class that it shows, float32 (N, 4), pixels of the frame.
        kinds: Their class ids, (N,).
        mask: Class ids as the decoder gives them, uint8 (low, low), compressed.
    """

    record: Record
    inner: tuple[int, int]
    boxes: np.ndarray
    kinds: np.ndarray
    mask: bytes


def look(
    records: Sequence[Record],
    store: Store,
    classes: MaskClasses,
    side: int,
    low: int,
    names: Names,
) -> tuple[list[Outlined], int]:
    """Read the masks; what cannot be read is told on stderr and left out.

    Args:
        records: Images with masks.
        store: Reads images whose size the header does not tell.
        classes: Of the masks.
        side: S, of the frame.
        low: Side of the decoder's masks.
        names: What images are called.

    Returns:
        The images, and how many classes are too small to be seen in a mask of the decoder.

    Raises:
        DataError: nothing is outlined anywhere.
    """

    def one(record: Record) -> tuple[Outlined, int] | str:
        try:
            ids = read_mask(record, classes)
            known = record.path.suffix.lower() in SUFFIXES
            size = photo_size(record.path) if known else store.read(record.path).shape[:2]
        except DataError as error:
            return names.error(error, record.path, record.mask, *record.more_masks)
        ids = fitted(ids, size)
        boxes, kinds = class_boxes(ids)
        mask = framed_mask(ids, side, low)
        seen = np.isin(kinds, mask)
        framed = framed_boxes(boxes[seen], size, side)
        small = int((~seen).sum())
        packed = zlib.compress(mask.tobytes(), 1)
        return Outlined(record, inner_size(size, side), framed, kinds[seen], packed), small

    found, small = [], 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for answer in pool.map(one, records):
            if isinstance(answer, str):
                print(f"left out: {answer}", file=sys.stderr, flush=True)
            else:
                found.append(answer[0])
                small += answer[1]
    if not any(len(image.kinds) for image in found):
        raise DataError(
            f"None of the {counted(len(records), 'mask')} shows one of the classes "
            f"({', '.join(classes.names[1:])}): correct --data.classes and --data.mask_values."
        )
    return found, small


class BoxItems(Dataset):
    """Items of images, one for each class that an image shows.

    An item holds the `image`'s number, its `box` (4,) in pixels of the frame, and the `mask` of
    the class, uint8 (1, low, low).

    Args:
        images: The images.
        low: Side of the masks.
        first: Number of the first image.
        reach: Largest shift of a box's sides, pixels of the frame; 0: exact boxes.
        seed: Of the shifts, which depend on (seed, epoch, item).
    """

    def __init__(
        self,
        images: Sequence[Outlined],
        low: int,
        *,
        first: int = 0,
        reach: float = 0.0,
        seed: int = 0,
    ) -> None:
        """List the items."""
        self.images, self.low, self.first = images, low, first
        self.reach, self.seed = reach, seed
        self.items = [
            (number, which)
            for number, image in enumerate(images)
            for which in range(len(image.kinds))
        ]

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one item."""
        number, which = self.items[index]
        image = self.images[number]
        box = image.boxes[which]
        if self.reach:
            box = shaken(box, image.inner, self.reach, item_random(self.seed, index))
        ids = np.frombuffer(zlib.decompress(image.mask), np.uint8).reshape(self.low, self.low)
        mask = (ids == image.kinds[which]).astype(np.uint8)[None]
        return {
            "image": torch.tensor(self.first + number),
            "box": torch.from_numpy(box),
            "mask": torch.from_numpy(mask),
        }
