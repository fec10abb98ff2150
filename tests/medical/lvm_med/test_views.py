"""Views of LVM-Med: the grids say where in the image the crops are, exactly."""

from __future__ import annotations

import pickle
from typing import Any

import crossband.shared.compat  # noqa: F401 - before torchvision

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from crossband.medical.data.pool import BalancedPool, PictureStore, find_pool
from crossband.medical.data.transforms import IMAGENET, Normalisation
from crossband.medical.lvm_med.views import PairedViews, augment, cut
from crossband.medical.pretraining.config import MultiCropConfig
from crossband.medical.privacy import Names
from crossband.shared.errors import ConfigError
from crossband.shared.training.sampler import EpochBatchSampler, EpochIndex

UNIT = Normalisation((0.0,) * 3, (1.0,) * 3)
PLAIN = {"jitter_chance": 0.0, "grey_chance": 0.0, "blur_chance": 0.0, "colours": True}


class Pictures:
    """Images by number."""

    def __init__(self, *pictures: np.ndarray) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def read_or_next(self, index: int) -> tuple[int, np.ndarray]:
        return index, self.pictures[index]


def coordinates(height: int, width: int) -> np.ndarray:
    """Red and green are twice row and column of a pixel's centre."""
    y, x = np.mgrid[:height, :width] + 0.5
    return np.dstack([2 * y, 2 * x, 0 * x]).astype(np.uint8)


def noise(seed: int, shape: tuple[int, ...] = (50, 60, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def at_cells(view: Tensor, cells: int) -> Tensor:
    """Return the values at the centres of a regular grid of cells, (cells, cells, 3)."""
    centres = (torch.arange(cells) + 0.5) / cells * 2 - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    grid = torch.stack([x, y], -1)[None]
    found = torch.nn.functional.grid_sample(view[None], grid, align_corners=False)
    return found[0].permute(1, 2, 0)


def small(**changes: Any) -> MultiCropConfig:
    return MultiCropConfig(sizes=[32, 16], stride=8, **changes)


def same(a: dict[str, list[Tensor]], b: dict[str, list[Tensor]]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(x, y) for key in a for x, y in zip(a[key], b[key], strict=True)
    )


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(100, 120), (120, 64)])
def test_grids_are_the_coordinates_of_what_the_cells_show(flip, shape) -> None:
    options = MultiCropConfig(sizes=[224, 96], flip=flip, **PLAIN)
    data = PairedViews(Pictures(coordinates(*shape)), options, normalisation=UNIT)
    mirrored = 0
    for epoch in range(25):
        item = data[EpochIndex(0, epoch)]
        pairs = [("views", "grids", 7), ("small", "small_grids", 3)]
        for views, grids, cells in pairs:
            assert len(item[views]) == len(item[grids]) == 2
            for view, grid in zip(item[views], item[grids], strict=True):
                assert grid.shape == (cells, cells, 2) and grid.dtype == torch.float32
                shown = at_cells(view, cells)[..., :2] * 255 / 2
                # Grey levels are whole numbers, so a coordinate is known to a quarter of a pixel.
                assert (shown - grid).abs().max() < 0.6
                assert (shown - grid).mean((0, 1)).abs().max() < 0.3
                assert grid.min() > 0
                assert grid[..., 0].max() < shape[0] and grid[..., 1].max() < shape[1]
                mirrored += int(grid[0, 0, 1] > grid[0, -1, 1])
    assert mirrored == {0.0: 0, 1.0: 100}.get(flip, mirrored) and 0 <= mirrored <= 100
    if flip == 0.5:
        assert 30 < mirrored < 70


def test_two_views_show_the_same_at_the_same_place() -> None:
    options = MultiCropConfig(counts=[2, 0], **PLAIN)
    data = PairedViews(Pictures(coordinates(110, 110)), options, normalisation=UNIT)
    for epoch in range(10):
        item = data[EpochIndex(0, epoch)]
        (first, second), (here, there) = item["views"], item["grids"]
        distance = torch.cdist(here.flatten(0, 1), there.flatten(0, 1))
        near, where = distance.min(1)
        a = at_cells(first, 7)[..., :2].flatten(0, 1) * 255 / 2
        b = at_cells(second, 7)[..., :2].flatten(0, 1)[where] * 255 / 2
        assert ((a - b).norm(dim=-1) - near).abs().max() < 0.9


