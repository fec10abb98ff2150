from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from crossband.apps.low_light.data.pairs import find_pairs, match
from crossband.shared.errors import ConfigError, DataError


def write(root: Path, *names: str, size: tuple[int, int] = (6, 4)) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(root / name)


LAYOUTS = {
    "lol_v1": ("our485/low/2.png", "our485/high/2.png"),
    "basicsr": ("Train/input/1.png", "Train/target/1.png"),
    "lol_v2": ("Real_captured/Test/Low/00690.png", "Real_captured/Test/Normal/00690.png"),
    "lol_v2_prefixes": ("Test/Low/low00690.png", "Test/Normal/normal00690.png"),
    "lol_v2_synthetic": ("Synthetic/Train/Low/r0a1.png", "Synthetic/Train/Normal/r0a1.png"),
    "lsrw": ("Huawei/low/1001.jpg", "Huawei/high/1001.jpg"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    low, high = LAYOUTS[layout]
    write(tmp_path, low, high)
    for root in (tmp_path, tmp_path / Path(low).parts[0]):
        pairs, notes = find_pairs(root)
        assert [(p.low, p.high) for p in pairs] == [(tmp_path / low, tmp_path / high)]
        assert not notes


def test_two_cameras_of_lsrw_are_one_set(tmp_path: Path) -> None:
    write(tmp_path, *(f"{c}/{k}/{n}.jpg" for c in ("Nikon", "Huawei") for k in ("low", "high")
                      for n in (1, 2)))  # fmt: skip
    assert len(find_pairs(tmp_path)[0]) == 4


def test_the_darker_half_of_a_stack_is_paired_with_its_label(tmp_path: Path) -> None:
    write(tmp_path, "Label/1.JPG", *(f"1/{n}.JPG" for n in range(1, 8)), "Label/2.JPG")
    pairs, notes = find_pairs(tmp_path)
    assert [p.low.name for p in pairs] == ["1.JPG", "2.JPG", "3.JPG"]
    assert {p.high.name for p in pairs} == {"1.JPG"}
    assert "no exposures" in notes[0]


def test_files_without_a_partner_are_noted(tmp_path: Path) -> None:
    write(tmp_path, "low/1.png", "high/1.png", "low/2.png", "high/x.png")
    pairs, notes = find_pairs(tmp_path)
    assert len(pairs) == 1 and "2 file(s) without a partner" in notes[0]


def test_training_and_test_parts_are_not_mixed(tmp_path: Path) -> None:
    write(
        tmp_path, *(f"{part}/{k}/1.png" for part in ("our485", "eval15") for k in ("low", "high"))
    )
    with pytest.raises(ConfigError, match="our485.*eval15"):
        find_pairs(tmp_path)
    assert len(find_pairs(tmp_path / "eval15")[0]) == 1


def test_pairs_of_two_sizes_are_named(tmp_path: Path) -> None:
    write(tmp_path, "low/1.png")
    write(tmp_path, "high/1.png", size=(7, 4))
    with pytest.raises(DataError, match="low/1.png is 4 x 6.*4 x 7"):
        find_pairs(tmp_path)


def test_any_two_folders(tmp_path: Path) -> None:
    write(tmp_path, "dark/a.png", "day/A.jpg", "other/b.png")
    assert len(match(tmp_path / "dark", tmp_path / "day")[0]) == 1
    with pytest.raises(DataError, match="partner"):
        match(tmp_path / "dark", tmp_path / "other")
    with pytest.raises(DataError, match="not a folder"):
        match(tmp_path / "dark", tmp_path / "nowhere")
    assert find_pairs(tmp_path) == ([], [])
    with pytest.raises(DataError, match="not a folder"):
        find_pairs(tmp_path / "nowhere")
