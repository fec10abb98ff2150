"""What a network is shown of images: random views in training, centre crops to evaluate."""

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
from crossband.medical.data.masks import MaskClasses, read_mask
from crossband.medical.data.records import Record
from crossband.medical.data.transforms import (
    NIH,
    Normalisation,
    at_least,
    centre_view,
    checked_scale,
    rand_augment,
    random_colour,
    random_place,
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
    """Reads an image as uint8 (H, W), or RGB (H, W, 3); raises DataError where it cannot."""

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
        fill = normalisation.fill
        self.policies = {
            "L": rand_augment(augment.auto_augment, fill),
            "RGB": rand_augment(augment.auto_augment, (fill,) * 3),
        }
        self.chances = _cumulated(weights)

    def __len__(self) -> int:
        """Return the views of an epoch."""
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one view."""
        if int(index) >= len(self):
            raise IndexError(index)
        draw = item_random(self.seed, index)
        record = self.records[_place(self.chances, int(index), len(self), draw)]
        pixels = self.store.read(record.path)
        grey = random_view(pixels, self.size, self.scale, self.flip, draw)
        with seeded(draw):
            grey = self.policies[grey.mode](grey)
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


class Pairs(Protocol):
    """Images with masks.

    Attributes:
        records: Of each image; of a volume's slices all the same.
    """

    records: list[Record]

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an image, uint8 (H, W) or RGB (H, W, 3), and its class ids, uint8 (H, W)."""


class ImagePairs:
    """Image files with mask files.

    Args:
        records: The images; all have masks.
        store: Reads the images.
        classes: Of the masks.
    """

    def __init__(
        self, records: Sequence[Record], store: Reader, classes: MaskClasses | None = None
    ) -> None:
        """Keep the settings."""
        self.records, self.store = list(records), store
        self.classes = classes or MaskClasses()

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an image and its class ids, of equal size.

        Raises:
            DataError: a file cannot be read, or the mask is of another image.
        """
        record = self.records[index]
        pixels = self.store.read(record.path)
        mask = read_mask(record, self.classes)
        check_aspect(record, pixels.shape, mask.shape)
        if mask.shape != pixels.shape[:2]:
            size = (pixels.shape[1], pixels.shape[0])
            mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        return pixels, mask


class MaskedViews(Dataset):
    """Images with masks: `{"image": (3, S, S), "mask": (S, S)}`.

    Whole images are stretched to a square. With `sliding` crops are taken at the images' own
    resolution, half of them around something labelled (the same ones in every validation).
    Augmented views are mirrored, rotated, zoomed and shifted, with other tones and colours.

    Args:
        pairs: The images.
        size: S, in pixels.
        sliding: Crops instead of whole images.
        augment: Of random views (no flips where left and right are classes); None: the same views
            every time.
        normalisation: Of the images.
        weights: Chance of each image to be drawn, with replacement; default: each once.
        seed: Of the draws, which are keyed by (seed, epoch, index).
    """

    def __init__(
        self,
        pairs: Pairs,
        size: int,
        *,
        sliding: bool = False,
        augment: AugmentConfig | None = None,
        normalisation: Normalisation = NIH,
        weights: Sequence[float] = (),
        seed: int = 0,
    ) -> None:
        """Keep the settings."""
        self.pairs, self.size, self.seed = pairs, size, seed
        self.sliding, self.augment, self.normalisation = sliding, augment, normalisation
        self.chances = _cumulated(weights)

    @property
    def records(self) -> list[Record]:
        """Of each image."""
        return self.pairs.records

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pairs.records)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one image with its mask."""
        if int(index) >= len(self):
            raise IndexError(index)
        draw = item_random(self.seed, index if self.augment else int(index))
        pixels, mask = self.pairs.read(_place(self.chances, int(index), len(self), draw))
        size = (self.size, self.size)
        if self.sliding:
            pixels, mask = at_least(pixels, self.size), at_least(mask, self.size)
            top, left = random_place(mask, self.size, draw)
            window = slice(top, top + self.size), slice(left, left + self.size)
            pixels, mask = np.ascontiguousarray(pixels[window]), np.ascontiguousarray(mask[window])
        else:
            pixels = stretched_view(pixels, self.size)
            mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        if self.augment:
            own = self.augment
            pixels, mask = random_warp(
                pixels,
                mask,
                own.flip,
                draw,
                vertical_flip=own.vertical_flip,
                rotate=own.rotate,
                scale=own.scale,
                shift=own.shift,
            )
            pixels = random_colour(random_tone(pixels, draw, own.contrast), draw, own.colour)
        return {"image": self.normalisation(pixels), "mask": torch.tensor(mask).long()}


def _cumulated(weights: Sequence[float]) -> np.ndarray | None:
    return np.cumsum(weights) / np.sum(weights) if len(weights) else None


def _place(chances: np.ndarray | None, index: int, count: int, draw: np.random.Generator) -> int:
    """Return the image of an index: itself, or one that is drawn by its chance."""
    if chances is None:
        return index
    return min(int(np.searchsorted(chances, draw.random(), side="right")), count - 1)


def label_of(record: Record, exclusive: bool) -> Tensor:
    """Return the labels, float32 (K,) with NaN for unknown ones, or the class id, int64 ().

    A class id is -1 where no class is known to be true.
    """
    if not exclusive:
        return torch.tensor(record.labels, dtype=torch.float32)
    return torch.tensor(record.labels.index(1.0) if 1.0 in record.labels else UNKNOWN)


def check_aspect(record: Record, image: Sequence[int], mask: Sequence[int]) -> None:
    """Refuse a mask of another image; images may have been made smaller for the memory.

    Args:
        record: Of both.
        image: Shape of the image, (H, W[, 3]).
        mask: Shape of its mask, (H, W).

    Raises:
        DataError: the aspects differ.
    """
    (height, width), (rows, columns) = image[:2], mask
    if abs(math.log(height * columns / (width * rows))) > _SAME_ASPECT:
        raise DataError(
            f"{record.path} is {width} x {height} and its mask {record.mask} {columns} x {rows}: "
            "bring the mask to the size of the image."
        )
