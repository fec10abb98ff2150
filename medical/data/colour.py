"""Images as they are, grey or in colours: pre-training takes radiographs and histology alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crossband.medical.data.radiographs import (
    DICOM_SUFFIXES,
    eight_bit,
    has_dicom_magic,
    read_radiograph,
    to_grey,
)
from crossband.shared.data.images import read_photo


def read_picture(path: str | Path, window: Sequence[float] = ()) -> np.ndarray:
    """Read a radiograph or a colour photograph: uint8 (H, W), or RGB (H, W, 3).

    A file whose three channels hardly differ is grey. Values of 16-bit files are scaled by the bits
    that are used, as `read_radiograph` does it.

    Args:
        path: PNG, JPEG, BMP, TIFF, WebP or DICOM.
        window: DICOM: centre and width of the grey values, instead of the file's own.

    Raises:
        DataError: the file cannot be read.
    """
    path = Path(path)
    if path.suffix.lower() in DICOM_SUFFIXES or has_dicom_magic(path):
        return read_radiograph(path, window).pixels
    photo = read_photo(path)
    grey, colours = to_grey(photo.pixels[..., :1] if photo.grey else photo.pixels)
    return np.ascontiguousarray(eight_bit(photo.pixels if colours else grey)[0])
