"""Thermal frames in: 8- and 16-bit images, the thermal channel of four, pages of TIFF, video.

A frame becomes uint8 as networks take it. Cameras store 12- to 16-bit counts, of which a scene
fills a small part, so deep frames are stretched: by a range in counts that the user gives, or by
the frame's own percentiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from crossband.shared.data.images import SUFFIXES, read_photo
from crossband.shared.errors import ConfigError, DataError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".m4v", ".webm")
PERCENTILES = (0.5, 99.5)
Channel = Literal["grey", "thermal", "rgb"]


@dataclass(frozen=True)
class Stretch:
    """How values become 0 to 255.

    Attributes:
        value_range: Counts that become 0 and 255; None: of each deep frame its own percentiles,
            8-bit frames as they are.
        percentiles: For the automatic range.
        always: Stretch 8-bit frames too (dark cameras).
    """

    value_range: tuple[float, float] | None = None
    percentiles: tuple[float, float] = PERCENTILES
    always: bool = False

    @classmethod
    def of(cls, value_range: Sequence[float], *, always: bool = False) -> Stretch:
        """Check the values of an option; an empty one is the automatic range.

        Raises:
            ConfigError: not two rising numbers.
        """
        if not value_range:
            return cls(always=always)
        if len(value_range) != 2 or not value_range[0] < value_range[1]:
            given = " ".join(f"{value:g}" for value in value_range)
            raise ConfigError(f"The value range {given} is empty: give the lowest and the highest.")
        return cls((float(value_range[0]), float(value_range[1])))

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Map an array of uint8, uint16 or floats to uint8 of the same shape.

        Values that are no numbers (dead pixels of radiometric files) become 0.
        """
        if self.value_range is not None:
            low, high = self.value_range
        elif pixels.dtype == np.uint8 and not self.always:
            return pixels
        else:
            finite = pixels[np.isfinite(pixels)] if pixels.dtype.kind == "f" else pixels
            low, high = np.percentile(finite, self.percentiles) if finite.size else (0.0, 1.0)
        scaled = (pixels.astype(np.float32) - np.float32(low)) * np.float32(
            255.0 / max(float(high) - float(low), 1e-6)
        )
        return np.nan_to_num(np.rint(scaled), nan=0.0).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Frame:
    """One picture of a file.

    Attributes:
        pixels: uint8 (H, W), or (H, W, 3) RGB.
        number: Page or frame of the file, from 0; None for a file of one picture.
    """

    pixels: np.ndarray
    number: int | None = None


def read_frame(
    path: str | Path, channel: Channel = "grey", stretch: Stretch | None = None
) -> np.ndarray:
    """Read a file of one picture.

    Args:
        path: PNG, JPEG, BMP, TIFF or WebP.
        channel: `grey` takes grey files, and colour files whose channels are nearly equal (false
            colour saved as grey, JPEG); `thermal` also takes the fourth channel of RGB + thermal
            files (MFNet); `rgb` the colours.
        stretch: Default: deep frames by their percentiles.

    Returns:
        uint8 (H, W), or (H, W, 3) for `rgb`.

    Raises:
        DataError: unreadable, or colours where a thermal image is expected.
    """
    stretch = stretch or Stretch()
    path = Path(path)
    if path.suffix.lower() in (".tif", ".tiff"):
        pages = list(_pages(path))
        if len(pages) != 1:
            raise DataError(f"{path} holds {len(pages)} pages: one image per file is wanted here.")
        return _channel(path, pages[0], channel, stretch)
    photo = read_photo(path)
    if channel == "thermal" and not photo.grey and holds_thermal(photo.alpha):
        return stretch(photo.alpha)
    return _channel(path, photo.pixels[..., 0] if photo.grey else photo.pixels, channel, stretch)


