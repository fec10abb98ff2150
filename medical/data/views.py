"""What a network is shown of radiographs: random views in training, centre crops to evaluate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from crossband.medical.config import AugmentConfig
from crossband.medical.data.records import Record
from crossband.medical.data.transforms import (
    NIH,
    Normalisation,
    centre_view,
    checked_scale,
    rand_augment,
    random_tone,
    random_view,
    random_warp,
    seeded,
    stretched_view,
)
from crossband.shared.errors import DataError
from crossband.shared.tasks.classification import UNKNOWN
from crossband.shared.training.sampler import item_random

_SAME_ASPECT = 0.02  # by how much the aspects of an image and its mask may differ


class Reader(Protocol):
    """Reads an image as uint8 (H, W); raises DataError where it cannot."""

    def read(self, path: Path) -> np.ndarray:
        """Return the pixels."""


class PretrainCrops(Dataset):
    """Random crops and mirror images without labels, `{"image": (3, S, S)}`.

    Args:
        records: The images.
        store: Reads them.
        size: S, in pixels.
        normalisation: One for all, or a function of the record.
        scale: Smallest and largest part of an image that a crop takes.
        seed: Of the draws, which are keyed by (seed, epoch, index).
    """

    def __init__(
        self,
        records: Sequence[Record],
        store: Reader,
        size: int,
        *,
        normalisation: Normalisation | Callable[[Record], Normalisation] = NIH,
        scale: tuple[float, float] = (0.5, 1.0),
        seed: int = 0,
    ) -> None:
        """Keep the settings."""
        self.records, self.store, self.size, self.seed = list(records), store, size, seed
        self.normalisation, self.scale = normalisation, checked_scale(*scale)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one crop."""
        record = self.records[int(index)]
        draw = item_random(self.seed, index)
        grey = random_view(self.store.read(record.path), self.size, self.scale, 0.5, draw)
        of = self.normalisation
        normalise = of if isinstance(of, Normalisation) else of(record)
        return {"image": normalise(np.asarray(grey))}


class TrainViews(Dataset):
    """Random views with labels, `{"image": (3, S, S), "label": (K,)}`, or a class id.

    Args:
        records: The images.
        store: Reads them.
        size: S, in pixels.
        augment: Crops, flips and RandAugment.
        normalisation: Of the images.
        exclusive: Labels are classes of which one is true.
        weights: Chance of each image to be drawn, with replacement; default: each once.
        seed: Of the draws, which are keyed by (seed, epoch, index).
    """

    def __init__(
        self,
        records: Sequence[Record],
        store: Reader,
        size: int,
        *,
        augment: AugmentConfig | None = None,
        normalisation: Normalisation = NIH,
        exclusive: bool = False,
        weights: Sequence[float] = (),
        seed: int = 0,
    ) -> None:
        """Keep the settings."""
        augment = augment or AugmentConfig()
        self.records, self.store, self.size, self.seed = list(records), store, size, seed
        self.normalisation, self.exclusive = normalisation, exclusive
        self.scale, self.flip = checked_scale(augment.crop_min, augment.crop_max), augment.flip
        self.policy = rand_augment(augment.auto_augment, normalisation.fill)
        self.chances = np.cumsum(weights) / np.sum(weights) if len(weights) else None

    def __len__(self) -> int:
        """Return the views of an epoch."""
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one view."""
        if int(index) >= len(self):
            raise IndexError(index)
        draw = item_random(self.seed, index)
        place = int(index)
        if self.chances is not None:
            place = int(np.searchsorted(self.chances, draw.random(), side="right"))
        record = self.records[min(place, len(self.records) - 1)]
        pixels = self.store.read(record.path)
        grey = random_view(pixels, self.size, self.scale, self.flip, draw)
        with seeded(draw):
            grey = self.policy(grey)
        image = self.normalisation(np.asarray(grey))
        return {"image": image, "label": label_of(record, self.exclusive)}


class EvalViews(Dataset):
    """Centre crops with labels, `{"image": (3, S, S), "label": (K,)}`, or a class id.

    Args:
        records: The images.
        store: Reads them.
        size: S, in pixels.
        resize: Shorter side before the crop, in pixels; 0: 256/224 of the size.
        normalisation: Of the images.
        exclusive: Labels are classes of which one is true.
    """

    def __init__(
        self,
        records: Sequence[Record],
        store: Reader,
        size: int,
        *,
        resize: int = 0,
        normalisation: Normalisation = NIH,
        exclusive: bool = False,
    ) -> None:
        """Keep the settings."""
        self.records, self.store, self.size = list(records), store, size
        self.resize, self.normalisation, self.exclusive = resize, normalisation, exclusive

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one image."""
        record = self.records[int(index)]
        grey = centre_view(self.store.read(record.path), self.size, self.resize)
        return {"image": self.normalisation(grey), "label": label_of(record, self.exclusive)}


