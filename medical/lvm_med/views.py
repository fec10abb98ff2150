"""What LVM-Med is shown: several crops of an image, and where in the image they are.

After SwAV's multi-crop and VICRegL's locations, with the numbers of the authors' draft (section 3
of the paper; appendix A).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor
from torch.utils.data import Dataset

from crossband.medical.data.transforms import IMAGENET, Normalisation, checked_scale, random_box
from crossband.medical.lvm_med.local import location_grid
from crossband.medical.pretraining.config import MultiCropConfig
from crossband.shared.errors import ConfigError
from crossband.shared.training.sampler import item_random


class Images(Protocol):
    """Images by number, as `crossband.medical.data.pool.PoolImages`."""

    def __len__(self) -> int:
        """Return the number of images."""

    def read_or_next(self, index: int) -> tuple[int, np.ndarray]:
        """Return place and pixels, uint8 (H, W) or RGB (H, W, 3), of a readable image."""


class PairedViews(Dataset[dict[str, list[Tensor]]]):
    """Crops of images, large and small, with their places.

    Items hold lists of tensors, which `default_collate` turns into lists of batches:

    - `views`: (3, S, S) float32, two or more large crops, normalised;
    - `grids`: (R, R, 2) float32 of each: row and column, in pixels of the image, of the centre of
      every cell of an R x R grid on the crop, R = max(2, ceil(S / stride)); mirrored where the crop
      is, unless `no_flip_grid`;
    - `small`, `small_grids`: likewise; left out where `counts` has no small crops.

    Args:
        images: What is shown; an image that cannot be read is replaced by the next.
        options: Of the crops.
        normalisation: Of the crops.
        seed: Of the draws, which are keyed by (seed, epoch, index).
        varied: Draw anew in every epoch; else always as in epoch 0, to validate.

    Raises:
        ConfigError: options that cannot be.
    """

    def __init__(
        self,
        images: Images,
        options: MultiCropConfig | None = None,
        *,
        normalisation: Normalisation = IMAGENET,
        seed: int = 0,
        varied: bool = True,
    ) -> None:
        """Keep the settings."""
        self.options = checked(options or MultiCropConfig())
        self.images, self.normalisation = images, normalisation
        self.seed, self.varied = seed, varied

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, list[Tensor]]:
        """Return the crops of one image."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        draw = item_random(self.seed, index if self.varied else int(index))
        pixels = self.images.read_or_next(int(index))[1]
        options = self.options
        keys = (("views", "grids"), ("small", "small_grids"))
        kinds = zip(
            keys, options.sizes, options.counts, (options.large, options.small), strict=True
        )
        item: dict[str, list[Tensor]] = {}
        for (view, grid), size, count, scale in kinds:
            crops = [self._crop(pixels, size, scale, draw) for _ in range(count)]
            if crops:
                item[view], item[grid] = map(list, zip(*crops, strict=True))
        return item

    def _crop(
        self, pixels: np.ndarray, size: int, scale: list[float], draw: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        options = self.options
        box = random_box(pixels.shape[:2], (scale[0], scale[1]), draw)
        flip = bool(draw.random() < options.flip)
        view = augment(cut(pixels, box, size, flip), options, draw)
        cells = max(2, -(-size // options.stride))
        grid = location_grid(box, cells, flip, no_flip_grid=options.no_flip_grid)
        return self.normalisation(np.asarray(view)), grid


def checked(options: MultiCropConfig) -> MultiCropConfig:
    """Return the options.

    Raises:
        ConfigError: a size, number or probability that cannot be.
    """
    if len(options.sizes) != 2 or len(options.counts) != 2:
        raise ConfigError(
            f"Crops of sizes {options.sizes} and numbers {options.counts} cannot be: give two "
            "sizes and two numbers, of large and of small crops."
        )
    if min(options.sizes) < 1 or options.counts[0] < 2 or options.counts[1] < 0:
        raise ConfigError(
            f"{options.counts[0]} large and {options.counts[1]} small crops of "
            f"{options.sizes[0]} and {options.sizes[1]} pixels cannot be: give two or more large "
            "ones, of at least 1 pixel."
        )
    for parts in (options.large, options.small):
        checked_scale(*parts)
    for name in ("flip", "jitter_chance", "grey_chance", "blur_chance"):
        if not 0 <= getattr(options, name) <= 1:
            raise ConfigError(f"{name} {getattr(options, name):g} is a probability: give 0 to 1.")
    if len(options.jitter) != 4 or min(options.jitter) < 0 or options.jitter[3] > 0.5:
        raise ConfigError(
            f"jitter {options.jitter}: give changes of brightness, contrast, saturation and hue, "
            "the last at most 0.5."
        )
    if len(options.blur) != 2 or not 0 <= options.blur[0] <= options.blur[1]:
        raise ConfigError(f"blur {options.blur}: give the smallest and the largest radius.")
    if options.stride < 1:
        raise ConfigError(f"stride {options.stride} must be at least 1 pixel.")
    return options


def cut(pixels: np.ndarray, box: tuple[int, int, int, int], size: int, flip: bool) -> Image.Image:
    """Cut a box (top, left, height, width) out, resize it bicubically to a square, mirror it."""
    top, left, height, width = box
    crop = np.ascontiguousarray(pixels[top : top + height, left : left + width])
    view = Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else view


def augment(view: Image.Image, options: MultiCropConfig, draw: np.random.Generator) -> Image.Image:
    """Change tones and colours, perhaps take the colours away, perhaps blur.

    As torchvision's ColorJitter, RandomGrayscale and Pillow's GaussianBlur. Grey images stay one
    channel: hue, saturation and grey leave three equal channels as they are. The draws are the
    same for both.

    Args:
        view: Mode L or RGB.
        options: How much.
        draw: Where chance comes from.
    """
    if draw.random() < options.jitter_chance:
        view = _jitter(view, options.jitter, draw)
    if draw.random() < options.grey_chance and view.mode == "RGB":
        view = view.convert("L")
    if draw.random() < options.blur_chance:
        view = view.filter(ImageFilter.GaussianBlur(draw.uniform(*options.blur)))
    return view if options.colours else view.convert("L")


def _jitter(view: Image.Image, strength: list[float], draw: np.random.Generator) -> Image.Image:
    """Change brightness, contrast, saturation and hue in random order."""
    factors = [draw.uniform(max(0.0, 1 - part), 1 + part) for part in strength[:3]]
    turn = draw.uniform(-strength[3], strength[3])
    for kind in draw.permutation(4):
        if strength[kind]:
            view = _turn_hue(view, turn) if kind == 3 else _TONES[kind](view, factors[kind])
    return view


def _brightness(view: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(view).enhance(factor)


def _contrast(view: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Contrast(view).enhance(factor)


def _saturation(view: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Color(view).enhance(factor) if view.mode == "RGB" else view


def _turn_hue(view: Image.Image, turn: float) -> Image.Image:
    if view.mode != "RGB":
        return view
    hue, saturation, value = view.convert("HSV").split()
    shifted = (np.asarray(hue).astype(np.int16) + int(turn * 255)) % 256
    parts = (Image.fromarray(shifted.astype(np.uint8)), saturation, value)
    return Image.merge("HSV", parts).convert("RGB")


_TONES: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    _brightness,
    _contrast,
    _saturation,
)
