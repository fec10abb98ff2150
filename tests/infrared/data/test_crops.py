from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crossband.infrared.data.crops import (
    FixedImages,
    Frames,
    Normalisation,
    Scale,
    TrainCrops,
    WholeImages,
)
from crossband.infrared.data.layouts import Item
from crossband.shared.errors import DataError
from crossband.shared.training.sampler import EpochIndex

_PLAIN = Normalisation((0.0,) * 3, (1.0,) * 3)


@pytest.fixture
def item(tmp_path: Path) -> Item:
    """An image whose values tell the place, and a target of one pixel in a corner."""
    pixels = (np.arange(40)[:, None] + np.arange(60)).astype(np.uint8)
    mask = np.zeros((40, 60), np.uint8)
    mask[37, 58] = 1
    Image.fromarray(pixels).save(tmp_path / "i.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    return Item("i", tmp_path / "i.png", tmp_path / "m.png")


def _crops(item: Item, **options: object) -> TrainCrops:
    settings = {"size": 16, "scale": Scale(0), "flips": "none", "photometric": False} | options
    return TrainCrops([item], Frames(2), _PLAIN, **settings)


def test_crops_are_cut_from_image_and_mask_alike(item: Item) -> None:
    crops = _crops(item, on_target=1.0)
    for epoch in range(5):
        one = crops[EpochIndex(0, epoch)]
        image, mask = one["image"], one["mask"]
        assert image.shape == (3, 16, 16) and int(mask.sum()) == 1
        row, column = (int(v) for v in mask.nonzero()[0])
        assert float(image[0, row, column]) == 37 + 58


def test_draws_depend_on_seed_epoch_and_index_alone(item: Item) -> None:
    a, b = _crops(item, flips="all", photometric=True), _crops(item, flips="all", photometric=True)
    first = a[EpochIndex(0, 3)]
    assert torch.equal(first["image"], b[EpochIndex(0, 3)]["image"])
    assert not torch.equal(first["image"], a[EpochIndex(0, 4)]["image"])


def test_enlarging_makes_four_by_four_of_a_pixel(item: Item) -> None:
    crops = _crops(item, scale=Scale(0, factor=4.0), on_target=1.0)
    assert int(crops[EpochIndex(0, 0)]["mask"].sum()) == 16


def test_images_smaller_than_a_crop_are_filled_with_ignored_pixels(item: Item) -> None:
    one = _crops(item, size=64)[EpochIndex(0, 0)]
    assert int((one["mask"] == 255).sum()) == 64 * 64 - 40 * 60
    assert float(one["image"][0, 50, 10]) == 0.0  # the mean


def test_crops_that_one_class_fills_are_drawn_again(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 1
    Image.fromarray(mask).save(tmp_path / "m.png")
    item = Item("m", tmp_path / "m.png", tmp_path / "m.png")
    filled = [
        sum(
            float(_crops(item, cat_max_ratio=ratio)[EpochIndex(0, e)]["mask"].float().mean())
            in (0.0, 1.0)
            for e in range(40)
        )
        for ratio in (1.0, 0.75)
    ]
    assert filled[0] > 15 and filled[1] < 5


def test_validation_keeps_masks_at_their_size(item: Item) -> None:
    whole = WholeImages([item], Frames(2), _PLAIN, Scale(80, 2048))[0]
    assert whole["image"].shape == (3, 80, 120) and whole["mask"].shape == (40, 60)
    fixed = FixedImages([item], Frames(2), _PLAIN, Scale(80, 2048))[0]
    assert fixed["mask"].shape == (80, 120)
    assert Scale(512, 600).of((400, 800)) == 600 / 800  # the longer side has the last word


def test_unequal_sizes_name_both_files(item: Item, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 59), np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"i\.png is 60 x 40 and its mask .*m\.png 59 x 40"):
        Frames(2).read(item)


def test_memory_is_limited(item: Item) -> None:
    held = Frames(2, cache_bytes=1e6)
    assert held.read(item)[0] is held.read(item)[0]
    tight = Frames(2, cache_bytes=100)
    assert tight.read(item)[0] is not tight.read(item)[0]
