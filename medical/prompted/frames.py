"""SAM's input frame: the longer side of an image becomes S, the rest is zeros right and below.

Boxes are x0, y0, x1, y1: the first and the last pixel that belong to what is meant.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crossband.medical.cases import fitted
from crossband.shared.errors import DataError

REACH = 20 / 1024  # largest shift of each side of a training box, as part of S


def inner_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return height and width within the frame of an image of height and width `size`."""
    scale = side / max(size)
    height, width = (max(1, int(length * scale + 0.5)) for length in size)
    return height, width


def framed(pixels: np.ndarray, side: int) -> Tensor:
    """Return an image at its size within the frame, float32 RGB 0..255, (3, h, w).

    Args:
        pixels: uint8 (H, W), or RGB (H, W, 3).
        side: S.

    Raises:
        DataError: another kind of array.
    """
    colours = pixels.ndim == 3 and pixels.shape[2] == 3
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or colours) or not pixels.size:
        raise DataError(
            f"An array of {pixels.dtype} {pixels.shape} is no image: give uint8 (H, W), or RGB "
            "(H, W, 3)."
        )
    height, width = inner_size(pixels.shape[:2], side)
    image = (
        Image.fromarray(pixels).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    )
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def framed_boxes(boxes: np.ndarray, size: tuple[int, int], side: int) -> np.ndarray:
    """Return boxes (N, 4) of an image of height and width `size` in pixels of the frame."""
    height, width = inner_size(size, side)
    scale = np.array([width / size[1], height / size[0]] * 2, np.float32)
    return np.asarray(boxes, np.float32).reshape(-1, 4) * scale


def framed_mask(ids: np.ndarray, side: int, low: int) -> np.ndarray:
    """Return class ids (H, W) as the mask decoder gives them, uint8 (low, low), nearest pixels.

    Args:
        ids: uint8 (H, W), of the image's size.
        side: S.
        low: Side of the decoder's masks, a part of S.
    """
    height, width = inner_size(ids.shape, side)
    frame = np.zeros((side, side), np.uint8)
    frame[:height, :width] = fitted(ids, (height, width))
    step = side // low
    return np.ascontiguousarray(frame[step // 2 :: step, step // 2 :: step])


def bounds(mask: np.ndarray) -> np.ndarray:
    """Return the box of a mask (H, W) that is not empty, float32 (4,)."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)


def class_boxes(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes of the classes that a mask (H, W) shows, (N, 4), and their ids, (N,)."""
    kinds = np.unique(ids[ids > 0])
    boxes = [bounds(ids == kind) for kind in kinds]
    return np.array(boxes, np.float32).reshape(-1, 4), kinds


def shaken(
    box: np.ndarray, inner: tuple[int, int], reach: float, draw: np.random.Generator
) -> np.ndarray:
    """Return a box (4,) whose sides are shifted, each by itself, within the image.

    Args:
        box: In pixels of the frame.
        inner: Height and width of the image in the frame.
        reach: Largest shift outward or inward, pixels of the frame; all shifts are as likely.
        draw: Draws the shifts.
    """
    limits = np.array([inner[1], inner[0]] * 2, np.float32) - 1
    moved = np.clip(box + draw.uniform(-reach, reach, 4), 0, limits)
    x, y = np.sort(moved[[0, 2]]), np.sort(moved[[1, 3]])  # of a thin box sides may change places
    return np.array([x[0], y[0], x[1], y[1]], np.float32)
