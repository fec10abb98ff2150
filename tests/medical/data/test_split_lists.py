from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crossband.medical.config import SourceConfig
from crossband.medical.data.layouts import find
from crossband.medical.data.records import Collection
from crossband.medical.data.split_lists import Listed, bare_name, read_names
from crossband.medical.data.splits import gather
from crossband.shared.errors import ConfigError, DataError

Put = Callable[..., Path]


def look(root: Path, content: Any, **options: object) -> Collection:
    path = root / "lists.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    config = SourceConfig(root=[str(root)], lists=str(path), **options)  # type: ignore[arg-type]
    return find(config)[0]


def splits(collection: Collection) -> dict[str, str | None]:
    return {record.path.stem: record.split for record in collection.records}


@pytest.fixture
def root(put: Put, tmp_path: Path) -> Path:
    """Kvasir's folders."""
    for name in "abcdef":
        put(f"images/{name}.jpg")
        put(f"masks/{name}.jpg")
    return tmp_path


def test_names_in_every_form(root: Path) -> None:
    lists = {
        "train": ["a.jpg", "Kvasir/images/b.jpg"],
        "valid": ["c", "./images/d.png"],
        "test": ["images\\e.jpg", "gone.jpg"],
    }
    found = look(root, lists)
    assert found.layout == "images"
    assert splits(found) == {"a": "train", "b": "train", "c": "val", "d": "val", "e": "test"}
    assert all(record.mask for record in found.records)
    assert found.notes == [
        "1 image left out, not in lists.json",
        "1 name of lists.json passed over, not there",
    ]


def test_it_lies_beside_the_images_too(root: Path) -> None:
    (root / "files_split").mkdir()
    (root / "files_split/k.json").write_text('{"train": ["a"], "val": ["b"], "test": ["c"]}')
    config = SourceConfig(root=[str(root)], lists="files_split/k.json")
    assert splits(find(config)[0]) == {"a": "train", "b": "val", "c": "test"}
    with pytest.raises(DataError, match="there is no such file"):
        find(SourceConfig(root=[str(root)], lists="files_split/none.json"))


def test_data_lists_of_monai_with_folds(root: Path) -> None:
    content = {
        "name": "polyps",
        "training": [
            {"image": "images/a.jpg", "label": "masks/a.jpg", "fold": 0},
            {"image": ["images/b.jpg"], "label": "masks/b.jpg", "fold": 1},
            {"image": "images/c.jpg", "label": "masks/c.jpg", "fold": 2},
        ],
        "testing": [{"image": "images/d.jpg"}],
    }
    found = look(root, content)
    assert splits(found) == {"a": "val", "b": "train", "c": "train", "d": "test"}
    assert "fold 0 of lists.json validates, the others train" in found.notes
    assert splits(look(root, content, fold=2))["c"] == "val"
    with pytest.raises(ConfigError, match=r"--data\.fold 5: lists\.json has the folds 0, 1, 2"):
        look(root, content, fold=5)
    both = {**content, "validation": [{"image": "images/e.jpg"}]}
    assert splits(look(root, both))["a"] == "train" and splits(look(root, both))["e"] == "val"
    plain = {"training": [{"image": "./images/a.jpg", "label": "x"}], "test": ["./images/b.jpg"]}
    assert splits(look(root, plain)) == {"a": "train", "b": "test"}


def test_lists_come_before_splits_are_drawn(root: Path) -> None:
    path = root / "lists.json"
    path.write_text(json.dumps({"train": list("abcd"), "test": ["e"]}))
    gathered = gather(SourceConfig(root=[str(root)], lists=str(path), val_fraction=0.4))
    assert [record.path.stem for record in gathered.test] == ["e"]
    assert len(gathered.train) + len(gathered.val) == 4 and gathered.val


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"train": ["a", "b"], "test": ["b.jpg"]}, "1 file in two splits"),
        ({"train": ["x", "y"]}, "none of its 2 names"),
        ({"train": ["a", 5]}, "entry 2 of train is no name"),
        ({"train": [{"label": "a"}]}, "entry 1 of train is no name"),
        ({"people": ["a"]}, "holds no lists of names"),
        ("{", "is not a json file"),
    ],
)
def test_lists_that_cannot_be_used(root: Path, content: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        look(root, content)


def test_a_name_of_two_files_needs_its_folder(put: Put, tmp_path: Path) -> None:
    for name in ("images/a.jpg", "more/b.jpg", "more/sub/a.jpg"):
        put(name)
    found = look(tmp_path, {"train": ["more/b", "images/a.jpg"], "test": ["sub/a.jpg"]})
    assert {record.name: record.split for record in found.records} == {
        "images/a.jpg": "train",
        "more/b.jpg": "train",
        "more/sub/a.jpg": "test",
    }
    with pytest.raises(DataError, match="name 1 of test is that of 2 files"):
        look(tmp_path, {"test": ["a"]})


def test_names_of_other_lists(put: Put) -> None:
    text = put("a.txt", "# seen\nKvasir/train/x 1.png\n\ny.nii.gz\nz.jpg 0 1\ncju0\nw.PNG,1\n")
    assert read_names(text) == [
        Listed("Kvasir/train/x 1.png", 2),
        Listed("y.nii.gz", 4),
        Listed("z.jpg", 5),
        Listed("cju0", 6),
        Listed("w.PNG", 7),
    ]
    table = put("b.csv", "patient;Image;split\n1;a/b.png;training\n2;c;test\n")
    assert read_names(table) == [Listed("a/b.png", 2, "train"), Listed("c", 3, "test")]
    assert read_names(put("c.csv", "a.png,3\nb.png,4\n")) == [
        Listed("a.png", 1),
        Listed("b.png", 2),
    ]
    assert read_names(put("d.json", '["a.png", {"image": "b.png"}]')) == [
        Listed("a.png", 1),
        Listed("b.png", 2),
    ]
    with pytest.raises(DataError, match="no column of file names"):
        read_names(put("e.csv", "x,y\n1,2\n"))
    with pytest.raises(DataError, match="holds no names"):
        read_names(put("f.txt", "\n"))
    assert bare_name("a\\b/c.d.NII.GZ") == "c.d" and bare_name("1.2.840.10") == "1.2.840.10"
