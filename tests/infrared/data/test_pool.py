"""The pool of pre-training images: layouts, limits, crops, broken files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crossband.infrared.data.frames import Stretch
from crossband.infrared.data.pool import (
    FrameStore,
    PoolImages,
    choose_box,
    find_pool,
    to_tensor,
)
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.training.sampler import EpochIndex


def write(path: Path, value: int = 100, size: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


@pytest.fixture
def infmix(tmp_path: Path) -> Path:
    root = tmp_path / "infmix"
    for number in (1, 2, 10):
        write(root / f"infpre/roads/thermal/{number}.png")
        write(root / f"infpre/roads/rgb/{number}.png")
    write(root / "infpre/yard/thermal/b.JPEG")
    write(root / "infpre/yard/thermal/a.bmp")
    for wnid in ("n01440764", "n01443537"):
        for number in (9, 10, 11):
            write(root / f"in1k/{wnid}/{wnid}_{number}.JPEG")
    write(root / "coco/train2017/000000000009.jpg")
    (root / "infpre/roads/thermal/notes.txt").write_text("x")
    return root


def names(pool) -> dict[str, list[str]]:
    return {name: [path.name for path in files] for name, files in pool.files.items()}


def test_the_published_layouts(infmix: Path) -> None:
    found = names(find_pool([str(infmix)]))
    assert found["roads"] == ["1.png", "2.png", "10.png"]  # numbers as numbers, rgb/ unused
    assert found["yard"] == ["a.bmp", "b.JPEG"]
    assert len(found["in1k"]) == 6 and found["coco"] == ["000000000009.jpg"]
    parts = [str(infmix / part) for part in ("infpre", "in1k", "coco")]
    assert names(find_pool(parts)) == found
    assert names(find_pool([str(infmix / "infpre/roads")])) == {"roads": found["roads"]}
    assert len(find_pool([str(infmix)] * 2).paths) == len(find_pool([str(infmix)]).paths)


def test_any_folder_of_images(tmp_path: Path) -> None:
    for name in ("b/2.png", "a.png", "b/1.tif", ".hidden.png"):
        write(tmp_path / "frames" / name)
    assert names(find_pool([str(tmp_path / "frames")])) == {"frames": ["a.png", "1.tif", "2.png"]}


def test_limits(infmix: Path, tmp_path: Path) -> None:
    root = str(infmix)
    limited = names(find_pool([root], per_class=2))
    wnids = ("n01440764", "n01443537")
    assert limited["in1k"] == [f"{wnid}_{n}.JPEG" for wnid in wnids for n in (10, 11)]
    assert len(limited["roads"]) == 3
    assert names(find_pool([root], ratio=0.5))["roads"] == ["1.png", "10.png"]
    assert list(names(find_pool([root], datasets=["yard", "coco"]))) == ["yard", "coco"]
    listed = tmp_path / "test.txt"
    listed.write_text("roads/thermal/2.png\n\n10\n")
    pool = find_pool([root], exclude=[str(listed), "*.bmp", "in1k/n01440764/*"])
    found = names(pool)
    assert found["roads"] == ["1.png"] and found["yard"] == ["b.JPEG"] and len(found["in1k"]) == 3
    assert "roads: 2 files excluded" in pool.notes


def test_wrong_limits_get_a_sentence(infmix: Path, tmp_path: Path) -> None:
    root = [str(infmix)]
    (tmp_path / "empty").mkdir()
    for error, reason, given in (
        (ConfigError, "give --data.root", {"roots": []}),
        (DataError, "is not a folder", {"roots": [str(tmp_path / "nowhere")]}),
        (DataError, "no image to read", {"roots": [str(tmp_path / "empty")]}),
        (ConfigError, r"must be in \(0, 1\]", {"roots": root, "ratio": 0.0}),
        (ConfigError, "'roads'", {"roots": root, "datasets": ["raods"]}),
        (ConfigError, "none.txt", {"roots": root, "exclude": [str(tmp_path / "none.txt")]}),
    ):
        with pytest.raises(error, match=reason):
            find_pool(**given)


def test_unreadable_files_are_left_out_and_named(infmix: Path) -> None:
    (infmix / "infpre/roads/thermal/2.png").write_bytes(b"no image")
    (infmix / "infpre/roads/thermal/10.png").write_bytes(b"")
    pool = find_pool([str(infmix)])
    assert names(pool)["roads"] == ["1.png"]
    assert sum("left out" in note for note in pool.notes) == 2


def test_a_file_that_breaks_later_is_skipped(tmp_path: Path, capsys) -> None:
    paths = [write(tmp_path / f"{n}.png", 40 * n) for n in range(4)]
    items = PoolImages(paths, 8, FrameStore(), random=False)
    expected = items[3]["image"]
    whole = paths[2].read_bytes()
    paths[2].write_bytes(whole[: len(whole) // 2])
    again = PoolImages(paths, 8, FrameStore(), random=True)
    for index in (2, EpochIndex(2, 5)):
        torch.testing.assert_close(again[index]["image"], expected)  # the next one's
    err = capsys.readouterr().err
    assert err.count("skipped") == 1 and "2.png" in err
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(DataError, match="None of the 4 images"):
        PoolImages(paths, 8, FrameStore(), random=True)[0]


def test_colours_become_luminance_in_three_channels(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (200, 50, 10)).save(tmp_path / "c.png")
    item = PoolImages([tmp_path / "c.png"], 8, FrameStore(), random=False)[0]["image"]
    grey = Image.new("RGB", (1, 1), (200, 50, 10)).convert("L").getpixel((0, 0))
    torch.testing.assert_close(item, torch.full((3, 8, 8), (grey / 255 - 0.3801) / 0.1871))
    one = PoolImages([tmp_path / "c.png"], 8, FrameStore(), random=False, channels=1)
    assert one[0]["image"].shape == (1, 8, 8)


def test_deep_files_are_stretched_and_four_channels_have_a_thermal_one(tmp_path: Path) -> None:
    counts = np.linspace(21_000, 24_000, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(counts).save(tmp_path / "deep.png")
    pixels = FrameStore().read(tmp_path / "deep.png")
    assert pixels.min() == 0 and pixels.max() == 255
    fixed = FrameStore(stretch=Stretch.of([0, 65_535])).read(tmp_path / "deep.png")
    assert 80 <= fixed.min() and fixed.max() <= 94
    Image.fromarray(np.full((4, 4, 4), (10, 20, 30, 200), np.uint8)).save(tmp_path / "four.png")
    assert FrameStore(channel="thermal").read(tmp_path / "four.png").max() == 200
    assert FrameStore().read(tmp_path / "four.png").max() < 30
    Image.new("RGB", (4, 4), (10, 20, 30)).save(tmp_path / "three.png")
    assert FrameStore(channel="thermal").read(tmp_path / "three.png").max() < 30


def test_the_cache_keeps_its_limit(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.png", 10 * n, (16, 16)) for n in range(3)]
    store = FrameStore(cache_gb=2 * 256 / 2**30)
    first = [store.read(path) for path in paths]
    again = [store.read(path) for path in paths]
    assert [a is b for a, b in zip(first, again, strict=True)] == [True, True, False]


def test_crops_are_keyed_by_epoch_and_index(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    items = PoolImages([tmp_path / "a.png"] * 2, 16, FrameStore(), random=True, seed=3)
    drawn = [items[EpochIndex(0, epoch)]["image"] for epoch in (0, 1, 0)]
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(items[EpochIndex(1, 0)]["image"], drawn[0])
    still = PoolImages([tmp_path / "a.png"], 40, FrameStore(), random=False)[0]["image"]
    torch.testing.assert_close(still[:1], to_tensor(noise[:, 10:50], [0.3801], [0.1871]))


def test_parts_of_an_area_that_cannot_be(tmp_path: Path) -> None:
    for smallest, largest in ((0.0, 1.0), (0.5, 0.2), (0.5, 1.5)):
        with pytest.raises(ConfigError, match="must be in"):
            PoolImages([], 8, FrameStore(), random=True, smallest=smallest, largest=largest)


def test_boxes_have_the_areas_and_shapes_that_are_asked_for() -> None:
    random = np.random.default_rng(0)
    areas, shapes, mirrored = [], [], 0
    for _ in range(400):
        (left, top, right, bottom), flip = choose_box((100, 140), (0.2, 1.0), random)
        assert 0 <= left < right <= 140 and 0 <= top < bottom <= 100
        areas.append((right - left) * (bottom - top) / 14_000)
        shapes.append((right - left) / (bottom - top))
        mirrored += flip
    assert 0.19 < min(areas) < 0.25 and 0.85 < max(areas) <= 1
    assert 0.72 < min(shapes) and max(shapes) < 1.4 and 150 < mirrored < 250
    small = [choose_box((100, 140), (0.05, 0.1), random)[0] for _ in range(50)]
    assert max((right - left) * (bottom - top) for left, top, right, bottom in small) < 1500
    assert choose_box((100, 140), (0.2, 1.0), None) == ((20, 0, 120, 100), False)
    (left, top, right, bottom), _ = choose_box((4, 400), (0.9, 1.0), random)  # no such shape fits
    assert (right - left) / (bottom - top) <= 4 / 3 and bottom - top == 4
