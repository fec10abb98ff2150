from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossband.medical.config import SourceConfig
from crossband.medical.data import vindr
from crossband.medical.data.masks import MaskClasses
from crossband.medical.data.records import Record
from crossband.medical.detection.data import Boxes, coco_content, with_sizes
from crossband.medical.detection.fusion import check_fusion, fuse, iou
from crossband.medical.detection.gathering import gather_boxes
from crossband.medical.detection.masks import boxes_of
from crossband.medical.privacy import Names
from crossband.shared.errors import ConfigError, DataError

NAMES = Names(True)


def gather(root: Path, fusion: str = "wbf", classes: tuple[str, ...] = (), **options):
    config = SourceConfig(root=[str(root)], **options)
    return gather_boxes(config, check_fusion(fusion), NAMES, classes)


def picture(path: Path, side: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((side, side), np.uint8)).save(path)


# ---------------------------------------------------------------------------------------------
# Fusing


THREE = [[0, 0, 10, 10], [1, 1, 11, 11], [50, 50, 60, 60], [0, 0, 10, 11]]


def test_overlapping_boxes_become_their_mean() -> None:
    found = fuse(Boxes.of(THREE, [0, 0, 0, 1]), "wbf")
    assert found.labels.tolist() == [0, 0, 1]
    assert found.corners.tolist() == [[0.5, 0.5, 10.5, 10.5], [50, 50, 60, 60], [0, 0, 10, 11]]


def test_nms_keeps_the_box_that_most_agree_with() -> None:
    rows = [[0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]]  # the middle one overlaps both
    assert fuse(Boxes.of(rows, [0, 0, 0]), "nms").corners.tolist() == [rows[1]]
    assert len(fuse(Boxes.of(rows, [0, 0, 0]), "none")) == 3


def test_unknown_fusion() -> None:
    with pytest.raises(ConfigError, match="wbf"):
        check_fusion("mean")


def test_iou() -> None:
    a, b = np.array([[0, 0, 2, 2.0]]), np.array([[1, 1, 3, 3.0], [5, 5, 6, 6]])
    np.testing.assert_allclose(iou(a, b), [[1 / 7, 0]])


# ---------------------------------------------------------------------------------------------
# Masks


def mask_record(tmp_path: Path, values: np.ndarray) -> Record:
    path = tmp_path / "mask.png"
    Image.fromarray(values).save(path)
    return Record(tmp_path / "image.png", "image.png", mask=path)


def test_instances_of_numbers_touch(tmp_path: Path) -> None:
    values = np.zeros((20, 20), np.uint16)
    values[2:6, 2:6], values[2:6, 6:9], values[10:12, 10:15] = 1, 2, 300
    found = boxes_of(mask_record(tmp_path, values), None)
    assert found.corners.tolist() == [[2, 2, 6, 6], [6, 2, 9, 6], [10, 10, 15, 12]]
    assert set(found.labels.tolist()) == {0}


def test_binary_masks_are_cut_into_connected_parts(tmp_path: Path) -> None:
    values = np.zeros((20, 20), np.uint8)
    values[2:6, 2:6] = values[6:8, 6:8] = values[15:18, 1:3] = 255  # the first two touch by corners
    values[0, 19] = 255  # noise
    found = boxes_of(mask_record(tmp_path, values), None)
    assert found.corners.tolist() == [[2, 2, 8, 8], [1, 15, 3, 18]]


def test_compressed_masks_are_told(tmp_path: Path) -> None:
    values = np.zeros((20, 20), np.uint8)
    values[2:10, 2:10], values[2:10, 10], values[15, 15] = 250, 140, 7
    told: list[str] = []
    found = boxes_of(mask_record(tmp_path, values), None, told.append)
    assert found.corners.tolist() == [[2, 2, 11, 10]]
    assert "128" in told[0]


def test_classes_of_masks(tmp_path: Path) -> None:
    values = np.zeros((20, 20), np.uint8)
    values[2:6, 2:6], values[10:14, 2:6], values[10:14, 10:14] = 2, 2, 1
    classes = MaskClasses.given(("background", "a", "b"), ())
    found = boxes_of(mask_record(tmp_path, values), classes)
    assert found.labels.tolist() == [0, 1, 1]
    assert found.corners[0].tolist() == [10, 10, 14, 14]


def test_nuclei(shared_dir: Path) -> None:
    data = gather(shared_dir / "data" / "medical" / "nuclei")
    assert (len(data.train), len(data.val), len(data.test)) == (170, 32, 25)
    assert data.classes == ("object",)
    assert sum(len(item.boxes) for item in data.train) == 4261


def test_broken_masks_are_left_out_by_name(tmp_path: Path) -> None:
    for name in "abcd":
        picture(tmp_path / "images" / f"{name}.png", 20)
        picture(tmp_path / "masks" / f"{name}.png", 20)
    (tmp_path / "masks" / "a.png").write_bytes(b"no picture")
    data = gather(tmp_path, layout="images")
    assert len(data.train) + len(data.val) + len(data.test) == 3
    assert any("cannot be read" in note for note in data.notes)


# ---------------------------------------------------------------------------------------------
# VinDr-CXR

HEAD = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    rows = [
        "a,Cardiomegaly,3,R1,10,10,50,50",
        "a,Cardiomegaly,3,R2,12,10,52,50",
        "a,Nodule/Mass,8,R3,60,60,70,70",
        "b,No finding,14,R1,,,,",
        "b,No finding,14,R2,,,,",
        "c,Cardiomegaly,3,R1,5,5,5,9",
        "c,Rib fracture,20,R1,5,5,9,9",
        "d,ILD,5,R1,0,0,9,9",
    ]
    (tmp_path / "train.csv").write_text(HEAD + "\n".join(rows) + "\n")
    for name in "abc":
        picture(tmp_path / "train" / f"{name}.png")
    return tmp_path