def test_the_drafts_grids_are_not_mirrored() -> None:
    plain, draft = (
        PairedViews(Pictures(noise(0)), small(flip=1.0, no_flip_grid=quirk, **PLAIN), seed=5)[0]
        for quirk in (False, True)
    )
    for key in ("grids", "small_grids"):
        for a, b in zip(plain[key], draft[key], strict=True):
            assert torch.equal(a.flip(1), b)
    assert torch.equal(plain["views"][0], draft["views"][0])


def test_sizes_and_numbers_of_views() -> None:
    item = PairedViews(Pictures(noise(0)), small(counts=[3, 4]))[0]
    assert [v.shape for v in item["views"]] == [(3, 32, 32)] * 3
    assert [v.shape for v in item["small"]] == [(3, 16, 16)] * 4
    assert [g.shape for g in item["grids"]] == [(4, 4, 2)] * 3
    assert [g.shape for g in item["small_grids"]] == [(2, 2, 2)] * 4
    assert set(PairedViews(Pictures(noise(0)), small(counts=[2, 0]))[0]) == {"views", "grids"}
    odd = PairedViews(Pictures(noise(0)), MultiCropConfig(sizes=[40, 20], stride=32))[0]
    assert odd["grids"][0].shape == odd["small_grids"][0].shape == (2, 2, 2)
    for image in (noise(1, (1, 1)), noise(1, (3, 400)), noise(1, (70, 2, 3))):
        views = PairedViews(Pictures(image), small())[0]["views"]
        assert all(view.isfinite().all() for view in views)


def test_areas_are_the_papers() -> None:
    data = PairedViews(Pictures(noise(0, (100, 100))), small(**PLAIN))
    area: dict[str, list[float]] = {"grids": [], "small_grids": []}
    for epoch in range(100):
        item = data[EpochIndex(0, epoch)]
        for key, found in area.items():
            for grid in item[key]:
                part = 1 - 1 / len(grid)  # from the first centre to the last
                sides = (grid[-1, -1] - grid[0, 0]).abs() / part / 100
                found.append(float(sides.prod()))
    assert 0.39 < min(area["grids"]) < 0.45 and 0.9 < max(area["grids"]) <= 1.0001
    assert 0.07 < min(area["small_grids"]) < 0.1 and 0.37 < max(area["small_grids"]) < 0.42


def test_draws_depend_on_seed_epoch_and_index_alone() -> None:
    pictures = Pictures(noise(0), noise(0), noise(2))
    data, again = (PairedViews(pictures, small(colours=True), seed=3) for _ in range(2))
    first = data[EpochIndex(1, 4)]
    torch.manual_seed(1)
    np.random.seed(1)
    data[EpochIndex(2, 2)]
    assert same(again[EpochIndex(1, 4)], first)
    assert not same(data[EpochIndex(0, 4)], first)  # the same picture under another number
    assert not same(data[EpochIndex(1, 5)], first)
    assert not same(PairedViews(pictures, small(colours=True), seed=4)[EpochIndex(1, 4)], first)
    a, b = first["views"]
    assert not torch.equal(a, b)
    fixed = PairedViews(pictures, small(), varied=False)
    assert same(fixed[EpochIndex(1, 4)], fixed[EpochIndex(1, 7)])
    with pytest.raises(IndexError):
        data[3]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_lists_and_the_same_in_any_number_of_processes(workers) -> None:
    data = PairedViews(Pictures(*(noise(i) for i in range(6))), small(), seed=1)
    order = EpochBatchSampler(6, 3, seed=0)
    order.set_epoch(2)
    wanted = [data[index] for batch in order for index in batch]
    batches = list(DataLoader(data, batch_sampler=order, num_workers=workers))
    for key, shape in (("views", (3, 3, 32, 32)), ("small_grids", (3, 2, 2, 2))):
        assert [part.shape for part in batches[0][key]] == [shape, shape]
        for number in range(2):
            found = torch.cat([batch[key][number] for batch in batches])
            assert torch.equal(found, torch.stack([item[key][number] for item in wanted]))
    assert same(pickle.loads(pickle.dumps(data))[4], data[4])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_volume_that_breaks_later_stops_no_batch(workers, tmp_path) -> None:
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", noise(number, (3, 20, 24)))
    pool = find_pool([str(tmp_path)], Names(False))
    data = PairedViews(BalancedPool(pool, PictureStore(0.0), Names(False)), small())
    (tmp_path / "0.npy").write_bytes(b"nothing")
    batches = list(DataLoader(data, batch_size=3, num_workers=workers))
    assert [len(batch["views"][0]) for batch in batches] == [3, 3]
    # The next one that can be read is shown instead, cropped by the draws of the place.
    (tmp_path / "0.npy").unlink()
    assert torch.equal(batches[0]["views"][0][1], data[1]["views"][0])


