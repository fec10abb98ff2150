"""Files of pictures, and what the files of an image are called."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from crossband.shared.files import atomic_path

_LONGEST = 160  # characters of a file's stem
_SUFFIX = re.compile(r"\.(png|jpe?g|dcm|tiff?|bmp|webp|npy|nii(\.gz)?)$", re.I)


def save_picture(pixels: np.ndarray, path: Path) -> None:
    """Write a picture, uint8 (H, W) or (H, W, 3); the suffix chooses the format."""
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary)


def stem_of(shown: str, taken: dict[str, str]) -> str:
    """Return the stem of an image's results; another image (1.png, 1.dcm) gets another one.

    Args:
        shown: What the image is called.
        taken: Stems and whose they are; changed.
    """
    first = safe(_SUFFIX.sub("", shown))
    stem, number = first[-_LONGEST:], 1
    while taken.setdefault(stem, shown) != shown:
        number += 1
        stem = f"{first[-_LONGEST:]}-{number}"
    return stem


def safe(name: str) -> str:
    """Return a name that is one file's: what stood in folders keeps their names."""
    return re.sub(r"[^\w.+-]+", "_", name)
