from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crossband.apps.main import main
from crossband.infrared.data.crops import Frames
from crossband.infrared.data.layouts import find
from crossband.infrared.data.synthetic import make_synthetic
from crossband.shared.data.images import read_photo
from crossband.shared.errors import ConfigError


def test_scenes_are_read_by_the_real_reader_and_repeat(tmp_path: Path) -> None:
    data = find(make_synthetic(tmp_path / "a", 8, size=(64, 80)))
    again = find(make_synthetic(tmp_path / "b", 8, size=(64, 80)))
    assert data.layout == "folder" and data.classes == ("background", "road", "car", "person")
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 6, "val": 1, "test": 1}
    seen = np.zeros(4, int)
    for a, b in zip(data.splits["train"], again.splits["train"], strict=True):
        pixels, mask = Frames(4).read(a)
        assert np.array_equal(pixels, Frames(4).read(b)[0])
        seen += np.bincount(mask.ravel(), minlength=4)
        if (mask == 3).any() and (mask == 0).any():
            assert pixels[mask == 3].mean() > pixels[mask == 0].mean()  # people are warm
    assert (seen > 0).all()


def test_deep_scenes_hold_counts_of_a_camera(tmp_path: Path) -> None:
    data = find(make_synthetic(tmp_path, 3, size=(48, 48), kind="targets", bits=16))
    photo = read_photo(data.splits["train"][0].image)
    celsius = photo.pixels.astype(float) / 100 - 273.15
    assert photo.white == 65535 and -60 < celsius.min() < celsius.max() < 60


def test_too_few_or_too_small(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make 3 or more"):
        make_synthetic(tmp_path, 2)


def test_commands_make_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "scenes"
    assert main(["infrared", "data", "make", "--out", str(root), "--count", "5"]) == 0
    sheet = tmp_path / "sheet.png"
    words = ["infrared", "data", "check", "--data.root", str(root)]
    assert main([*words, "--out", str(sheet)]) == 0
    printed = capsys.readouterr().out
    assert "all files can be read" in printed and "person" in printed
    assert read_photo(sheet).pixels.shape[1] > 400
    broken = next((root / "images").iterdir())
    broken.write_bytes(broken.read_bytes()[:100])
    assert main(words) == 1
    assert f"problem: {broken}" in capsys.readouterr().out
