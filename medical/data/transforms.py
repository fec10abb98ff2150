"""Views of one image, and the normalisation of its values.

Of grey images everything is done on one channel, which is repeated three times at the end: of three
equal channels the usual transforms give the same (a test says so), at three times the work.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crossband.shared.errors import ConfigError

_TRIES = 10  # draws of a crop that has to lie within the image
_ASPECT = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per channel of values 0 to 1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """Map uint8 (H, W), or RGB (H, W, 3), to float32 (3, H, W)."""
        image = torch.tensor(np.ascontiguousarray(pixels)).float().div(255)
        image = image[None] if image.ndim == 2 else image.permute(2, 0, 1)
        mean, std = (
            torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (self.mean, self.std)
        )
        return (image - mean) / std

    @property
    def fill(self) -> int:
        """Grey value 0 to 255 of what lies outside an image: the mean."""
        return min(255, round(255 * sum(self.mean) / 3))


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NIH = Normalisation((0.5056,) * 3, (0.252,) * 3)
# What the paper pre-trains with, by layout; it fine-tunes with NIH's everywhere.
PRETRAINING: dict[str, Normalisation] = {"nih": NIH, "chexpert": IMAGENET, "mimic": IMAGENET}


def random_view(
    pixels: np.ndarray,
    size: int,
    scale: tuple[float, float],
    flip: float,
    draw: np.random.Generator,
) -> Image.Image:
    """Return a random crop of another area and aspect, resized to a square, perhaps mirrored.

    As torchvision's RandomResizedCrop with bicubic interpolation (Szegedy et al. 2015).

    Args:
        pixels: uint8 (H, W), or RGB (H, W, 3).
        size: Side of the view, in pixels.
        scale: Smallest and largest part of the image.
        flip: Probability of a mirror image.
        draw: Where chance comes from.
    """
    top, left, height, width = random_box(pixels.shape[:2], scale, draw)
    crop = np.ascontiguousarray(pixels[top : top + height, left : left + width])
    view = Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC)
    if draw.random() < flip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return view


def centre_view(pixels: np.ndarray, size: int, resize: int = 0) -> np.ndarray:
    """Return the centre of an image whose shorter side was brought to `resize`, uint8 (S, S[, 3]).

    Args:
        pixels: uint8 (H, W), or RGB (H, W, 3).
        size: S, in pixels.
        resize: In pixels; 0: 256/224 of the size.

    Raises:
        ConfigError: a centre larger than the image.
    """
    resize = resize or size * 256 // 224
    if resize < size:
        raise ConfigError(f"A shorter side of {resize} pixels is less than the crop of {size}.")
    height, width = pixels.shape[:2]
    short = min(height, width)
    shape = [resize if side == short else int(resize * side / short) for side in (height, width)]
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image = np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))
    top, left = (round((side - size) / 2) for side in shape)
    return image[top : top + size, left : left + size]


def stretched_view(pixels: np.ndarray, size: int) -> np.ndarray:
    """Bring uint8 (H, W[, 3]) to uint8 (S, S[, 3]), without regard to the aspect."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def rand_augment(
    policy: str, fill: int | tuple[int, int, int]
) -> Callable[[Image.Image], Image.Image]:
    """Return timm's RandAugment of a policy such as `rand-m6-mstd0.5-inc1`.

    Rotated, sheared and shifted images are interpolated bicubically. It draws from Python's and
    numpy's global generators.

    Args:
        policy: timm's string; empty for none.
        fill: Value of what lies outside an image: grey, or RGB for images in colours.

    Raises:
        ConfigError: a string that timm does not understand.
    """
    if not policy:
        return _unchanged
    import crossband.shared.compat  # noqa: F401, I001 - before timm

    from timm.data.auto_augment import rand_augment_transform

    settings: dict[str, Any] = {"img_mean": fill, "interpolation": Image.Resampling.BICUBIC}
    try:
        return rand_augment_transform(policy, settings)
    except (AssertionError, ValueError) as error:
        raise ConfigError(
            f"auto_augment {policy!r} is not a RandAugment policy of timm: write it as "
            "rand-m6-mstd0.5-inc1, or leave it empty for none."
        ) from error


def _unchanged(image: Image.Image) -> Image.Image:
    return image


@contextmanager
def seeded(draw: np.random.Generator) -> Iterator[None]:
    """Seed the global generators that timm draws from, and give them back as they were."""
    held = random.getstate(), np.random.get_state()
    seed = int(draw.integers(2**32))
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(held[0])
        np.random.set_state(held[1])


def checked_scale(low: float, high: float) -> tuple[float, float]:
    """Return the parts of an image that crops take.

    Raises:
        ConfigError: they are not 0 < low <= high <= 1.
    """
    if not 0 < low <= high <= 1:
        raise ConfigError(
            f"Random crops of {low} to {high} of an image cannot be: give two parts between 0 and "
            "1, the smaller one first."
        )
    return low, high


