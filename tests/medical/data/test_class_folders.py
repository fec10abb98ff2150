from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from crossband.medical.config import SourceConfig
from crossband.medical.data.layouts import find
from crossband.medical.data.records import Collection
from crossband.medical.data.splits import gather
from crossband.shared.errors import ConfigError, DataError

Put = Callable[..., Path]
BRAIN = ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor")


def look(root: Path, **options: object) -> Collection:
    return find(SourceConfig(root=[str(root)], **options))[0]  # type: ignore[arg-type]


def put_brain(put: Put, top: str = "") -> None:
    for part, count in (("Training", 5), ("Testing", 2)):
        for name in BRAIN:
            for number in range(count):
                put(f"{top}{part}/{name}/{part}-{number}.jpg")


@pytest.mark.parametrize("top", ["", "archive/brain/"])
def test_the_brain_set(put: Put, tmp_path: Path, top: str) -> None:
    put_brain(put, top)
    found = look(tmp_path)
    assert (found.layout, found.findings, found.exclusive) == ("class-folders", BRAIN, True)
    assert Counter(r.split for r in found.records) == {"train": 20, "test": 8}
    last = found.records[-1]
    assert last.name == f"{top}Training/pituitary_tumor/Training-4.jpg"
    assert last.labels == (0.0, 0.0, 0.0, 1.0)
    assert found.notes == [
        "4 folders taken as classes: glioma_tumor (7), meningioma_tumor (7), no_tumor (7), "
        "pituitary_tumor (7)"
    ]
    gathered = gather(SourceConfig(root=[str(tmp_path)], val_fraction=0.2, seed=42))
    assert len(gathered.val) > 0 and len(gathered.test) == 8


def test_labels_pick_classes(put: Put, tmp_path: Path) -> None:
    put_brain(put)
    found = look(tmp_path, labels=["no_tumor", "glioma_tumor"])
    assert found.findings == ("no_tumor", "glioma_tumor") and len(found.records) == 14
    assert found.records[0].labels == (0.0, 1.0)
    assert look(tmp_path, target="class", labels=["no_tumor", "glioma_tumor"]) == found
    with pytest.raises(ConfigError, match="Did you mean 'no_tumor'"):
        look(tmp_path, labels=["no_tumour", "glioma_tumor"])


def test_classes_without_splits_and_images_below_them(put: Put, tmp_path: Path) -> None:
    for grade in range(5):
        for number in range(3):
            put(f"{grade}/more/{grade}{number}.png")
    found = look(tmp_path)
    assert found.findings == ("0", "1", "2", "3", "4")
    assert {r.split for r in found.records} == {None}


@pytest.mark.parametrize(
    "names",
    [
        ["a.png", "x/1.png", "x/2.png", "y/1.png", "y/2.png"],
        ["images_001/1.png", "images_001/2.png", "images_002/3.png", "images_002/4.png"],
        ["patient1/1.png", "patient1/2.png", "patient2/3.png", "patient2/4.png"],
        ["train/p1/1.png", "train/p1/2.png", "train/p2/1.png", "train/p2/2.png"],
        ["x/1.png", "x/2.png", "y/1.png"],
        ["train/1.png", "test/2.png"],
    ],
)
def test_other_folders_are_not_taken_for_classes(
    put: Put, tmp_path: Path, names: list[str]
) -> None:
    for name in names:
        put(name)
    assert look(tmp_path).layout == "images"


def test_what_is_in_no_class_or_not_in_all_splits_is_told(put: Put, tmp_path: Path) -> None:
    put_brain(put)
    put("Testing/loose.png")
    put("Training/rare/a.png")
    found = look(tmp_path, layout="class-folders")
    assert found.findings[-1] == "rare"
    assert found.notes[1:] == [
        "1 image in no folder of a class left out",
        "not in every split: rare",
    ]
    put("one/class/a.png")
    with pytest.raises(DataError, match="two classes or more"):
        look(tmp_path / "one", layout="class-folders")
