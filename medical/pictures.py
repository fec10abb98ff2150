"""Files of pictures and masks, and what the files of an image are called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossband.medical.data.radiographs import Radiograph
from crossband.shared.files import atomic_path
from crossband.shared.reports.figures import overlay

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


def write_mask(
    out: Path,
    stem: str,
    image: Radiograph,
    ids: np.ndarray,
    classes: Sequence[str],
    palette: np.ndarray,
) -> dict[str, Any]:
    """Write a mask of class ids (PNG) and an overlay; return their entry of `predictions.jsonl`.

    Args:
        out: Folder.
        stem: Of both files.
        image: What was looked at.
        ids: uint8 (H, W).
        classes: Names by id.
        palette: uint8 (K, 3).
    """
    target, covered = out / f"{stem}.png", out / f"{stem}_overlay.jpg"
    save_picture(ids, target)
    save_picture(overlay(image.pixels, ids, palette), covered)
    counts = np.bincount(ids.ravel(), minlength=len(classes))
    return {
        "mask": str(target),
        "overlay": str(covered),
        "size": list(ids.shape),
        "area": {
            name: round(int(n) / ids.size, 6) for name, n in zip(classes, counts, strict=True)
        },
        "notes": list(image.notes),
    }


def mask_sentence(entry: dict[str, Any]) -> str:
    """Return an entry of `write_mask` as a line."""
    shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in entry["area"].items())
    notes = f" ({' '.join(entry['notes'])})" if entry["notes"] else ""
    return f"{entry['mask']}: {shares}{notes}"
