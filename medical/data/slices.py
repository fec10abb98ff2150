"""Slices of 3-D volumes: what an index of volumes is a list of, and what makes pictures of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from crossband.shared.errors import ConfigError

_PERCENTILES = (0.5, 99.5)  # of the values of a volume, where no window is given
_SAMPLE = 2**20  # values to take percentiles of
_VISIBLE = 12  # grey levels above the darkest that count as something
_LEAST = 0.01  # part of a slice that has to show something


@dataclass(frozen=True)
class Slice:
    """One slice of a volume; its grey values are black at `low` and white at `high`.

    Attributes:
        path: NIfTI, npy or DICOM file.
        index: Along the axis; the frame of a DICOM file.
        low: Value that becomes 0.
        high: Value that becomes 255.
        axis: Of the array in the file; DICOM files have none.
        channel: Of a volume with four axes.
    """

    path: Path
    index: int
    low: float = 0.0
    high: float = 255.0
    axis: int = 0
    channel: int = 0

    def __str__(self) -> str:
        """Name file and slice."""
        return f"{self.path}[{self.channel}:{self.axis}:{self.index}]"


def checked_window(window: Sequence[float], name: str) -> tuple[float, float] | None:
    """Return the lowest and the highest value of a window of centre and width; None without one.

    Args:
        window: Centre and width, or nothing.
        name: What it is for.

    Raises:
        ConfigError: not two numbers, or no width.
    """
    if not window:
        return None
    if len(window) != 2 or not window[1] > 0:
        raise ConfigError(
            f"The window of {name} is {' '.join(map(str, window))}: give a centre and a width "
            "above 0, as 40 400 for soft tissue."
        )
    centre, width = map(float, window)
    return centre - width / 2, centre + width / 2


def value_range(values: np.ndarray) -> tuple[float, float] | None:
    """Return the 0.5th and 99.5th percentile of the finite values, or all their range.

    None if they are all the same: there is nothing to see. Values of small structures may all lie
    beyond the percentiles; the whole range is taken then.
    """
    flat = values.reshape(-1)
    some = flat[:: max(1, flat.size // _SAMPLE)]
    some = some[np.isfinite(some)]
    low, high = np.percentile(some, _PERCENTILES) if some.size else (0.0, 0.0)
    if not high > low:
        flat = flat[np.isfinite(flat)]
        low, high = (flat.min(), flat.max()) if flat.size else (0.0, 0.0)
    return (float(low), float(high)) if high > low else None


def to_grey_levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map values to uint8, `low` and what is not a number to 0, `high` to 255."""
    if values.dtype == np.uint8 and (low, high) == (0.0, 255.0):
        return np.ascontiguousarray(values)
    unit = (values.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.rint(np.nan_to_num(unit, nan=0.0).clip(0, 1) * 255).astype(np.uint8)


def shows_something(picture: np.ndarray) -> bool:
    """Whether a hundredth of a picture, uint8 (H, W[, 3]), is brighter than its darkest part."""
    return bool((picture > int(picture.min()) + _VISIBLE).mean() > _LEAST)


@dataclass(frozen=True)
class Look:
    """How the planes of an array become pictures, and pictures planes again.

    Attributes:
        flips: Whether the first and the second axis of a plane are turned round.
        transposed: Whether the rows of the picture are the second axis of the plane.
        rows: Distance from row to row of the picture.
        columns: Distance from column to column.
    """

    flips: tuple[bool, bool] = (False, False)
    transposed: bool = False
    rows: float = 1.0
    columns: float = 1.0

    def turned(self, plane: np.ndarray) -> np.ndarray:
        """Return a plane (R, C, ...) of the array as it is looked at, its pixels as they are."""
        flipped = np.flip(plane, [axis for axis in (0, 1) if self.flips[axis]])
        return flipped.swapaxes(0, 1) if self.transposed else flipped

    def turned_back(self, picture: np.ndarray) -> np.ndarray:
        """Undo `turned`."""
        plane = picture.swapaxes(0, 1) if self.transposed else picture
        return np.flip(plane, [axis for axis in (0, 1) if self.flips[axis]])

    def picture(self, plane: np.ndarray) -> np.ndarray:
        """Return a plane, uint8 (R, C[, 3]), as it is looked at, in square pixels."""
        return square_pixels(self.turned(plane), self.rows, self.columns)

    def size(self, plane: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the picture of a plane of (R, C)."""
        height, width = plane[::-1] if self.transposed else plane
        return square_size(height, width, self.rows, self.columns)


def square_size(height: int, width: int, rows: float, columns: float) -> tuple[int, int]:
    """Return height and width once pixels are squares of the smaller distance."""
    step = min(rows, columns)
    if not step > 0:
        return height, width
    return round(height * rows / step), round(width * columns / step)


def square_pixels(picture: np.ndarray, rows: float, columns: float) -> np.ndarray:
    """Enlarge uint8 (H, W[, 3]) along the axis of the larger spacing: pixels become squares.

    Args:
        picture: The picture.
        rows: Distance from row to row.
        columns: Distance from column to column.
    """
    height, width = square_size(*picture.shape[:2], rows, columns)
    if (height, width) == picture.shape[:2]:
        return np.ascontiguousarray(picture)
    size = (width, height)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
