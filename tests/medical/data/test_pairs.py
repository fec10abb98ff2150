from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from crossband.medical.config import SourceConfig
from crossband.medical.data import pairs
from crossband.medical.data.layouts import find
from crossband.medical.data.records import Collection
from crossband.shared.errors import ConfigError, DataError

Put = Callable[..., Path]


def look(root: Path, **options: object) -> Collection:
    return find(SourceConfig(root=[str(root)], **options))[0]  # type: ignore[arg-type]


def found(root: Path, **options: object) -> dict[str, tuple[str | None, str | None]]:
    """Return split and mask by image."""
    collection = look(root, **options)
    assert collection.layout == "pairs" and collection.findings == ()
    return {
        record.name: (record.split, record.mask and record.mask.relative_to(root).as_posix())
        for record in collection.records
    }


@pytest.mark.parametrize("end", ["labels", "masks", "mask", "gt"])
def test_folders_of_splits_beside_those_of_their_masks(put: Put, tmp_path: Path, end: str) -> None:
    for folder in ("train", "valid", "test"):
        put(f"{folder}/a {folder}.png")
        put(f"{folder}_{end}/a {folder}.png")
    assert found(tmp_path) == {
        "test/a test.png": ("test", f"test_{end}/a test.png"),
        "train/a train.png": ("train", f"train_{end}/a train.png"),
        "valid/a valid.png": ("val", f"valid_{end}/a valid.png"),
    }


@pytest.mark.parametrize("masks", ["masks", "labels", "annotations"])
def test_splits_above_or_below_the_roles(put: Put, tmp_path: Path, masks: str) -> None:
    for split in ("train", "val"):
        for name in ("above/{0}/{1}", "below/{1}/{0}"):
            put(name.format(split, "images") + "/1.jpg")
            put(name.format(split, masks) + "/1.png")
    assert found(tmp_path / "above") == {
        "train/images/1.jpg": ("train", f"train/{masks}/1.png"),
        "val/images/1.jpg": ("val", f"val/{masks}/1.png"),
    }
    assert found(tmp_path / "below")["images/val/1.jpg"] == ("val", f"{masks}/val/1.png")


def test_isic(put: Put, tmp_path: Path) -> None:
    for split, number in (("Training", 0), ("Validation", 1), ("Test", 2)):
        folder = f"ISIC2018_Task1-2_{split}_Input"
        put(f"{folder}/ISIC_000000{number}.jpg")
        put(f"{folder}/ATTRIBUTION.txt", "who")
        truth = f"ISIC2018_Task1_{split}_GroundTruth"
        if split != "Test":
            put(f"{truth}/ISIC_000000{number}_segmentation.png")
    put("ISIC2018_Task2_Training_GroundTruth/ISIC_0000000_attribute_globules.png")
    put("ISIC2018_Task1_Training_GroundTruth/ISIC_0000009_segmentation.png")
    inside, truth = "ISIC2018_Task1-2_{}_Input", "ISIC2018_Task1_{}_GroundTruth"
    assert found(tmp_path) == {
        f"{inside.format('Test')}/ISIC_0000002.jpg": ("test", None),
        f"{inside.format('Training')}/ISIC_0000000.jpg": (
            "train",
            f"{truth.format('Training')}/ISIC_0000000_segmentation.png",
        ),
        f"{inside.format('Validation')}/ISIC_0000001.jpg": (
            "val",
            f"{truth.format('Validation')}/ISIC_0000001_segmentation.png",
        ),
    }
    assert look(tmp_path).notes == [
        "1 file passed over: superpixels and attributes",
        "1 image without a mask",
        "1 mask without an image left out",
    ]


def put_drive(put: Put) -> None:
    for number, split in ((21, "training"), (1, "test")):
        put(f"DRIVE/{split}/images/{number:02d}_{split}.tif")
        put(f"DRIVE/{split}/mask/{number:02d}_{split}_mask.gif")
        put(f"DRIVE/{split}/1st_manual/{number:02d}_manual1.gif")
    put("DRIVE/test/2nd_manual/01_manual2.gif")


def test_drive_does_not_take_the_field_of_view_for_vessels(put: Put, tmp_path: Path) -> None:
    put_drive(put)
    assert found(tmp_path) == {
        "DRIVE/test/images/01_test.tif": ("test", "DRIVE/test/1st_manual/01_manual1.gif"),
        "DRIVE/training/images/21_training.tif": (
            "train",
            "DRIVE/training/1st_manual/21_manual1.gif",
        ),
    }
    notes = look(tmp_path).notes
    assert "1 file passed over: masks of a second reader" in notes
    assert "2 files passed over: fields of view" in notes
    part = tmp_path / "DRIVE/training"
    assert found(part) == {"images/21_training.tif": (None, "1st_manual/21_manual1.gif")}


