"""Photographs taken in good light, to make dark ones from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from crossband.shared.data.images import find_photos, read_photo
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.training.sampler import item_random


class PhotoStore:
    """Reads photographs and keeps them decoded while they fit a budget.

    Args:
        cache_gb: Budget in GB.
        longest: Longest side; larger photographs are reduced. 0 leaves them.
    """

    def __init__(self, cache_gb: float = 2.0, longest: int = 0) -> None:
        """Start empty."""
        self.longest = longest
        self._left = cache_gb * 2**30
        self._kept: dict[Path, np.ndarray] = {}

    def read(self, path: Path) -> np.ndarray:
        """Return RGB uint8 (H, W, 3), not to be changed.

        Raises:
            DataError: the file cannot be read.
        """
        if path in self._kept:
            return self._kept[path]
        photo = read_photo(path)
        pixels = photo.pixels if photo.white == 255 else (photo.pixels // 257).astype(np.uint8)
        factor = self.longest / max(pixels.shape[:2]) if self.longest else 1.0
        if factor < 1:
            pixels = resize(pixels, [max(1, round(side * factor)) for side in pixels.shape[:2]])
        if pixels.nbytes <= self._left:
            self._left -= pixels.nbytes
            self._kept[path] = pixels
        return pixels


class Photos(Dataset[dict[str, Tensor]]):
    """Crops of photographs: items are `{"target": (3, H, W)}`, sRGB in [0, 1].

    With `random`, an item is another crop in every epoch: a rectangle of at least `smallest` of
    the area and of nearly the target's shape, resized, perhaps mirrored. Otherwise it is the
    largest rectangle of the target's shape in the middle.

    Args:
        paths: Files.
        size: (H, W) of the crops.
        store: Reads them.
        random: Draw, keyed by (seed, epoch, index).
        seed: Of the draws.
        repeats: Crops per photograph and epoch.
        smallest: Smallest part of a photograph's area.
        recolour: Draw saturations and swap the colour channels of half of the crops, so that few
            photographs do not teach which colour things have.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        size: tuple[int, int],
        store: PhotoStore,
        *,
        random: bool,
        seed: int = 0,
        repeats: int = 1,
        smallest: float = 0.25,
        recolour: bool = False,
    ) -> None:
        """Keep the settings."""
        if repeats < 1 or not 0 < smallest <= 1:
            raise ConfigError("--data.repeats must be at least 1, --data.smallest in (0, 1].")
        self.paths, self.size, self.store = list(paths), size, store
        self.random, self.seed, self.repeats, self.smallest = random, seed, repeats, smallest
        self.recolour = recolour

    def __len__(self) -> int:
        """Return the number of crops."""
        return len(self.paths) * self.repeats

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one crop."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        (crop,) = self.crop([self.store.read(self.paths[index % len(self.paths)])], index)
        target = to_tensor(crop)
        if self.recolour and self.random:
            target = _recolour(target, item_random(self.seed + 1, index))
        return {"target": target}

    def crop(self, images: list[np.ndarray], index: int) -> list[np.ndarray]:
        """Cut the same rectangle from images of one size."""
        draw = item_random(self.seed, index) if self.random else None
        box, mirrored = choose_crop(images[0].shape[:2], self.size, self.smallest, draw)
        return [cut(image, box, self.size, mirrored) for image in images]


def split_photos(
    roots: Sequence[str], held: Sequence[str], fraction: float, seed: int
) -> tuple[list[Path], list[Path]]:
    """Find photographs and split them, by photograph, into those to train on and to validate on.

    Args:
        roots: Files or folders.
        held: Files or folders to validate on; if empty, a part of the others.
        fraction: Of the photographs that is held back then.
        seed: Of the choice.

    Raises:
        ConfigError: a fraction that leaves nothing.
        DataError: no photographs.
    """
    train = [path for path, _ in find_photos(roots)[0]]
    if held:
        val = [path for path, _ in find_photos(held)[0]]
        shut = {path.resolve() for path in val}
        return [path for path in train if path.resolve() not in shut], val
    count = max(1, round(fraction * len(train)))
    if not 0 < fraction < 1 or count >= len(train):
        raise ConfigError(
            f"--data.val_fraction {fraction:g} of {len(train)} photograph(s) leaves none to train "
            "or none to validate on: give more photographs, or --data.val."
        )
    order = np.random.default_rng(seed).permutation(len(train))
    chosen = set(order[:count].tolist())
    return (
        [path for i, path in enumerate(train) if i not in chosen],
        [path for i, path in enumerate(train) if i in chosen],
    )


def readable(paths: Sequence[Path], store: PhotoStore) -> tuple[list[Path], list[str]]:
    """Return the files that can be read, and a sentence for each of the others.

    Raises:
        DataError: none can be read.
    """
    good, problems = [], []
    for path in paths:
        try:
            store.read(path)
            good.append(path)
        except DataError as error:
            problems.append(str(error))
    if not good:
        raise DataError(f"None of the {len(paths)} photographs can be read: {problems[0]}")
    return good, problems


def fingerprint(pixels: np.ndarray) -> str:
    """Return a perceptual hash, 16 hexadecimal digits: signs of differences on 8 x 9 grey cells.

    The same scene in another file, size or mild compression differs in few bits.

    Args:
        pixels: RGB uint8 (H, W, 3).
    """
    grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    cells = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(int)
    bits = (np.diff(cells, axis=1) > 0).ravel()
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):016x}"


def alike(a: str, b: str) -> bool:
    """Whether two fingerprints are of one scene: at most three bits differ."""
    return (int(a, 16) ^ int(b, 16)).bit_count() <= 3


def choose_crop(
    size: tuple[int, int],
    target: tuple[int, int],
    smallest: float,
    draw: np.random.Generator | None,
) -> tuple[tuple[int, int, int, int], bool]:
    """Return a rectangle (top, left, height, width) of an image, and whether to mirror it."""
    height, width = size
    shape = math.log(target[1] / target[0])
    area, left_right, up_down, mirrored = 1.0, 0.5, 0.5, False
    if draw is not None:
        shape += draw.uniform(-0.3, 0.3)
        area = draw.uniform(smallest, 1.0)
        left_right, up_down = draw.random(2)
        mirrored = bool(draw.random() < 0.5)
    ratio = math.exp(shape)
    rows = min(height, width / ratio) * math.sqrt(area)
    box = max(1, int(rows)), max(1, min(width, int(rows * ratio)))
    return (
        int(up_down * (height - box[0])),
        int(left_right * (width - box[1])),
        *box,
    ), mirrored


def cut(
    image: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int], mirrored: bool
) -> np.ndarray:
    """Cut a rectangle and bring it to a size."""
    top, left, height, width = box
    crop = resize(image[top : top + height, left : left + width], size)
    return crop[:, ::-1] if mirrored else crop


def resize(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resize RGB uint8 to (H, W), averaging where it becomes smaller."""
    if image.shape[:2] == tuple(size):
        return image
    smaller = image.shape[0] > size[0] and image.shape[1] > size[1]
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(image), (size[1], size[0]), interpolation=how)


def _recolour(image: Tensor, draw: np.random.Generator) -> Tensor:
    """Change the saturation of (3, H, W) and perhaps swap its channels."""
    grey = image.mean(0, keepdim=True)
    image = (grey + (image - grey) * float(draw.uniform(0.7, 1.5))).clamp(0, 1)
    return image[draw.permutation(3)] if draw.random() < 0.5 else image


def to_tensor(image: np.ndarray) -> Tensor:
    """Return RGB uint8 (H, W, 3) as float32 (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 255
