"""Radiographs from files: photographs' formats of 8 and 16 bits, and DICOM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from crossband.medical.data.records import FRONTAL
from crossband.shared.data.images import SUFFIXES, read_photo
from crossband.shared.data.store import ImageStore
from crossband.shared.errors import ConfigError, DataError

DICOM_SUFFIXES = (".dcm", ".dicom", ".dic")
# Largest difference between the channels of a pixel, on average, in a file that counts as grey.
_GREY_SPREAD = 3.0
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's mode L


@dataclass(frozen=True)
class Radiograph:
    """A radiograph, as it is looked at.

    Attributes:
        pixels: uint8 (H, W), or RGB (H, W, 3); dense tissue is white.
        bits: Of the grey values in the file.
        view: `PA`, `AP`, `LATERAL`, ... by the DICOM header, or None.
        notes: What a user should know of it, a sentence each.
    """

    pixels: np.ndarray
    bits: int = 8
    view: str | None = None
    notes: tuple[str, ...] = ()


def read_radiograph(
    path: str | Path, window: Sequence[float] = (), *, colours: bool = False
) -> Radiograph:
    """Read a radiograph, or with `colours` a picture of endoscopes, microscopes, cameras.

    Grey values of 16-bit files are scaled by the bits that are used (8, 10, 12, 14 or 16): files
    of 12-bit detectors would be almost black otherwise. Colours become luma, with a note, or are
    kept; a file whose three channels hardly differ is grey either way. DICOM files are known by
    their content; see `crossband.medical.data.dicom`. Errors name the path and nothing else that
    tells who the patient is.

    Args:
        path: PNG, JPEG, BMP, TIFF, WebP or DICOM.
        window: DICOM: centre and width of the grey values, instead of the file's own.
        colours: Keep colours.

    Raises:
        ConfigError: a window that is not a centre and a width of at least 1.
        DataError: the file cannot be read, or is no radiograph.
    """
    if window and (len(window) != 2 or not window[1] >= 1):
        raise ConfigError(
            f"--data.window {' '.join(map(str, window))}: give a centre and a width of at least 1."
        )
    path = Path(path)
    if path.suffix.lower() in DICOM_SUFFIXES or has_dicom_magic(path):
        from crossband.medical.data.dicom import read_dicom  # pydicom is heavy

        image = read_dicom(path, window)
        pixels, colour = _grey_or_colours(image.pixels, colours)
        bits, view = image.bits, image.view
        notes = list(image.notes)
    else:
        photo = read_photo(path)
        shown = photo.pixels[..., :1] if photo.grey else photo.pixels
        pixels, colour = _grey_or_colours(shown, colours)
        pixels, bits = eight_bit(pixels)
        view, notes = None, []
    if colour and not colours:
        notes.append("The image has colours and was taken as grey.")
    if view and view not in FRONTAL:
        notes.append(f"The view is {view}, not a frontal one.")
    return Radiograph(np.ascontiguousarray(pixels), bits, view, tuple(notes))


def _grey_or_colours(pixels: np.ndarray, colours: bool) -> tuple[np.ndarray, bool]:
    """Return pixels as they are wanted, and whether there were colours."""
    grey, colour = to_grey(pixels)
    return (pixels if colour and colours else grey), colour


def is_radiograph_file(path: Path) -> bool:
    """Whether a file is of a kind that is read here: by its suffix, or DICOM by its content.

    Archives name DICOM files without a suffix, or by numbers and dots.
    """
    return path.suffix.lower() in SUFFIXES or is_dicom_file(path)


def is_dicom_file(path: Path) -> bool:
    """Whether a file is DICOM: by its suffix, or without one by its content."""
    suffix = path.suffix.lower()
    if suffix in DICOM_SUFFIXES:
        return True
    return (not suffix or suffix[1:].isdigit()) and has_dicom_magic(path)


def require_picture(pixels: np.ndarray, colours: bool) -> None:
    """Refuse what is no image as `read_radiograph` gives it.

    Args:
        pixels: uint8 (H, W), or with `colours` also RGB (H, W, 3).
        colours: Whether colours are kept.

    Raises:
        DataError: another kind of array.
    """
    grey = pixels.ndim == 2
    coloured = colours and pixels.ndim == 3 and pixels.shape[2] == 3
    if pixels.dtype != np.uint8 or not (grey or coloured) or pixels.size == 0:
        wanted = "(H, W) or RGB (H, W, 3)" if colours else "(H, W)"
        raise DataError(
            f"an array of {pixels.dtype} {pixels.shape} is no radiograph: give uint8 {wanted}, "
            "as crossband.medical.data.radiographs.read_radiograph does."
        )


class RadiographStore(ImageStore):
    """Reads radiographs and keeps them decoded while they fit a budget.

    Args:
        cache_gb: Budget in GB.
        window: Of DICOM files; see `read_radiograph`.
        shrink: Make larger images smaller, to a shorter side of so many pixels; 0: no.
        colours: Keep colours.
    """

    def __init__(
        self,
        cache_gb: float = 2.0,
        window: Sequence[float] = (),
        shrink: int = 0,
        colours: bool = False,
    ) -> None:
        """Start empty."""
        super().__init__(cache_gb)
        self.window, self.shrink, self.colours = tuple(window), shrink, colours

    def decode(self, path: Path) -> np.ndarray:
        """Read an image, uint8 (H, W), or RGB (H, W, 3)."""
        pixels = read_radiograph(path, self.window, colours=self.colours).pixels
        return shrunk(pixels, self.shrink) if self.shrink else pixels


def shrunk(pixels: np.ndarray, side: int) -> np.ndarray:
    """Return an image whose shorter side is at most `side`, resized bicubically with antialias."""
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    if scale >= 1:
        return pixels
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def to_grey(pixels: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return one channel (H, W) of the same type, and whether there were colours.

    Args:
        pixels: (H, W), (H, W, 1) or RGB (H, W, 3).
    """
    if pixels.ndim == 2:
        return pixels, False
    if pixels.shape[2] == 1:
        return pixels[..., 0], False
    spread = float((pixels.max(axis=2).astype(np.float32) - pixels.min(axis=2)).mean())
    if not spread:
        return pixels[..., 0], False
    luma = np.rint(pixels.astype(np.float32) @ _LUMA).astype(pixels.dtype)
    return luma, spread * 255 / np.iinfo(pixels.dtype).max > _GREY_SPREAD


def eight_bit(pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """Return uint8 of the same shape and the bits that were used: 8, 10, 12, 14 or 16."""
    if pixels.dtype == np.uint8:
        return pixels, 8
    top = int(pixels.max(initial=0))
    bits = next(bits for bits in (8, 10, 12, 14, 16) if top < 2**bits)
    scaled = pixels.astype(np.float32) * np.float32(255 / (2**bits - 1))
    return np.rint(scaled).astype(np.uint8), bits


def has_dicom_magic(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
