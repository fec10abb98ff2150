"""Aligned images of several sensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crossband.infrared.data.modalities import SceneImages, find_scenes, scene_stores
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.registry import IMAGENET_MEAN, IMAGENET_STD
from crossband.shared.training.sampler import EpochIndex

FOLDERS = {"rgb": "vi", "thermal": "ir"}


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for folder in FOLDERS.values():
        (tmp_path / "set" / folder).mkdir(parents=True)
    for number in range(4):
        grey = random.integers(0, 255, (20, 30), dtype=np.uint8)
        Image.fromarray(grey).save(tmp_path / f"set/ir/{number}.png")
        Image.fromarray(np.stack([grey, grey // 2, 255 - grey], -1)).save(
            tmp_path / f"set/vi/{number}.bmp"
        )
    return tmp_path / "set"


def test_partners_are_found_by_their_names(scenes: Path) -> None:
    (scenes / "vi/3.bmp").unlink()
    Image.new("L", (5, 5)).save(scenes / "ir/2.png")
    (scenes / "ir/1.png").write_bytes(b"broken")
    found = find_scenes([str(scenes)], FOLDERS)
    assert [files["thermal"].name for files in found.files] == ["0.png"]
    assert found.counts == {"set": 1} and len(found.notes) == 3


def test_all_modalities_get_the_same_crop(scenes: Path) -> None:
    files = find_scenes([str(scenes)], FOLDERS).files
    items = SceneImages(files, 8, scene_stores(FOLDERS), random=True)
    item = items[EpochIndex(1, 2)]
    assert item["rgb"].shape == (3, 8, 8) and item["thermal"].shape == (1, 8, 8)
    red = item["rgb"][:1] * IMAGENET_STD[0] + IMAGENET_MEAN[0]
    torch.testing.assert_close(red, item["thermal"], atol=1 / 255, rtol=0)
    assert torch.equal(item["rgb"], items[EpochIndex(1, 2)]["rgb"])
    assert not torch.equal(item["rgb"], items[EpochIndex(1, 3)]["rgb"])


def test_a_scene_that_breaks_is_skipped(scenes: Path, capsys) -> None:
    files = find_scenes([str(scenes)], FOLDERS).files
    (scenes / "ir/1.png").write_bytes(b"broken")
    items = SceneImages(files, 8, scene_stores(FOLDERS), random=False)
    assert torch.equal(items[1]["rgb"], items[2]["rgb"])
    assert capsys.readouterr().err.count("skipped") == 1


def test_wrong_folders_get_a_sentence(scenes: Path) -> None:
    root = [str(scenes)]
    with pytest.raises(ConfigError, match="rgb=vi thermal=ir"):
        find_scenes(root, {"rgb": "vi"})
    with pytest.raises(DataError, match="depth images"):
        find_scenes(root, {**FOLDERS, "depth": "depth"})
    for path in (scenes / "ir").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="No scene has images of all of rgb, thermal"):
        find_scenes(root, FOLDERS)
