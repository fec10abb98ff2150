from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from crossband.medical.prompted.frames import (
    bounds,
    class_boxes,
    framed,
    framed_boxes,
    framed_mask,
    inner_size,
    shaken,
)
from crossband.shared.errors import DataError

SIZES = [(50, 90), (200, 70), (64, 64), (1, 1), (3, 1000)]


@pytest.mark.parametrize("size", SIZES[:4])
def test_frames_are_those_of_the_authors(size: tuple[int, int]) -> None:
    resize = pytest.importorskip("segment_anything.utils.transforms").ResizeLongestSide(64)
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    theirs = resize.apply_image(pixels)
    found = framed(pixels, 64)
    assert theirs.shape[:2] == inner_size(size, 64) == tuple(found.shape[1:])
    np.testing.assert_array_equal(found.permute(1, 2, 0), theirs)
    boxes = np.array([[0, 1, 20.5, 30], [0, 0, 0, 0]], np.float32)
    wanted = resize.apply_boxes(boxes, size)
    np.testing.assert_allclose(framed_boxes(boxes, size, 64), wanted, rtol=1e-6)


def test_grey_images_get_three_equal_channels_and_thin_ones_a_pixel() -> None:
    grey = np.arange(3000, dtype=np.uint8).reshape(3, 1000)
    found = framed(grey, 64)
    assert found.shape == (3, 1, 64) and torch.equal(found[0], found[2])
    for wrong in (grey.astype(float), grey[None, ..., None], grey[:0]):
        with pytest.raises(DataError, match="is no image"):
            framed(wrong, 64)


@pytest.mark.parametrize("size", SIZES)
def test_masks_lie_on_the_decoders_grid(size: tuple[int, int]) -> None:
    draw = np.random.default_rng(1)
    ids = draw.integers(0, 3, size).astype(np.uint8)
    low = framed_mask(ids, 64, 16)
    height, width = inner_size(size, 64)
    assert low.shape == (16, 16) and low.dtype == np.uint8
    frame = np.zeros((64, 64), np.uint8)
    frame[:height, :width] = np.asarray(Image.fromarray(ids).resize((width, height), 0))
    assert all(low[r, c] == frame[4 * r + 2, 4 * c + 2] for r in range(16) for c in range(16))
    same = framed_mask(np.pad(ids[:1, :1], ((0, 63), (0, 63)), "edge"), 64, 64)
    assert (same == ids[0, 0]).all()


def test_boxes_hold_the_first_and_the_last_pixel() -> None:
    ids = np.zeros((9, 12), np.uint8)
    ids[2:5, 3:8] = 2
    ids[6, 0] = 1
    boxes, kinds = class_boxes(ids)
    assert kinds.tolist() == [1, 2]
    assert boxes.tolist() == [[0, 6, 0, 6], [3, 2, 7, 4]]
    assert bounds(ids == 2).tolist() == [3, 2, 7, 4]
    empty, none = class_boxes(np.zeros((4, 4), np.uint8))
    assert empty.shape == (0, 4) and len(none) == 0


def test_boxes_are_shaken_both_ways_within_reach_and_image() -> None:
    box, moves = np.array([20, 30, 60, 50], np.float32), []
    for seed in range(300):
        moved = shaken(box, (64, 80), 5, np.random.default_rng(seed))
        moves.append(moved - box)
    moves = np.array(moves)
    assert np.abs(moves).max() <= 5 and (moves.min(0) < -4).all() and (moves.max(0) > 4).all()
    assert len(np.unique(np.corrcoef(moves.T).round(1))) > 1  # each side by itself
    thin = np.array([0, 0, 0, 63], np.float32)
    for seed in range(50):
        moved = shaken(thin, (64, 64), 20, np.random.default_rng(seed))
        assert (moved >= 0).all() and (moved <= 63).all()
        assert moved[0] <= moved[2] and moved[1] <= moved[3]
