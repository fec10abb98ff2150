"""A picture of many small pictures, with masks in colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from crossband.shared.errors import DataError
from crossband.shared.files import atomic_path

IMAGES = 12
_COLUMNS, _TILE, _GAP = 4, 224, 4
_OPAQUE = 0.4
_COLOURS = np.array(
    [
        (64, 160, 255),
        (255, 140, 0),
        (60, 200, 90),
        (220, 60, 120),
        (160, 90, 230),
        (240, 220, 70),
        (70, 220, 220),
    ],
    np.float32,
)


def tile(picture: np.ndarray, ids: np.ndarray | None = None) -> np.ndarray:
    """Return the middle square of a picture, made smaller if need be, uint8 (T, T) or (T, T, 3).

    Args:
        picture: uint8 (H, W) or (H, W, 3).
        ids: Class ids of its pixels, uint8 (H, W); 0 stays as it is, others get colours.
    """
    square = _small(picture, Image.Resampling.BICUBIC)
    if ids is not None:
        small = _small(ids, Image.Resampling.NEAREST)
        colours = _COLOURS[(small.astype(int) - 1) % len(_COLOURS)]
        plain = np.stack([square] * 3, -1) if square.ndim == 2 else square
        mixed = plain * (1 - _OPAQUE) + colours * _OPAQUE
        square = np.where(small[..., None] > 0, np.rint(mixed), plain).astype(np.uint8)
    placed = np.zeros((_TILE, _TILE, *square.shape[2:]), np.uint8)
    top = (_TILE - len(square)) // 2
    placed[top : top + len(square), top : top + len(square)] = square
    return placed


def write_sheet(tiles: Sequence[np.ndarray], path: Path) -> None:
    """Write tiles side by side, grey if all are grey.

    Raises:
        DataError: there is none.
        CrossbandError: the file cannot be written.
    """
    if not tiles:
        raise DataError("There is no readable image to show on a contact sheet.")
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    step = _TILE + _GAP
    channels = (3,) if any(shown.ndim == 3 for shown in tiles) else ()
    sheet = np.full((rows * step - _GAP, columns * step - _GAP, *channels), 255, np.uint8)
    for place, shown in enumerate(tiles):
        top, left = (place // columns) * step, (place % columns) * step
        if channels and shown.ndim == 2:
            shown = shown[..., None]
        sheet[top : top + _TILE, left : left + _TILE] = shown
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary)


def _small(picture: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = picture[top : top + side, left : left + side]
    if side <= _TILE:
        return square
    return np.asarray(Image.fromarray(square).resize((_TILE, _TILE), resampling))