def test_crops_are_torchvisions() -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    for pixels in (noise(1), noise(1, (50, 60))):
        image, box = Image.fromarray(pixels), (3, 8, 31, 40)
        wanted = F.resized_crop(image, *box, [24, 24], InterpolationMode.BICUBIC)
        assert np.array_equal(cut(pixels, box, 24, False), wanted)
        assert np.array_equal(cut(pixels, box, 24, True), F.hflip(wanted))


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_tones_are_torchvisions(kind, mode) -> None:
    from torchvision.transforms import functional as F

    names = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue")
    strength = [0.0] * 4
    strength[kind] = 0.2 if kind == 3 else 0.8
    options = small(jitter=strength, jitter_chance=1.0, grey_chance=0, blur_chance=0, colours=True)
    view = Image.fromarray(noise(4)).convert(mode)
    for seed in range(5):
        found = augment(view, options, np.random.default_rng(seed))
        draw = np.random.default_rng(seed)
        draw.random()
        factors = [draw.uniform(max(0, 1 - s), 1 + s) for s in strength[:3]]
        factors.append(draw.uniform(-strength[3], strength[3]))
        wanted = np.asarray(getattr(F, names[kind])(view, factors[kind]))
        assert found.mode == mode
        assert np.array_equal(np.asarray(found), wanted)


def test_colours_end_grey_unless_they_are_to_stay() -> None:
    data = [
        PairedViews(Pictures(noise(0)), small(colours=c, grey_chance=0.0), normalisation=UNIT)
        for c in (False, True)
    ]
    grey, colour = data[0][0]["views"][0], data[1][0]["views"][0]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
    assert not torch.equal(colour[0], colour[1])
    luma = (colour * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)
    assert (luma - grey[0]).abs().max() < 0.005  # the colours were made grey last
    one, three = noise(0, (50, 60)), np.repeat(noise(0, (50, 60))[..., None], 3, 2)
    a, b = (PairedViews(Pictures(p), small(jitter_chance=0.0))[0] for p in (one, three))
    assert same(a, b)


def test_chances_are_as_given() -> None:
    options = small(colours=True)
    view = Image.fromarray(noise(3, (16, 16, 3)))
    grey = changed = 0
    for seed in range(400):
        grey += augment(view, options, np.random.default_rng(seed)).mode == "L"
        plain = small(colours=True, grey_chance=0.0, blur_chance=0.0)
        changed += augment(view, plain, np.random.default_rng(seed)).tobytes() != view.tobytes()
    assert grey / 400 == pytest.approx(0.2, abs=0.06)
    assert changed / 400 == pytest.approx(0.8, abs=0.06)


def test_views_are_normalised_by_imagenet() -> None:
    white = np.full((40, 40, 3), 255, np.uint8)
    view = PairedViews(Pictures(white), small(**PLAIN))[0]["views"][0]
    wanted = [(1 - m) / s for m, s in zip(IMAGENET.mean, IMAGENET.std, strict=True)]
    assert torch.allclose(view, torch.tensor(wanted).view(3, 1, 1).expand_as(view))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"counts": [1, 2]}, "two or more large"),
        ({"counts": [2]}, "two sizes"),
        ({"sizes": [0, 16]}, "at least 1 pixel"),
        ({"large": [0.5, 1.5]}, "two parts"),
        ({"flip": 1.5}, "flip 1.5"),
        ({"jitter": [0.8, 0.8, 0.8, 0.7]}, "at most 0.5"),
        ({"blur": [2.0, 0.1]}, "radius"),
        ({"stride": 0}, "stride 0"),
    ],
)
def test_options_that_cannot_be_are_named(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        PairedViews(Pictures(noise(0)), MultiCropConfig(**changes))