def read_frames(
    path: str | Path, channel: Channel = "grey", stretch: Stretch | None = None
) -> Iterator[Frame]:
    """Yield the pictures of a file: a video's, a TIFF's pages, or the one of any other.

    Raises:
        DataError: unreadable, or colours where a thermal image is expected.
    """
    path = Path(path)
    stretch = stretch or Stretch()
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        for number, picture in enumerate(_video(path)):
            yield Frame(_channel(path, picture, channel, stretch), number)
    elif suffix in (".tif", ".tiff"):
        pages = list(_pages(path))
        for number, page in enumerate(pages):
            one = None if len(pages) == 1 else number
            yield Frame(_channel(path, page, channel, stretch), one)
    else:
        yield Frame(read_frame(path, channel, stretch))


def holds_thermal(channel: np.ndarray | None) -> bool:
    """Whether a fourth channel is a thermal image: one of transparency is white all over."""
    return channel is not None and bool(channel.min() < np.iinfo(channel.dtype).max)


def is_frame_file(path: Path) -> bool:
    """Whether the suffix is of an image or a video that is read here."""
    return path.suffix.lower() in SUFFIXES + VIDEO_SUFFIXES


# Largest difference between the channels of a pixel, on average, in a file that counts as grey.
_GREY_SPREAD = 6.0


def _channel(path: Path, pixels: np.ndarray, channel: Channel, stretch: Stretch) -> np.ndarray:
    if pixels.ndim == 2:
        grey = stretch(pixels)
        return np.repeat(grey[..., None], 3, axis=2) if channel == "rgb" else grey
    if channel == "thermal" and pixels.shape[2] == 4 and holds_thermal(pixels[..., 3]):
        return stretch(pixels[..., 3])
    pixels = pixels[..., :3] if pixels.shape[2] > 2 else np.repeat(pixels[..., :1], 3, axis=2)
    if channel == "rgb":
        return stretch(pixels)
    white = 255 if pixels.dtype == np.uint8 else 65535
    spread = float((pixels.max(axis=2).astype(np.float32) - pixels.min(axis=2)).mean())
    if spread * 255 / white > _GREY_SPREAD:
        raise DataError(
            f"{path} has colours (its channels differ by {spread * 255 / white:.0f} of 255 on "
            "average) where a thermal image is expected: give the thermal file, or train on "
            "colours by --data.channel rgb (a false-colour palette cannot be undone)."
        )
    luma = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return stretch(np.rint(luma).astype(pixels.dtype))


def _pages(path: Path) -> Iterator[np.ndarray]:
    """Yield the pages of a TIFF as uint8, uint16 or float32 (H, W) or (H, W, 3 or 4)."""
    import tifffile

    if not path.is_file():
        raise DataError(f"{path} does not exist: give an image, a video or a folder.")
    try:
        with tifffile.TiffFile(path) as file:
            for page in file.pages:
                pixels = np.asarray(page.asarray())
                if pixels.ndim == 3 and page.planarconfig.name == "SEPARATE":
                    pixels = np.moveaxis(pixels, 0, -1)
                if page.photometric.name == "MINISWHITE" and pixels.dtype.kind == "u":
                    pixels = np.iinfo(pixels.dtype).max - pixels
                if pixels.dtype.kind not in "ufi" or pixels.ndim not in (2, 3):
                    raise DataError(f"{path}: pages of {pixels.dtype} cannot be read as images.")
                yield pixels if pixels.dtype in (np.uint8, np.uint16) else pixels.astype(np.float32)
    except DataError:
        raise
    except Exception as error:  # tifffile and its decoders raise many kinds on damaged files
        reason = str(error).strip() or type(error).__name__
        raise DataError(f"{path} is damaged ({reason[:80]}): copy it again.") from error


def _video(path: Path) -> Iterator[np.ndarray]:
    """Yield the frames of a video, RGB uint8 (H, W, 3)."""
    import cv2

    if not path.is_file():
        raise DataError(f"{path} does not exist: give an image, a video or a folder.")
    capture = cv2.VideoCapture(str(path))
    read = 0
    try:
        while True:
            more, picture = capture.read()
            if not more:
                break
            read += 1
            yield np.ascontiguousarray(picture[..., ::-1])
    finally:
        capture.release()
    if not read:
        raise DataError(
            f"{path} cannot be read as a video: it is damaged, or its codec is unknown."
        )
