from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossband.infrared.data import classes
from crossband.infrared.data.layouts import Item, find, read_mask
from crossband.shared.errors import DataError


def _image(path: Path, pixels: np.ndarray | None = None, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((6, 8), 40, np.uint8) if pixels is None else pixels
    Image.fromarray(pixels, mode).save(path)
    return path


def _mask(path: Path, top: int = 1) -> Path:
    ids = np.zeros((6, 8), np.uint8)
    ids[2:4, 2:4] = top
    return _image(path, ids)


def _write(root: Path, layout: str) -> None:
    """Write two images of a split in the layout of a public data set."""
    if layout == "soda":
        inner = root / "InfraredSemanticLabel"
        for name in ("a", "b"):
            _image(inner / f"JPEGImages/{name}.jpg")
            _mask(inner / f"SegmentationClassPNG/{name}.png", 20)
        (inner / "train_infrared.txt").write_text("a\n")
        (inner / "test_infrared.txt").write_text("b\n")
    elif layout == "mfnet":
        for name in ("a", "b"):
            _image(root / f"images/{name}.png", np.zeros((6, 8, 4), np.uint8))
            _mask(root / f"labels/{name}.png", 8)
        (root / "train.txt").write_text("a\n")
        (root / "test.txt").write_text("b\n")
    elif layout == "scut":
        for name in ("a", "b"):
            _image(root / f"images/{name}.jpg")
            _mask(root / f"labels/{name}.png", 9)
        (root / "train.txt").write_text("a\n")
        (root / "val.txt").write_text("b\n")
    elif layout == "msrs":
        for split, name in (("train", "a"), ("test", "b")):
            _image(root / f"{split}/ir/{name}.png")
            _mask(root / f"{split}/Segmentation_labels/{name}.png", 8)
    elif layout == "pst900":
        for split, name in (("train", "a"), ("test", "b")):
            _image(root / f"{split}/thermal/{name}.png")
            _mask(root / f"{split}/labels/{name}.png", 4)
    elif layout == "sirst":  # the first version's names
        for name in ("a", "b"):
            _image(root / f"images/{name}.png")
            _mask(root / f"masks/{name}_pixels0.png", 255)
        (root / "trainval.txt").write_text("a\n")
        (root / "test.txt").write_text("b\n")
    else:
        for name in ("a", "b"):
            _image(root / f"images/{name}.png")
            _mask(root / f"masks/{name}.png")
        (root / "classes.txt").write_text("ground\nperson\n")


@pytest.mark.parametrize(
    ("layout", "names", "splits"),
    [
        ("soda", classes.SODA, {"train": "a", "test": "b"}),
        ("mfnet", classes.MFNET, {"train": "a", "test": "b"}),
        ("scut", classes.SCUT, {"train": "a", "val": "b"}),
        ("msrs", classes.MFNET, {"train": "a", "test": "b"}),
        ("pst900", classes.PST900, {"train": "a", "test": "b"}),
        ("sirst", classes.SIRST, {"train": "a", "test": "b"}),
        ("folder", ("ground", "person"), {"train": "ab"}),
    ],
)
def test_public_layouts_are_recognised(
    tmp_path: Path, layout: str, names: tuple[str, ...], splits: dict[str, str]
) -> None:
    _write(tmp_path, layout)
    found = find(tmp_path)
    assert (found.layout, found.classes) == (layout, names)
    assert {k: "".join(i.name for i in v) for k, v in found.splits.items()} == splits
    item = found.splits["train"][0]
    ids = read_mask(item, len(found.classes), binary=found.binary)
    wanted = {"soda": 20, "mfnet": 8, "scut": 9, "msrs": 8, "pst900": 4}.get(layout, 1)
    assert ids.max() == wanted
    assert find(tmp_path, layout).splits == found.splits


def test_class_tables_have_the_published_lengths() -> None:
    assert [len(t) for t in (classes.SODA, classes.MFNET, classes.SCUT)] == [21, 9, 10]
    assert classes.palette(classes.MFNET)[2] == (0, 128, 0)
    assert len(set(classes.palette(classes.SODA))) == 21


def test_what_has_no_partner_is_listed(tmp_path: Path) -> None:
    _write(tmp_path, "folder")
    _image(tmp_path / "images/c.png")
    _mask(tmp_path / "masks/d.png")
    found = find(tmp_path)
    assert [item.mask is None for item in found.splits["train"]] == [False, False, True]
    assert len(found.lonely) == 2
    assert "has no mask" in found.lonely[0] and "has no image" in found.lonely[1]


def test_masks_that_cannot_be_labels(tmp_path: Path) -> None:
    mask = _mask(tmp_path / "m.png", 7)
    with pytest.raises(DataError, match="pixels of class 7, but there are 3 classes"):
        read_mask(Item("m", mask, mask), 3, binary=False)
    colours = np.zeros((6, 8, 3), np.uint8)
    colours[..., 0] = 9
    picture = _image(tmp_path / "c.png", colours)
    with pytest.raises(DataError, match="picture in colours"):
        read_mask(Item("c", picture, picture), 3, binary=False)
    broken = tmp_path / "b.png"
    broken.write_bytes(mask.read_bytes()[:40])
    with pytest.raises(DataError, match="cannot be read"):
        read_mask(Item("b", broken, broken), 3, binary=False)


def test_folders_without_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        find(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match="is a file: give the folder"):
        find(tmp_path / "notes.txt")
    with pytest.raises(DataError, match="no known layout"):
        find(tmp_path)
    _image(tmp_path / "own/images/a.png")
    _mask(tmp_path / "own/masks/a.png", 3)
    with pytest.raises(DataError, match="names of the classes in classes.txt"):
        find(tmp_path / "own")
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match="holds no image with a mask"):
        find(tmp_path)


def test_real_packs(shared_dir: Path) -> None:
    found = find(shared_dir / "data/infrared/sirst_v2")
    assert {k: len(v) for k, v in found.splits.items()} == {"train": 200, "val": 40, "test": 40}
    assert found.layout == "sirst" and not found.lonely
    pairs = find(shared_dir / "data/infrared/msrs_pairs")
    assert pairs.layout == "msrs" and len(pairs.splits["train"]) == 20


def test_texts_that_list_no_image_are_no_splits(tmp_path: Path) -> None:
    _write(tmp_path, "folder")
    (tmp_path / "train.txt").write_text("a\nb\n")
    (tmp_path / "README.txt").write_text("This is a data set.\n")
    found = find(tmp_path)
    assert list(found.splits) == ["train"] and not found.lonely


def test_two_classes_as_0_and_255_are_refused_where_255_is_ignored(tmp_path: Path) -> None:
    _write(tmp_path, "folder")
    for name in ("a", "b"):
        _mask(tmp_path / f"masks/{name}.png", 255)
    with pytest.raises(DataError, match="write 1 for the person"):
        find(tmp_path)
    assert find(tmp_path, "sirst").binary
