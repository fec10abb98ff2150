"""What a segmentation network is shown: random crops in training, whole images in validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from crossband.infrared.data.frames import Channel, Stretch, read_frame
from crossband.infrared.data.layouts import IGNORE, Item, read_mask
from crossband.shared.errors import DataError
from crossband.shared.training.sampler import item_random

_TRIES = 10  # draws of a crop that one class fills
# mmseg's PhotoMetricDistortion.
_BRIGHTNESS, _CONTRAST = 32.0, (0.5, 1.5)


@dataclass(frozen=True)
class Scale:
    """The size at which images go through the network.

    Attributes:
        short_side: Pixels of the shorter side; 0 keeps the size.
        long_side: The longer side gets no more than these.
        factor: Enlarges further.
    """

    short_side: int = 512
    long_side: int = 2048
    factor: float = 1.0

    def of(self, size: Sequence[int]) -> float:
        """Return pixels of the network per pixel of an image of (H, W)."""
        if not self.short_side:
            return self.factor
        short, long = min(size), max(size)
        return min(self.short_side / short, self.long_side / long) * self.factor


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of the values 0 to 255, one for all channels or one each."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """Map uint8 (H, W) or (H, W, 3) to float32 (3, H, W)."""
        image = torch.from_numpy(np.ascontiguousarray(pixels)).float()
        image = image[None].expand(3, -1, -1) if image.dim() == 2 else image.permute(2, 0, 1)
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return ((image - mean) / std).contiguous()


class Frames:
    """Reads images and masks of a data set, and keeps them in memory while there is room.

    Args:
        classes: Number of classes.
        binary: Masks are 0 for background, anything else for class 1.
        channel: What to read of an image.
        stretch: How values become 0 to 255.
        cache_bytes: Memory for what was read.
    """

    def __init__(
        self,
        classes: int,
        *,
        binary: bool = False,
        channel: Channel = "thermal",
        stretch: Stretch | None = None,
        cache_bytes: float = 2e9,
    ) -> None:
        """Keep the settings."""
        self.classes, self.binary, self.channel = classes, binary, channel
        self.stretch = stretch or Stretch()
        self._room = cache_bytes
        self._held: dict[Item, tuple[np.ndarray, np.ndarray]] = {}

    def read(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels, uint8 (H, W) or (H, W, 3), and class ids, uint8 (H, W).

        Raises:
            DataError: unreadable, an unknown id, or an image and a mask of different sizes.
        """
        if item in self._held:
            return self._held[item]
        pixels = read_frame(item.image, self.channel, self.stretch)
        mask = read_mask(item, self.classes, binary=self.binary)
        if pixels.shape[:2] != mask.shape:
            raise DataError(
                f"{item.image} is {pixels.shape[1]} x {pixels.shape[0]} and its mask {item.mask} "
                f"{mask.shape[1]} x {mask.shape[0]}: bring the mask to the size of the image."
            )
        size = pixels.nbytes + mask.nbytes
        if size <= self._room:
            self._room -= size
            self._held[item] = pixels, mask
        return pixels, mask