def test_kaggle(kaggle: Path) -> None:
    data = gather(kaggle, val_fraction=0.0, test_fraction=0.0)
    boxes = {item.record.name: item.boxes for item in data.train}
    assert data.classes == vindr.CLASSES and len(data.classes) == 14
    assert boxes["a"].corners.tolist() == [[11, 10, 51, 50], [60, 60, 70, 70]]
    assert boxes["a"].labels.tolist() == [3, 8]
    assert not len(boxes["b"]) and not len(boxes["c"])
    notes = " ".join(data.notes)
    assert "weighted box fusion" in notes and "1 row of other classes" in notes
    assert "no area" in notes and "listed but not there" in notes


def test_labels_choose_classes(kaggle: Path) -> None:
    data = gather(kaggle, "none", labels=["Nodule/Mass", "Rib fracture"], test_fraction=0.0)
    assert data.classes == ("Nodule/Mass", "Rib fracture")
    with pytest.raises(ConfigError, match="Did you mean 'Rib fracture'"):
        gather(kaggle, labels=["Rib fractures"])


def test_physionet(tmp_path: Path) -> None:
    folder = tmp_path / "annotations"
    folder.mkdir()
    head = "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\n"
    (folder / "annotations_train.csv").write_text(head + "a,R1,ILD,0,0,9,9\nb,R2,No finding,,,,\n")
    test = "image_id,class_name,x_min,y_min,x_max,y_max\n"
    (folder / "annotations_test.csv").write_text(test + "c,ILD,0,0,9,9\nc,ILD,1,1,10,10\n")
    for path in ("train/a", "train/b", "test/c"):
        picture(tmp_path / f"{path}.png")
    data = gather(tmp_path, val_fraction=0.0)
    assert [len(part) for part in (data.train, data.val, data.test)] == [2, 0, 1]
    assert len(data.test[0].boxes) == 2  # of consensus: nothing to fuse


def test_a_box_that_is_no_number(kaggle: Path) -> None:
    with (kaggle / "train.csv").open("a") as file:
        file.write("a,ILD,5,R1,0,zero,9,9\n")
    with pytest.raises(DataError, match="line 10"):
        gather(kaggle)


# ---------------------------------------------------------------------------------------------
# COCO and Kvasir


def test_coco(shapes: Path) -> None:
    data = gather(shapes, val_fraction=0.25, test_fraction=0.25)
    items = [*data.train, *data.val, *data.test]
    assert data.classes == ("disc", "square") and len(items) == 24
    assert all(item.boxes.labels.tolist() == [0, 1] for item in items)
    assert data.val and data.test


def test_coco_splits_by_name(tmp_path: Path) -> None:
    for split, image in (("train", "a"), ("valid", "b"), ("test", "c")):
        picture(tmp_path / split / f"{image}.png")
        content = {
            "images": [{"id": 7, "file_name": f"{image}.png", "width": 100, "height": 100}],
            "annotations": [
                {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "area": 12},
                {"id": 2, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 1},
            ],
            "categories": [{"id": 0, "name": "none"}, {"id": 3, "name": "polyp"}],
        }
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(content))
    data = gather(tmp_path)
    assert data.classes == ("polyp",)
    assert [part[0].record.path.stem for part in (data.train, data.val, data.test)] == list("abc")
    assert data.val[0].boxes.corners.tolist() == [[1, 2, 4, 6]]
    assert any("3 boxes of crowds" in note for note in data.notes)


def test_kvasir(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "x1.jpg")
    box = {"label": "polyp", "xmin": 1, "ymin": 2, "xmax": 30, "ymax": 40}
    content = {"x1": {"height": 100, "width": 100, "bbox": [box]}}
    (tmp_path / "kavsir_bboxes.json").write_text(json.dumps(content))
    data = gather(tmp_path, val_fraction=0.0, test_fraction=0.0)
    assert data.train[0].boxes.corners.tolist() == [[1, 2, 30, 40]]
    assert data.train[0].record.path.name == "x1.jpg"


def test_a_json_that_is_not_as_it_should_be(shapes: Path, tmp_path: Path) -> None:
    content = json.loads((shapes / "boxes.json").read_text())
    del content["annotations"][0]["category_id"]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="category_id"):
        gather(tmp_path)


def test_classes_of_a_network(shapes: Path) -> None:
    data = gather(shapes, classes=("square", "other"))
    assert data.classes == ("square", "other")
    assert data.train[0].boxes.labels.tolist() == [0]
    assert any("disc left out" in note for note in data.notes)
    with pytest.raises(DataError, match="same classes"):
        gather(shapes, classes=("polyp",))


# ---------------------------------------------------------------------------------------------
# COCO json that is written


def test_boxes_are_cut_at_the_edges_and_broken_images_left_out(tmp_path: Path, shapes) -> None:
    items = gather(shapes).train[:2]
    far = Boxes.of([[-5, 60, 30, 99], [70, 0, 90, 20]], [0, 1])
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    bad = type(items[0])(Record(broken, "broken"), far)
    found, left = with_sizes([type(items[0])(items[0].record, far), bad])
    assert [path for path, _ in left] == [broken]
    content = coco_content(found, ("disc", "square"))
    assert [one["bbox"] for one in content["annotations"]] == [[0, 60, 30, 4]]
    assert content["images"][0]["height"] == 64
    assert Path(content["images"][0]["file_name"]).is_absolute()