def random_box(
    shape: tuple[int, ...], scale: tuple[float, float], draw: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a crop, as torchvision's RandomResizedCrop draws it.

    The largest centre of a fitting aspect if none fits in ten draws.

    Args:
        shape: Height and width of the image.
        scale: Smallest and largest part of the image.
        draw: Where chance comes from.
    """
    height, width = shape
    for _ in range(_TRIES):
        area = draw.uniform(*scale) * height * width
        aspect = math.exp(draw.uniform(*np.log(_ASPECT)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draw.integers(height - h + 1)), int(draw.integers(width - w + 1)), h, w
    w = min(width, round(height * _ASPECT[1]))
    h = min(height, round(width / _ASPECT[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def random_warp(
    grey: np.ndarray,
    mask: np.ndarray,
    flip: float,
    draw: np.random.Generator,
    *,
    vertical_flip: float = 0.0,
    rotate: float = 15.0,
    scale: float = 0.2,
    shift: float = 0.05,
) -> tuple[np.ndarray, np.ndarray]:
    """Rotate, zoom and shift a square image and its mask alike, perhaps mirrored.

    Args:
        grey: uint8 (S, S), or RGB (S, S, 3).
        mask: uint8 (S, S).
        flip: Probability of a mirror image.
        draw: Where chance comes from.
        vertical_flip: Probability of an image upside down; with 0 nothing is drawn for it.
        rotate: Largest turn, in degrees.
        scale: Largest change of size, as a part.
        shift: Largest shift, as a part of the side.
    """
    size = len(grey)
    centre = ((size - 1) / 2, (size - 1) / 2)
    angle = draw.uniform(-rotate, rotate)
    zoom = (1 + scale) ** draw.uniform(-1, 1)
    matrix = cv2.getRotationMatrix2D(centre, angle, zoom)
    matrix[:, 2] += draw.uniform(-shift, shift, 2) * size
    if draw.random() < flip:
        grey, mask = np.ascontiguousarray(grey[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])
    if vertical_flip and draw.random() < vertical_flip:
        grey, mask = np.ascontiguousarray(grey[::-1]), np.ascontiguousarray(mask[::-1])
    return (
        cv2.warpAffine(grey, matrix, (size, size), flags=cv2.INTER_LINEAR),
        cv2.warpAffine(mask, matrix, (size, size), flags=cv2.INTER_NEAREST),
    )


def random_tone(grey: np.ndarray, draw: np.random.Generator, strength: float = 0.25) -> np.ndarray:
    """Change gamma and contrast by factors up to `1 + strength`, brightness by half of it.

    Args:
        grey: uint8 (H, W), or RGB (H, W, 3).
        draw: Where chance comes from.
        strength: Largest change, as a part.
    """
    values = np.arange(256) / 255
    values = values ** ((1 + strength) ** draw.uniform(-1, 1))
    values = (values - 0.5) * (1 + strength) ** draw.uniform(-1, 1) + 0.5
    values = values + strength / 2 * draw.uniform(-1, 1)
    return (values.clip(0, 1) * 255).round().astype(np.uint8)[grey]


def random_colour(pixels: np.ndarray, draw: np.random.Generator, strength: float) -> np.ndarray:
    """Change saturation and each channel by factors of up to `1 + strength`.

    Nothing is drawn, and nothing changed, without strength or of grey images.

    Args:
        pixels: uint8 (H, W), or RGB (H, W, 3).
        draw: Where chance comes from.
        strength: Largest change, as a part.
    """
    if not strength or pixels.ndim == 2:
        return pixels
    saturation, *channels = (1 + strength) ** draw.uniform(-1, 1, 4)
    values = pixels.astype(np.float32)
    grey = values.mean(2, keepdims=True)
    values = (grey + (values - grey) * np.float32(saturation)) * np.array(channels, np.float32)
    return np.rint(values.clip(0, 255)).astype(np.uint8)


def random_place(ids: np.ndarray, size: int, draw: np.random.Generator) -> tuple[int, int]:
    """Return top and left of a crop of a mask; half of them have a labelled pixel in the middle.

    As MONAI's RandCropByPosNegLabel with one to one. Crops lie within the image.

    Args:
        ids: uint8 (H, W), at least `size` on each side.
        size: Side of the crop, pixels.
        draw: Where chance comes from.
    """
    limits = [side - size + 1 for side in ids.shape]
    top, left = (int(draw.integers(limit)) for limit in limits)
    labelled = np.flatnonzero(ids) if draw.random() < 0.5 else np.empty(0)
    if len(labelled):
        row, column = divmod(int(labelled[draw.integers(len(labelled))]), ids.shape[1])
        top, left = (
            min(max(0, place - size // 2), limit - 1)
            for place, limit in zip((row, column), limits, strict=True)
        )
    return top, left


def at_least(pixels: np.ndarray, size: int) -> np.ndarray:
    """Fill an image or mask up with zeros below and on the right, to sides of at least `size`."""
    more = [(0, max(0, size - side)) for side in pixels.shape[:2]]
    if not any(right for _, right in more):
        return pixels
    return np.pad(pixels, more + [(0, 0)] * (pixels.ndim - 2))
