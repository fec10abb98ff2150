"""Where 3-D segmentation sets keep volumes and masks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossband.medical.config import SourceConfig
from crossband.medical.data import volume_sets
from crossband.medical.data.records import Collection, Record
from crossband.shared.errors import ConfigError, DataError


@pytest.fixture
def lay(tmp_path: Path):
    """Make empty files: names tell all that is looked at."""

    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        return tmp_path

    return make


def read(root: Path, *sequences: str) -> Collection:
    assert volume_sets.detect(root)
    return volume_sets.read(root, SourceConfig(sequences=list(sequences)))


def shown(collection: Collection) -> list[tuple[str, str | None, str | None]]:
    """Names, masks, splits."""
    root = collection.root
    return [
        (r.name, r.mask.relative_to(root).as_posix() if r.mask else None, r.split)
        for r in collection.records
    ]


def only(collection: Collection) -> Record:
    (record,) = collection.records
    return record


@pytest.mark.parametrize(
    "labels", [{"0": "background", "1": "cancer"}, {"background": 0, "cancer": 1}]
)
def test_decathlon(lay, labels) -> None:
    root = lay(
        "imagesTr/colon_001.nii.gz", "imagesTr/colon_002.nii.gz", "imagesTr/._colon_001.nii.gz",
        "labelsTr/colon_001.nii.gz", "labelsTr/colon_002.nii.gz", "imagesTs/colon_003.nii.gz",
    )  # fmt: skip
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "modality": {"0": "CT"}}))
    found = read(root)
    assert shown(found) == [
        ("imagesTr/colon_001.nii.gz", "labelsTr/colon_001.nii.gz", "train"),
        ("imagesTr/colon_002.nii.gz", "labelsTr/colon_002.nii.gz", "train"),
        ("imagesTs/colon_003.nii.gz", None, "test"),
    ]
    assert found.layout == "volumes" and found.classes == ("background", "cancer")
    assert len({record.patient for record in found.records}) == 3
    assert found.notes == ["1 volume of the test part without a mask: not for scores"]


def test_decathlon_without_test_volumes_says_no_split(lay) -> None:
    names = [f"{kind}Tr/case_{n:04d}.nii.gz" for kind in ("images", "labels") for n in range(3)]
    root = lay(*names)
    (root / "dataset.json").write_text("{}")
    found = read(root)  # four digits are not channels here: masks have them too
    assert [split for _, _, split in shown(found)] == [None] * 3
    assert all(record.mask for record in found.records) and not found.classes


def test_nnunet_channels(lay) -> None:
    root = lay(
        *(f"imagesTr/brain_{n:03d}_{c:04d}.nii.gz" for n in range(2) for c in range(4)),
        *(f"labelsTr/brain_{n:03d}.nii.gz" for n in range(2)),
        *(f"imagesTs/brain_007_{c:04d}.nii.gz" for c in range(4)),
        "labelsTs/brain_007.nii.gz",
    )
    about = {
        "channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"},
        "labels": {"background": 0, "edema": 1, "core": 2},
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(about))
    found = read(root)
    assert [r.path.name for r in found.records] == [
        "brain_000_0000.nii.gz", "brain_001_0000.nii.gz", "brain_007_0000.nii.gz"
    ]  # fmt: skip
    assert [r.split for r in found.records] == ["train", "train", "test"]
    assert all(r.mask and not r.sequences for r in found.records)
    assert "sequence t1 taken, and t1ce, t2, flair passed over" in found.notes[0]
    found = read(root, "FLAIR", "t1ce", "0002")
    record = found.records[0]
    assert [p.name[-11:-7] for p in (record.path, *record.sequences)] == ["0003", "0001", "0002"]
    assert found.classes == ("background", "edema", "core") and not found.notes


@pytest.mark.parametrize(
    "about",
    [
        {"labels": {"background": 0, "whole": [1, 2], "core": [2]}},
        {"labels": {"0": "background", "2": "liver"}},
        {"labels": {"0": "a", "1": "a"}},
    ],
)
def test_labels_that_are_no_classes_are_a_note(lay, about) -> None:
    root = lay("imagesTr/a.nii.gz", "labelsTr/a.nii.gz")
    (root / "dataset.json").write_text(json.dumps(about))
    found = read(root)
    assert not found.classes and "--data.classes" in found.notes[-1]


def test_damaged_descriptions_and_foreign_files(lay) -> None:
    root = lay("imagesTr/a.nii.gz", "labelsTr/a.nii.gz")
    for text, words in (
        ("{", "no json"),
        ("[]", "does not describe"),
        ('{"file_ending": ".nrrd"}', "convert them"),
    ):
        (root / "dataset.json").write_text(text)
        with pytest.raises(DataError, match=words):
            volume_sets.read(root, SourceConfig())


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/a.nii.gz", "labels/a.nii.gz"),
        ("images/a.nii", "masks/a.nii.gz"),
        ("images/a.npy", "segmentations/a.npy"),
        ("liver/a.nii.gz", "liver_labels/a.nii.gz"),
        ("images/a_image.nii.gz", "labels/a_label.nii.gz"),
        ("volume-0.nii", "segmentation-0.nii"),
        ("case_00000/imaging.nii.gz", "case_00000/segmentation.nii.gz"),
        ("BIDMC/Case00.nii.gz", "BIDMC/Case00_segmentation.nii.gz"),
        ("ct_1001_image.nii.gz", "ct_1001_label.nii.gz"),
        ("p1/FLAIR.nii.gz", "p1/mask.nii.gz"),
        ("a_t2w.nii.gz", "a_t2w_seg.nii.gz"),
        ("P7/P7_t1.nii.gz", "P7/P7_seg.nii.gz"),
    ],
)
def test_pairs_without_a_split(lay, image, mask) -> None:
    assert shown(read(lay(image, mask))) == [(image, mask, None)]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{}/images/a.nii.gz", "{}/labels/a.nii.gz"),
        ("images/{}/a.nii.gz", "labels/{}/a.nii.gz"),
        ("{}/a.nii.gz", "{}_labels/a.nii.gz"),
        ("{}/a.nii.gz", "{}/a_mask.nii.gz"),
        ("ct_{}/ct_1_image.nii.gz", "ct_{}/ct_1_label.nii.gz"),
    ],
)
def test_splits_are_words_of_folders(lay, image, mask) -> None:
    names = [name.format(split) for split in ("train", "valid", "test") for name in (image, mask)]
    found = read(lay(*names))
    assert sorted(r.split or "" for r in found.records) == ["test", "train", "val"]
    assert all(r.mask for r in found.records)
    for record in found.records:
        part = {"val": "valid"}.get(record.split or "", record.split)
        assert part in record.name and part in str(record.mask)
    assert len({record.patient for record in found.records}) == 3  # numbers start anew


def test_brats_channels_in_the_wanted_order(lay) -> None:
    studies = [f"BraTS20_Training_{n:03d}" for n in range(3)]
    kinds = ("flair", "t1", "t1ce", "t2", "seg")
    root = lay(*(f"{s}/{s}_{kind}.nii.gz" for s in studies for kind in kinds), "name_mapping.csv")
    found = read(root, "t1ce", "FLAIR", "t2")
    assert [r.patient for r in found.records] == studies and not found.notes
    record = found.records[1]
    ends = [p.name.split("_")[-1] for p in (record.path, *record.sequences)]
    assert ends == ["t1ce.nii.gz", "flair.nii.gz", "t2.nii.gz"]
    assert record.mask == root / studies[1] / f"{studies[1]}_seg.nii.gz"
    assert {r.split for r in found.records} == {None}  # the word is the study's own
    plain = read(root)
    assert [r.path.name for r in plain.records] == [f"{s}_flair.nii.gz" for s in studies]
    assert "t1, t1ce, t2 passed over" in plain.notes[0]
    (root / studies[2] / f"{studies[2]}_t1ce.nii.gz").unlink()
    fewer = read(root, "t1ce", "t2")
    assert len(fewer.records) == 2
    assert fewer.notes == ["1 volume left out, without one of the sequences t1ce, t2"]
    assert len(read(root).records) == 3


def test_brats_2023_and_train_folders(lay) -> None:
    def study(part: str, name: str, *kinds: str) -> list[str]:
        return [f"{part}/{name}/{name}-{kind}.nii.gz" for kind in kinds]

    kinds = ("t1c", "t1n", "t2f", "t2w")
    root = lay(
        *study("TrainingData", "BraTS-GLI-00000-000", *kinds, "seg"),
        *study("ValidationData", "BraTS-GLI-00001-000", *kinds),
        *study("TestData", "BraTS-GLI-00002-000", *kinds),
    )
    found = read(root, "t2f", "t1c")
    assert [(r.split, bool(r.mask)) for r in found.records] == [("test", False), ("train", True)]
    record = found.records[1]
    assert record.path.name.endswith("-t2f.nii.gz")
    assert [p.name for p in record.sequences] == ["BraTS-GLI-00000-000-t1c.nii.gz"]
    assert "1 volume left out, without a mask" in found.notes
    assert not any("GLI" in note for note in found.notes)


def test_mmwhs_has_images_and_labels_side_by_side(lay) -> None:
    root = lay(
        *(f"{m}_train/{m}_train_1001_{k}.nii.gz" for m in ("ct", "mr") for k in ("image", "label")),
        "ct_test/ct_test_2001_image.nii.gz",
    )
    found = read(root)
    assert [(r.split, bool(r.mask)) for r in found.records] == [
        ("test", False), ("train", True), ("train", True)
    ]  # fmt: skip
    assert [r.patient for r in found.records] == [
        "test/ct/ct_test_2001", "train/ct/ct_train_1001", "train/mr/mr_train_1001"
    ]  # fmt: skip


def test_sites_may_use_the_same_numbers(lay) -> None:
    names = [f"{s}/Case00{end}.nii.gz" for s in ("BMC", "HK") for end in ("", "_segmentation")]
    found = read(lay(*names))
    assert [r.patient for r in found.records] == ["BMC/Case00", "HK/Case00"]
    assert all(r.mask and r.mask.parent == r.path.parent for r in found.records)


def test_what_does_not_fit_is_counted(lay) -> None:
    root = lay(
        "images/a.nii.gz", "labels/a.nii.gz", "images/b.nii.gz", "labels/c.nii.gz",
        "images/d.nii.gz", "images/d.nii", "labels/d.nii.gz", "images/e.nii.gz", "labels/e.nii.gz",
        "labels/e_seg.nii.gz", "images/f.mha", "labels/f.mha",
    )  # fmt: skip
    found = read(root)
    assert only(found).name == "images/a.nii.gz"
    assert found.notes == [
        "1 volume left out, without a mask",
        "1 volume left out, with two files of one name",
        "1 volume left out, with several masks",
        "1 mask left out, without a volume",
        "2 files of kinds that are not read: convert to .nii.gz",
    ]


def test_other_sets_are_not_taken(lay) -> None:
    root = lay("images/a.png", "masks/a.png", "x.csv")
    assert not volume_sets.detect(root)
    lay("scans/b.nii.gz")
    assert not volume_sets.detect(root)
    with pytest.raises(DataError, match=r"no volume with a mask \(1 volume left out"):
        volume_sets.read(root, SourceConfig())
    with pytest.raises(ConfigError, match="up to 3, each once"):
        volume_sets.read(root, SourceConfig(sequences=["a", "b", "c", "d"]))
    with pytest.raises(ConfigError, match="up to 3, each once"):
        volume_sets.read(root, SourceConfig(sequences=["t1", "T1"]))
