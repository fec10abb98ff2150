from __future__ import annotations

import gzip
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from crossband.shared.errors import DataError
from crossband.spatiotemporal.data.moving_mnist import (
    generate_moving_mnist,
    random_trajectory,
    read_idx_images,
)

DIGITS = np.random.default_rng(0).integers(1, 256, (7, 28, 28), dtype=np.uint8)


def idx(images: np.ndarray) -> bytes:
    return b"\x00\x00\x08\x03" + struct.pack(">3I", *images.shape) + images.tobytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_files(tmp_path: Path, pack: object) -> None:
    path = tmp_path / "images"
    path.write_bytes(pack(idx(DIGITS)))
    np.testing.assert_array_equal(read_idx_images(path), DIGITS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(DIGITS)[:-1], "truncated"),
        (gzip.compress(idx(DIGITS))[:-20], "cannot be read"),
        (b"hello, I am a text file", "not an idx file"),
        (None, "cannot be read"),
    ],
)
def test_broken_idx_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "images"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx_images(path)


def test_digits_stay_whole_and_move_evenly() -> None:
    for seed in range(20):
        rows, columns = random_trajectory(random.Random(seed), 50, 36)
        assert min(rows.min(), columns.min()) >= 0
        assert max(rows.max(), columns.max()) <= 36
        assert np.abs(np.diff(rows)).max() <= 4  # a tenth of 36, rounded down at both ends


def test_a_sequence_is_the_maximum_of_its_digits() -> None:
    one = generate_moving_mnist(DIGITS, random.Random(5), count=1, frames=6)
    two = generate_moving_mnist(DIGITS, random.Random(5), count=2, frames=6)
    assert two.shape == (6, 64, 64) and two.dtype == np.uint8
    assert (two >= one).all()
    assert ((one > 0).sum(axis=(1, 2)) == 28 * 28).all()
    np.testing.assert_array_equal(
        two, generate_moving_mnist(DIGITS, random.Random(5), count=2, frames=6)
    )
