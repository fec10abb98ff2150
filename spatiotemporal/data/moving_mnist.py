"""Moving MNIST (Srivastava et al. 2015): digits that bounce about, made as OpenSTL makes them."""

from __future__ import annotations

import gzip
import math
import random
import struct
from pathlib import Path

import numpy as np

from crossband.shared.errors import DataError

STEP_LENGTH = 0.1
_UINT8 = 0x08  # type code of the idx format


def read_idx_images(path: str | Path) -> np.ndarray:
    """Read MNIST's idx file of images, gzipped or not.

    Returns:
        (n, rows, columns) uint8.

    Raises:
        DataError: missing, truncated, or not an idx file of 8-bit images.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}): give MNIST's idx file.") from error
    if len(content) < 16 or content[:4] != bytes((0, 0, _UINT8, 3)):
        raise DataError(
            f"{path} is not an idx file of images: give a file like train-images-idx3-ubyte.gz."
        )
    shape = struct.unpack(">3I", content[4:16])
    if len(content) != 16 + math.prod(shape):
        raise DataError(
            f"{path} holds {len(content) - 16} bytes of images where its header announces "
            f"{math.prod(shape)}: it is truncated; fetch it again."
        )
    return np.frombuffer(content, np.uint8, offset=16).reshape(shape)


def random_trajectory(
    generator: random.Random, frames: int, span: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns (frames,) int32 of the top left corner of a bouncing digit.

    The first frame is already one step away from where the digit starts.

    Args:
        generator: Draws column, row and direction, in this order.
        frames: Number of frames.
        span: Side of the image minus that of the digit.
    """
    x, y = generator.random(), generator.random()
    theta = generator.random() * 2 * math.pi
    position, velocity = [y, x], [math.sin(theta), math.cos(theta)]
    path = np.empty((2, frames))
    for frame in range(frames):
        for axis in (0, 1):
            position[axis] += velocity[axis] * STEP_LENGTH
            if not 0.0 < position[axis] < 1.0:
                velocity[axis] *= -1
                position[axis] = min(1.0, max(0.0, position[axis]))
        path[:, frame] = position
    rows, columns = (span * path).astype(np.int32)
    return rows, columns


def generate_moving_mnist(
    digits: np.ndarray,
    generator: random.Random,
    *,
    count: int = 2,
    frames: int = 20,
    size: int = 64,
) -> np.ndarray:
    """Return a sequence (frames, size, size) uint8 of `count` digits, overlaid by the maximum.

    Args:
        digits: (n, h, w) uint8, see `read_idx_images`.
        generator: Draws each digit's trajectory, then which digit it is.
        count: Digits in the picture.
        frames: Length.
        size: Side of the image.
    """
    sequence = np.zeros((frames, size, size), np.uint8)
    height, width = digits.shape[1:]
    for _ in range(count):
        rows, columns = random_trajectory(generator, frames, size - height)
        digit = digits[generator.randint(0, len(digits) - 1)]
        for frame, row, column in zip(sequence, rows, columns, strict=True):
            place = frame[row : row + height, column : column + width]
            np.maximum(place, digit, out=place)
    return sequence
