from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_tester import DatasetTester
from PIL import Image

from crossband.apps.low_light.data.pairs import Pairs, find_pairs
from crossband.apps.low_light.data.photos import (
    Photos,
    PhotoStore,
    alike,
    choose_crop,
    fingerprint,
    readable,
    split_photos,
)
from crossband.apps.low_light.data.synthetic import embedded_photos, make_synthetic
from crossband.shared.data.images import read_photo, write_photo
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.training.sampler import EpochIndex


class TestPhotos(DatasetTester):
    item = {"target": ((3, 80, 160), torch.float32)}
    length = 10

    def make(self, folder: Path) -> Photos:
        paths = embedded_photos()
        return Photos(
            paths, (80, 160), PhotoStore(), random=True, repeats=2, recolour=True, smallest=0.3
        )


class TestPairs(DatasetTester):
    item = {"image": ((3, 80, 80), torch.float32), "target": ((3, 80, 80), torch.float32)}
    length = 5

    def make(self, folder: Path) -> Pairs:
        if not (folder / "low").exists():
            make_synthetic(folder, longest=160)
        pairs, notes = find_pairs(folder)
        assert not notes
        return Pairs(pairs, (80, 80), PhotoStore(), random=True)


def test_crops_change_with_the_epoch_only() -> None:
    photos = Photos(embedded_photos(), (80, 80), PhotoStore(), random=True, seed=3)
    first, again, later = (photos[EpochIndex(1, e)]["target"] for e in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, later)
    still = Photos(embedded_photos(), (80, 80), PhotoStore(), random=False)
    a, b = (still[EpochIndex(1, e)]["target"] for e in (0, 1))
    assert torch.equal(a, b)


def test_both_of_a_pair_are_cut_alike(tmp_path: Path) -> None:
    make_synthetic(tmp_path, longest=160)
    for path in (tmp_path / "low").iterdir():  # the dark one is the bright one, inverted
        high = read_photo(tmp_path / "high" / path.name)
        write_photo(high.with_pixels(255 - high.pixels), path)
    pairs = Pairs(find_pairs(tmp_path)[0], (80, 80), PhotoStore(), random=True)
    for epoch in range(4):
        item = pairs[EpochIndex(2, epoch)]
        torch.testing.assert_close(item["image"], 1 - item["target"], rtol=0, atol=2.1 / 255)


@pytest.mark.parametrize("size", [(10, 10), (33, 200), (700, 5), (1, 1)])
@pytest.mark.parametrize("target", [(80, 80), (400, 640)])
def test_crops_lie_inside(size, target) -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        (top, left, height, width), _ = choose_crop(size, target, 0.2, draw)
        assert 0 <= top and top + height <= size[0] and height >= 1
        assert 0 <= left and left + width <= size[1] and width >= 1
    (top, left, height, width), mirrored = choose_crop((100, 100), (50, 100), 1.0, None)
    assert (top, left, height, width, mirrored) == (25, 0, 50, 100, False)


def test_the_split_is_by_photograph_and_by_seed(tmp_path: Path) -> None:
    for n in range(10):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{n}.png")
    train, val = split_photos([str(tmp_path)], [], 0.3, 0)
    assert len(train) == 7 and len(val) == 3 and not set(train) & set(val)
    assert (train, val) == split_photos([str(tmp_path)], [], 0.3, 0)
    assert val != split_photos([str(tmp_path)], [], 0.3, 1)[1]
    train, val = split_photos([str(tmp_path)], [str(tmp_path / "3.png")], 0.3, 0)
    assert [path.name for path in val] == ["3.png"] and len(train) == 9
    with pytest.raises(ConfigError, match="val_fraction"):
        split_photos([str(tmp_path / "3.png")], [], 0.3, 0)


def test_unreadable_photographs_are_left_out_and_named(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"")
    paths = [tmp_path / "bad.png", tmp_path / "good.png"]
    good, problems = readable(paths, PhotoStore())
    assert good == paths[1:] and "bad.png is empty" in problems[0]
    with pytest.raises(DataError, match="None of the 1"):
        readable(paths[:1], PhotoStore())


def test_the_store_keeps_what_fits_and_reduces(tmp_path: Path) -> None:
    Image.new("RGB", (100, 50), (10, 20, 30)).save(tmp_path / "a.png")
    store = PhotoStore(cache_gb=1.0, longest=40)
    image = store.read(tmp_path / "a.png")
    assert image.shape == (20, 40, 3) and store.read(tmp_path / "a.png") is image
    poor = PhotoStore(cache_gb=0.0)
    assert poor.read(tmp_path / "a.png") is not poor.read(tmp_path / "a.png")


def test_fingerprints_know_a_scene_again() -> None:
    marks = []
    for path in embedded_photos():
        image = Image.open(path).convert("RGB")
        marks.append(fingerprint(np.asarray(image)))
        smaller = np.asarray(image.resize((320, 240)))
        assert alike(marks[-1], fingerprint(smaller)), path.name
    assert not any(alike(a, b) for i, a in enumerate(marks) for b in marks[:i])


def test_making_pairs_repeats_and_keeps_the_bright_side(tmp_path: Path) -> None:
    written = make_synthetic(tmp_path / "a", longest=100, seed=1)
    make_synthetic(tmp_path / "b", longest=100, seed=1)
    assert len(written) == 5
    for path in written:
        low, high = read_photo(path), read_photo(tmp_path / "a/high" / path.name)
        assert max(low.pixels.shape) == 100 and low.pixels.shape == high.pixels.shape
        assert low.pixels.mean() < high.pixels.mean()
        assert np.array_equal(low.pixels, read_photo(tmp_path / "b/low" / path.name).pixels)
