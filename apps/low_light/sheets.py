"""Pictures that show what was done: before and after, and methods side by side."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from crossband.shared.files import atomic_path

_SIDE = 900  # longest side of one picture on a before/after sheet
_CELL = 260  # longest side on a sheet of many methods
_MARGIN = 6


def write_comparison(before: np.ndarray, after: np.ndarray, path: str | Path) -> None:
    """Write two RGB images (H, W, 3), uint8 or uint16, side by side as a JPEG."""
    sheet = _join([_labelled(before, "before", _SIDE), _labelled(after, "after", _SIDE)])
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary, quality=90)


def sheet(images: Mapping[str, np.ndarray], columns: int = 4) -> bytes:
    """Return one JPEG of several RGB images of one scene, each with its name."""
    cells = [_labelled(image, name, _CELL) for name, image in images.items()]
    rows = [_join(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    width = max(row.shape[1] for row in rows)
    page = np.concatenate([_widen(row, width) for row in rows])
    buffer = io.BytesIO()
    Image.fromarray(page).save(buffer, format="jpeg", quality=88)
    return buffer.getvalue()


def _labelled(image: np.ndarray, name: str, side: int) -> np.ndarray:
    if image.dtype == np.uint16:
        image = (image // 257).astype(np.uint8)
    factor = min(1.0, side / max(image.shape[:2]))
    size = [max(1, round(n * factor)) for n in image.shape[1::-1]]
    small = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
    height, width = small.shape[:2]
    font = ImageFont.load_default(size=14)
    cell = Image.new("RGB", (max(width, int(font.getlength(name)) + 4), height + 22), "white")
    cell.paste(Image.fromarray(small), (0, 22))
    ImageDraw.Draw(cell).text((2, 2), name, fill="black", font=font)
    return np.array(cell)


def _join(cells: list[np.ndarray]) -> np.ndarray:
    height = max(cell.shape[0] for cell in cells)
    gap = np.full((height, _MARGIN, 3), 255, np.uint8)
    parts: list[np.ndarray] = []
    for cell in cells:
        below = np.full((height - cell.shape[0], cell.shape[1], 3), 255, np.uint8)
        parts += [np.concatenate([cell, below]), gap]
    return np.concatenate(parts[:-1], axis=1)


def _widen(row: np.ndarray, width: int) -> np.ndarray:
    return np.pad(row, ((0, _MARGIN), (0, width - row.shape[1]), (0, 0)), constant_values=255)
