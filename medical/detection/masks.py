"""Boxes around what masks show: instances by their numbers, else connected parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from crossband.medical.data.masks import MaskClasses, mask_values
from crossband.medical.data.records import Record
from crossband.medical.detection.data import Boxes
from crossband.shared.errors import DataError

OBJECT = ("object",)
_MIDDLE = 128  # grey values from which compressed black and white is white
_LEAST = 2  # pixels of a connected part; single ones are noise


def boxes_of(
    record: Record, classes: MaskClasses | None, note: Callable[[str], None] = lambda _: None
) -> Boxes:
    """Return the boxes around the instances of an image's masks.

    Without classes every instance is one object. The values of a mask are numbers of instances if
    there are several and they run from 1 on without gaps, or have 16 bits; a mask of one value
    shows its connected parts. Several masks of an image (one per nucleus, say) are taken one by
    one. With classes, every connected part of a class is one box of it.

    Args:
        record: The image with its masks.
        classes: Of the pixels, the background first; None: they are not told apart.
        note: Is told what was done about masks of many grey values.

    Raises:
        DataError: no mask, or one that cannot be read.
    """
    if record.mask is None:
        raise DataError(f"{record.path} has no mask: give images with masks, or boxes.")
    rows: list[Sequence[float]] = []
    labels: list[int] = []
    for path in (record.mask, *record.more_masks):
        values = mask_values(path)
        if classes is None:
            found = {0: _instances(values, note)}
        else:
            ids = classes.ids(values, path)
            found = {k - 1: _parts(ids == k) for k in range(1, len(classes))}
        for label, corners in found.items():
            rows += corners
            labels += [label] * len(corners)
    return Boxes.of(rows, labels)


def _instances(values: np.ndarray, note: Callable[[str], None]) -> list[Sequence[float]]:
    there = np.unique(values[values != 0])
    if len(there) <= 1:
        return _parts(values != 0)
    counted = values.dtype.itemsize > 1 or there[-1] == len(there)
    if counted:
        numbers = np.searchsorted(there, values) + 1
        return _corners(np.where(values != 0, numbers, 0))
    note(f"with grey values between black and white, white from {_MIDDLE} on")
    return _parts(values >= _MIDDLE)


def _parts(mask: np.ndarray) -> list[Sequence[float]]:
    labelled, _ = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(labelled.ravel())
    return _corners(np.where(sizes[labelled] >= _LEAST, labelled, 0))


def _corners(labelled: np.ndarray) -> list[Sequence[float]]:
    slices = ndimage.find_objects(labelled.astype(np.int32))
    return [(x.start, y.start, x.stop, y.stop) for y, x in filter(None, slices)]
