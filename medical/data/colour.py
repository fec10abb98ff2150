"""Images as they are, grey or in colours: pre-training takes radiographs and histology alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crossband.medical.data.radiographs import read_radiograph


def read_picture(path: str | Path, window: Sequence[float] = ()) -> np.ndarray:
    """Read a radiograph or a colour photograph: uint8 (H, W), or RGB (H, W, 3).

    Args:
        path: PNG, JPEG, BMP, TIFF, WebP or DICOM.
        window: DICOM: centre and width of the grey values, instead of the file's own.

    Raises:
        DataError: the file cannot be read.
    """
    return read_radiograph(path, window, colours=True).pixels