class TrainCrops(Dataset):
    """Random crops of one size, `{"image": (3, S, S), "mask": (S, S)}`, keyed by (seed, index).

    Args:
        items: Images and masks.
        frames: Reads them.
        normalisation: Of the images.
        size: S, in pixels of the network.
        scale: Size of whole images in the network.
        ratio: Random factor of the size.
        cat_max_ratio: A crop that one class fills more than this is drawn again.
        on_target: Share of crops that hold a pixel of a class other than 0.
        flips: `none`, `horizontal`, or `all` with quarter turns.
        photometric: Random brightness and contrast.
        repeats: Crops per image and epoch.
        seed: Of the draws.
    """

    def __init__(
        self,
        items: Sequence[Item],
        frames: Frames,
        normalisation: Normalisation,
        *,
        size: int,
        scale: Scale,
        ratio: tuple[float, float] = (1.0, 1.0),
        cat_max_ratio: float = 1.0,
        on_target: float = 0.0,
        flips: Literal["none", "horizontal", "all"] = "horizontal",
        photometric: bool = True,
        repeats: int = 1,
        seed: int = 0,
    ) -> None:
        """Keep the settings."""
        self.items, self.frames, self.normalisation = list(items), frames, normalisation
        self.size, self.scale, self.ratio = size, scale, ratio
        self.cat_max_ratio, self.on_target, self.flips = cat_max_ratio, on_target, flips
        self.photometric, self.repeats, self.seed = photometric, repeats, seed

    def __len__(self) -> int:
        """Return the crops of an epoch."""
        return len(self.items) * self.repeats

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one crop."""
        draw = item_random(self.seed, index)
        pixels, mask = self.frames.read(self.items[int(index) % len(self.items)])
        scale = self.scale.of(mask.shape) * draw.uniform(*self.ratio)
        side = max(1, round(self.size / scale))
        centre = self._target(mask, draw)
        for _ in range(_TRIES):
            top, left = _place(mask.shape, side, centre, draw)
            part = _cut(mask, top, left, side, IGNORE)
            if self.cat_max_ratio >= 1 or not _filled(part, self.cat_max_ratio):
                break
        fill = round(float(np.mean(self.normalisation.mean)))
        image = _cut(pixels, top, left, side, fill)
        size = (self.size, self.size)
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        part = cv2.resize(part, size, interpolation=cv2.INTER_NEAREST)
        image, part = _turn(image, part, self.flips, draw)
        if self.photometric:
            image = _photometric(image, draw)
        return {
            "image": self.normalisation(image),
            "mask": torch.from_numpy(np.ascontiguousarray(part)).long(),
        }

    def _target(self, mask: np.ndarray, draw: np.random.Generator) -> tuple[int, int] | None:
        """Return a pixel that the crop has to hold, or None."""
        if not self.on_target or draw.random() >= self.on_target:
            return None
        rows, columns = np.nonzero((mask > 0) & (mask != IGNORE))
        if not len(rows):
            return None
        chosen = draw.integers(len(rows))
        return int(rows[chosen]), int(columns[chosen])


class WholeImages(Dataset):
    """Images at the size that the network sees, masks at their own: `{"image", "mask"}`."""

    def __init__(
        self, items: Sequence[Item], frames: Frames, normalisation: Normalisation, scale: Scale
    ) -> None:
        """Keep the settings."""
        self.items, self.frames = list(items), frames
        self.normalisation, self.scale = normalisation, scale

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one image (3, H', W') and its mask (H, W)."""
        pixels, mask = self.frames.read(self.items[int(index)])
        return {
            "image": self.normalisation(rescale(pixels, self.scale)),
            "mask": torch.from_numpy(mask).long(),
        }


class FixedImages(WholeImages):
    """Whole images and masks at the network's size, without chance; all must have one size."""

    size: tuple[int, int] | None = None

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return an image (3, H', W') and its mask (H', W')."""
        item = self.items[int(index)]
        pixels, mask = self.frames.read(item)
        factor = self.scale.of(mask.shape)
        size = (round(mask.shape[1] * factor), round(mask.shape[0] * factor))
        self.size = self.size or size
        if size != self.size:
            raise DataError(
                f"{item.image} comes out at {size[0]} x {size[1]} and others at {self.size[0]} x "
                f"{self.size[1]}: --data.augment false takes images of one size, so leave it on."
            )
        part = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
        return {
            "image": self.normalisation(rescale(pixels, self.scale)),
            "mask": torch.from_numpy(part).long(),
        }


def rescale(pixels: np.ndarray, scale: Scale) -> np.ndarray:
    """Bring uint8 (H, W) or (H, W, 3) to the network's size, bilinearly."""
    factor = scale.of(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor)))
    if size == pixels.shape[1::-1]:
        return pixels
    return cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_LINEAR)


def _place(
    shape: Sequence[int], side: int, centre: tuple[int, int] | None, draw: np.random.Generator
) -> tuple[int, int]:
    """Return the upper left corner of a crop; crops larger than the image begin at 0."""
    corner = []
    for axis in (0, 1):
        first, last = 0, max(0, shape[axis] - side)
        if centre is not None:
            first = max(0, min(last, centre[axis] - side + 1))
            last = max(first, min(last, centre[axis]))
        corner.append(int(draw.integers(first, last + 1)))
    return corner[0], corner[1]


def _cut(array: np.ndarray, top: int, left: int, side: int, fill: int) -> np.ndarray:
    part = array[top : top + side, left : left + side]
    down, right = side - part.shape[0], side - part.shape[1]
    if down or right:
        rest = [(0, 0)] * (part.ndim - 2)
        part = np.pad(part, [(0, down), (0, right), *rest], constant_values=fill)
    return np.ascontiguousarray(part)


def _filled(mask: np.ndarray, ratio: float) -> bool:
    counts = np.bincount(mask[mask != IGNORE].ravel(), minlength=1)
    return counts.max() > ratio * counts.sum()


def _turn(
    image: np.ndarray, mask: np.ndarray, flips: str, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    if flips != "none" and draw.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    if flips == "all":
        quarters = int(draw.integers(4))
        image, mask = np.rot90(image, quarters), np.rot90(mask, quarters)
    return image, mask


def _photometric(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    values = image.astype(np.float32)
    if draw.random() < 0.5:
        values += draw.uniform(-_BRIGHTNESS, _BRIGHTNESS)
    if draw.random() < 0.5:
        values *= draw.uniform(*_CONTRAST)
    return values.clip(0, 255).astype(np.uint8)
