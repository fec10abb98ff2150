from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crossband.medical.privacy import Names
from crossband.medical.prompted.boxes import BoxTable, needed
from crossband.shared.errors import ConfigError, DataError

TWO, THREE = ("background", "polyp"), ("background", "lung", "heart")
HEAD = "image,x0,y0,x1,y1"


def table(folder: Path, *rows: str, head: str = HEAD, classes: tuple[str, ...] = TWO) -> BoxTable:
    path = folder / "boxes.csv"
    path.write_text("\n".join([head, *rows]) + "\n")
    return BoxTable.read(path, classes)


def files(folder: Path, *names: str) -> list[tuple[Path, None]]:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return [(folder / name, None) for name in names]


def test_classes_by_name_or_id(tmp_path: Path) -> None:
    rows = ("a.png,1,2,3.5,4,heart", "a.png,0,0,9,9,1")
    found = table(tmp_path, *rows, head=HEAD + ",class", classes=THREE)
    assert found.boxes.kinds.tolist() == [2, 1]
    assert found.boxes.corners.tolist() == [[1, 2, 3.5, 4], [0, 0, 9, 9]]
    assert table(tmp_path, "a.png;0;0;1;1", head=HEAD.replace(",", ";")).boxes.kinds.tolist() == [1]


def test_images_by_path_end_of_path_name_and_what_they_are_called(tmp_path: Path) -> None:
    images = files(tmp_path, "p/a.png", "q/a.png", "q/b.png", "q/c.png", "q/d.png")
    names = Names(False)
    rows = (
        f"{tmp_path}/p/a.png,0,0,1,1",
        "q/a.png,0,0,2,2",
        "b.png,0,0,3,3",
        f"{names.image(images[3][0])},0,0,4,4",
        "b.png,0,0,5,5",
        "stranger.png,0,0,6,6",
        "listed,0,0,7,7",
    )
    listed = [*images[:4], (images[4][0], "listed")]
    found, unused = table(tmp_path, *rows).assign(listed, names)
    assert [boxes.corners[:, 2].tolist() for boxes in found] == [[1], [2], [3, 5], [4], [7]]
    assert unused == 1


def test_a_row_that_may_mean_two_images_is_refused(tmp_path: Path) -> None:
    images = files(tmp_path, "p/a.png", "q/a.png")
    with pytest.raises(DataError, match="Line 3 of the boxes may mean 2 images"):
        table(tmp_path, "p/a.png,0,0,1,1", "a.png,0,0,1,1").assign(images, Names(True))


def test_a_relative_path_is_meant_from_here(tmp_path: Path, monkeypatch) -> None:
    images = files(tmp_path, "a.png", "q/a.png")
    monkeypatch.chdir(tmp_path)
    found, _ = table(tmp_path, "a.png,0,0,1,1").assign(images, Names(True))
    assert [len(boxes) for boxes in found] == [1, 0]


@pytest.mark.parametrize(
    ("rows", "head", "classes", "message"),
    [
        (("Doe.png,1,2,x,4",), HEAD, TWO, "no box in line 2"),
        (("Doe.png,1,2,0,4",), HEAD, TWO, "x0 up to x1"),
        (("Doe.png,1,2,inf,4",), HEAD, TWO, "no box in line 2"),
        (("Doe.png,1,2,3",), "image,x0,y0,x1", TWO, "no column 'y1'"),
        (("Doe.png,1,2,3,4",), HEAD, THREE, "no column 'class'"),
        (("Doe.png,1,2,3,4,liver",), HEAD + ",class", THREE, "the class 'liver' in line 2"),
        (("Doe.png,1,2,3,4,0",), HEAD + ",class", THREE, "lung, heart"),
        (("Doe.png,1,2,3,4,3",), HEAD + ",class", THREE, "lung, heart"),
    ],
)
def test_bad_tables_are_one_sentence_without_names(
    tmp_path: Path, rows: tuple[str, ...], head: str, classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        table(tmp_path, *rows, head=head, classes=classes)
    assert "Doe" not in str(caught.value)


def test_boxes_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give --boxes boxes.csv with the columns image, x0"):
        needed(None, TWO)
    with pytest.raises(DataError, match="cannot be read"):
        needed(str(tmp_path / "none.csv"), TWO)
    assert np.array_equal(table(tmp_path, "a,0,0,1,1").lines, [2])