class MaskedViews(Dataset):
    """Whole images with masks, stretched to a square: `{"image": (3, S, S), "mask": (S, S)}`.

    Augmented views are rotated, zoomed and shifted, with another brightness, contrast and gamma.

    Args:
        records: The images; all have masks.
        store: Reads the images.
        size: S, in pixels.
        classes: Of masks; with two, everything but 0 is 1, else the values are class ids.
        augment: Of random views (no flips where left and right are classes); None: the same views
            every time.
        normalisation: Of the images.
        seed: Of the draws, which are keyed by (seed, epoch, index).
    """

    def __init__(
        self,
        records: Sequence[Record],
        store: Reader,
        size: int,
        *,
        classes: int = 2,
        augment: AugmentConfig | None = None,
        normalisation: Normalisation = NIH,
        seed: int = 0,
    ) -> None:
        """Keep the settings."""
        self.records, self.store, self.size, self.seed = list(records), store, size, seed
        self.classes, self.augment = classes, augment
        self.normalisation = normalisation

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one image with its mask."""
        record = self.records[int(index)]
        pixels = self.store.read(record.path)
        mask = read_mask(record, self.classes)
        _check_aspect(record, pixels, mask)
        size = (self.size, self.size)
        grey = stretched_view(pixels, self.size)
        mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        if self.augment:
            draw = item_random(self.seed, index)
            grey, mask = random_warp(
                grey,
                mask,
                self.augment.flip,
                draw,
                rotate=self.augment.rotate,
                scale=self.augment.scale,
                shift=self.augment.shift,
            )
            grey = random_tone(grey, draw, self.augment.contrast)
        return {"image": self.normalisation(grey), "mask": torch.tensor(mask).long()}


def label_of(record: Record, exclusive: bool) -> Tensor:
    """Return the labels, float32 (K,) with NaN for unknown ones, or the class id, int64 ().

    A class id is -1 where no class is known to be true.
    """
    if not exclusive:
        return torch.tensor(record.labels, dtype=torch.float32)
    return torch.tensor(record.labels.index(1.0) if 1.0 in record.labels else UNKNOWN)


def read_mask(record: Record, classes: int) -> np.ndarray:
    """Return class ids, uint8 (H, W); with two classes everything but 0 is 1.

    Raises:
        DataError: no mask, one that cannot be read, or an id beyond the classes.
    """
    if record.mask is None:
        raise DataError(f"{record.path} has no mask: give images with masks only.")
    try:
        with Image.open(record.mask) as image:
            grey = image if image.mode in ("L", "P", "1", "I;16", "I") else image.convert("L")
            mask = np.asarray(grey)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"The mask {record.mask} cannot be read ({type(error).__name__}): replace it by a PNG "
            "of class ids."
        ) from error
    if classes == 2:
        return (mask != 0).astype(np.uint8)
    if mask.max(initial=0) >= classes:
        raise DataError(
            f"The mask {record.mask} has the class id {mask.max()} and there are {classes} "
            f"classes: correct the mask, or ask for {mask.max() + 1}."
        )
    return mask.astype(np.uint8)


def _check_aspect(record: Record, pixels: np.ndarray, mask: np.ndarray) -> None:
    """Refuse a mask of another image; images may have been made smaller for the memory."""
    (height, width), (rows, columns) = pixels.shape, mask.shape
    if abs(math.log(height * columns / (width * rows))) > _SAME_ASPECT:
        raise DataError(
            f"{record.path} is {width} x {height} and its mask {record.mask} {columns} x {rows}: "
            "bring the mask to the size of the image."
        )