def test_drive_without_vessels_has_no_labels(put: Put, tmp_path: Path) -> None:
    put("test/images/01_test.tif")
    put("test/mask/01_test_mask.gif")
    assert not pairs.detect(tmp_path)
    with pytest.raises(DataError, match="no image has a mask"):
        look(tmp_path, layout="pairs")


def put_busi(put: Put) -> None:
    for name in ("benign", "malignant", "normal"):
        for number in (1, 2):
            put(f"{name}/{name} ({number}).png")
            put(f"{name}/{name} ({number})_mask.png")
    put("benign/benign (1)_mask_1.png")


def test_busi_has_several_masks_of_an_image(put: Put, tmp_path: Path) -> None:
    put_busi(put)
    collection = look(tmp_path)
    assert (collection.layout, collection.findings, len(collection.records)) == ("pairs", (), 6)
    first = collection.records[0]
    assert first.name == "benign/benign (1).png"
    assert first.mask == tmp_path / "benign/benign (1)_mask.png"
    assert first.more_masks == (tmp_path / "benign/benign (1)_mask_1.png",)
    assert all(record.more_masks == () for record in collection.records[1:])


def test_busi_has_classes_too(put: Put, tmp_path: Path) -> None:
    put_busi(put)
    both = look(tmp_path, target="class")
    assert both.exclusive and both.findings == ("benign", "malignant", "normal")
    assert both.records[2].labels == (0.0, 1.0, 0.0) and both.records[2].mask is not None
    two = look(tmp_path, target="class", labels=["normal", "benign"])
    assert two.findings == ("normal", "benign") and len(two.records) == 4
    assert two.records[0].labels == (0.0, 1.0)
    with pytest.raises(ConfigError, match="view and sex"):
        look(tmp_path, target="kind")
    put_drive(put)
    with pytest.raises(DataError, match="no folder per class"):
        look(tmp_path / "DRIVE", target="class")


def test_what_has_no_partner_is_counted(put: Put, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png", "a_mask.png", "d_mask.png", "x.tif", "x-seg.png"):
        put(f"all/{name}")
    assert found(tmp_path) == {
        "all/a.png": (None, "all/a_mask.png"),
        "all/b.png": (None, None),
        "all/c.png": (None, None),
        "all/x.tif": (None, "all/x-seg.png"),
    }
    notes = look(tmp_path).notes
    assert "2 images without a mask" in notes and "1 mask without an image left out" in notes


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["images/a.png", "labels/a.png", "masks/a_mask.png"], "2 masks in labels, masks could"),
        (["images/a.png", "images/a.jpg", "labels/a.png"], "1 mask in labels could belong to 2"),
        (
            ["t/train/a.png", "t/train_labels/a.png", "t/train_labels/a.gif"],
            "2 masks in train_labels could",
        ),
    ],
)
def test_two_candidates_are_refused(put: Put, tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        put(name)
    with pytest.raises(DataError, match=words):
        look(tmp_path, layout="pairs")


def test_equal_names_in_masks_stay_the_layout_images(put: Put, tmp_path: Path) -> None:
    for name in ("images/a.png", "masks/a.png"):
        put(f"kvasir/{name}")
    for name in ("images/a.png", "masks/a_mask.png"):
        put(f"other/{name}")
    for name in ("images/a.png", "masks/a.png", "labels.csv"):
        put(f"table/{name}", "image\nimages/a.png\n" if name.endswith("csv") else None)
    assert look(tmp_path / "kvasir").layout == "images"
    assert look(tmp_path / "table").layout == "csv"
    assert found(tmp_path / "other") == {"images/a.png": (None, "masks/a_mask.png")}
    assert found(tmp_path / "kvasir", layout="pairs") == {"images/a.png": (None, "masks/a.png")}


def test_folders_of_patients_keep_equal_names_apart(put: Put, tmp_path: Path) -> None:
    for patient in ("Secret1", "Secret2"):
        put(f"images/{patient}/1.png")
        put(f"labels/{patient}/1.png")
    assert found(tmp_path)["images/Secret2/1.png"] == (None, "labels/Secret2/1.png")
    put("labels/Secret1/1.gif")
    with pytest.raises(DataError, match="2 masks in labels could") as error:
        look(tmp_path)
    assert "Secret" not in str(error.value)


def test_boxes_are_for_detection(put: Put, tmp_path: Path) -> None:
    put("a.png")
    for layout in ("vindr", "coco"):
        with pytest.raises(ConfigError, match="give --task detection"):
            look(tmp_path, layout=layout)


def test_a_gif_is_read_as_a_mask(tmp_path: Path) -> None:
    from crossband.medical.data.masks import MaskClasses, read_mask

    for name, mode in (("images/1.png", "L"), ("labels/1.gif", "1")):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        image = Image.new(mode, (6, 4))
        image.paste(255, (0, 0, 3, 4))
        image.save(path)
    record = look(tmp_path).records[0]
    ids = read_mask(record, MaskClasses())
    assert ids.shape == (4, 6) and ids[:, :3].all() and not ids[:, 3:].any()
