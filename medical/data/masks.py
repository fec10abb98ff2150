"""Masks from files: which value is which class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from crossband.medical.data.records import Record
from crossband.shared.errors import ConfigError, DataError

FOREGROUND = ("background", "foreground")
IGNORE = 255  # value of a class map that is not counted


@dataclass(frozen=True)
class MaskClasses:
    """Classes of masks and the values that stand for them.

    Without `values`, two classes are told by being 0 or not (files hold 1 or 255), and more classes
    by 0, 1, 2, ...

    Attributes:
        names: Of the classes, the background first.
        values: Of each class in the files; several of one class are named several times.
    """

    names: tuple[str, ...] = FOREGROUND
    values: tuple[int, ...] = ()

    @classmethod
    def given(cls, names: Sequence[str], values: Sequence[int]) -> MaskClasses:
        """Return the classes of the options.

        Raises:
            ConfigError: one class, a name twice, or another number of values than of classes.
        """
        if len(names) < 2 or len(set(names)) < len(names):
            raise ConfigError(
                f"--data.classes {' '.join(names)}: name the background and one class or more, "
                "each once."
            )
        if len(names) > IGNORE:
            raise ConfigError(f"--data.classes names {len(names)} classes: {IGNORE} at most.")
        if values and (len(values) != len(names) or len(set(values)) < len(values)):
            raise ConfigError(
                f"--data.mask_values has {len(values)} numbers for the {len(names)} classes "
                f"{', '.join(names)}: give a different one for each."
            )
        return cls(tuple(names), tuple(values))

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.names)

    def ids(self, mask: np.ndarray, path: str | Path) -> np.ndarray:
        """Map the values of a mask to class ids, uint8 of the same shape.

        Args:
            mask: Of any shape; whole numbers, also as floats.
            path: Of the file, for errors.

        Raises:
            DataError: a value that is no class, or no number.
        """
        if mask.dtype.kind == "f":
            whole = np.rint(mask)
            if not np.isfinite(mask).all() or np.abs(whole - mask).max(initial=0) > 1e-3:
                raise DataError(
                    f"The mask {path} holds numbers that are not whole: replace it by one of class "
                    "ids."
                )
            mask = whole.astype(np.int64)
        if not self.values and len(self) == 2:
            return (mask != 0).astype(np.uint8)
        if not self.values:
            if mask.min(initial=0) < 0 or mask.max(initial=0) >= len(self):
                wrong = mask.min() if mask.min() < 0 else mask.max()
                raise DataError(
                    f"The mask {path} has the class id {wrong} and there are {len(self)} classes "
                    f"({', '.join(self.names)}): correct the mask, or give --data.classes and "
                    "--data.mask_values that have it."
                )
            return mask.astype(np.uint8)
        found = np.full(mask.shape, IGNORE, np.uint8)
        for number, value in enumerate(self.values):
            found[mask == value] = number
        if (found == IGNORE).any():
            wrong = np.unique(mask[found == IGNORE])[:5]
            raise DataError(
                f"The mask {path} has the value {', '.join(map(str, wrong))} that "
                f"--data.mask_values ({', '.join(map(str, self.values))}) does not name: add it, "
                "or correct the mask."
            )
        return found


def read_mask(record: Record, classes: MaskClasses) -> np.ndarray:
    """Return class ids, uint8 (H, W), of an image's mask, or of several laid over each other.

    Raises:
        DataError: no mask, one that cannot be read, of another size than the first, or a value that
            is no class.
    """
    if record.mask is None:
        raise DataError(f"{record.path} has no mask: give images with masks only.")
    ids = classes.ids(mask_values(record.mask), record.mask)
    for path in record.more_masks:
        other = classes.ids(mask_values(path), path)
        if other.shape != ids.shape:
            raise DataError(
                f"The masks {record.mask} and {path} of one image have different sizes: bring them "
                "to the size of the image."
            )
        ids = np.maximum(ids, other)
    return ids


def mask_values(path: Path) -> np.ndarray:
    """Return the values of a mask file (H, W); colours become grey values.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            grey = image if image.mode in ("L", "P", "1", "I;16", "I") else image.convert("L")
            return np.asarray(grey)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"The mask {path} cannot be read ({type(error).__name__}): replace it by a PNG "
            "of class ids."
        ) from error
