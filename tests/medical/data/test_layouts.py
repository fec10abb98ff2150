from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crossband.medical.config import SourceConfig
from crossband.medical.data import chexpert, mimic
from crossband.medical.data.layouts import find
from crossband.medical.data.nih import FINDINGS
from crossband.medical.data.records import Collection, label_matrix, normal_view
from crossband.medical.data.tables import age_of, settle
from crossband.shared.errors import ConfigError, DataError

Put = Callable[..., Path]
nan = float("nan")


def look(root: Path, **options: object) -> Collection:
    return find(SourceConfig(root=[str(root)], **options))[0]  # type: ignore[arg-type]


def put_nih(put: Put, header: str = "Patient Gender") -> None:
    put(
        "Data_Entry_2017.csv",
        f"Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,{header},View Position\n"
        "00000001_000.png,Cardiomegaly|Emphysema,0,1,058Y,M,PA\n"
        "00000001_001.png,No Finding,1,1,414,M,AP\n"
        "00000002_000.png,Hernia,0,2,81,F,PA\n",
    )
    for folder, name in (("images", "1_000"), ("images_002/images", "1_001"), (".", "2_000")):
        put(f"{folder}/0000000{name}.png")


@pytest.mark.parametrize("header", ["Patient Gender", "Patient Sex"])
def test_nih_from_its_csv_and_lists(put: Put, tmp_path: Path, header: str) -> None:
    put_nih(put, header)
    put("train_val_list.txt", "00000001_000.png\n00000001_001.png\n")
    put("test_list.txt", "00000002_000.png\n")
    found = look(tmp_path)
    assert (found.layout, found.findings, found.exclusive) == ("nih", FINDINGS, False)
    first, second, third = found.records
    assert [FINDINGS[i] for i in np.flatnonzero(first.labels)] == ["Cardiomegaly", "Emphysema"]
    assert not any(second.labels) and third.labels[-1] == 1
    assert [r.split for r in found.records] == ["train", "train", "test"]
    assert [r.patient for r in found.records] == ["1", "1", "2"]
    assert [r.age for r in found.records] == [58, None, 81]  # 414 years are a slip
    assert [(r.sex, r.view) for r in found.records] == [("M", "PA"), ("M", "AP"), ("F", "PA")]
    assert first.path == tmp_path / "images/00000001_000.png"
    assert second.path == tmp_path / "images_002/images/00000001_001.png"


def test_nih_by_the_official_lists(put: Put, tmp_path: Path) -> None:
    put_nih(put)
    zeros = ["0"] * 14
    for split, name, place in (("train", "1_000", 1), ("val", "1_001", 2), ("test", "2_000", 13)):
        numbers = " ".join([*zeros[:place], "1", *zeros[place + 1 :]])
        put(f"data_splits/chestxray/{split}_official.txt", f"0000000{name}.png {numbers}\n")
    found = look(tmp_path)
    assert [r.split for r in found.records] == ["train", "val", "test"]
    assert [int(np.flatnonzero(r.labels)[0]) for r in found.records] == [1, 2, 13]
    assert found.records[0].age == 58
    (tmp_path / "Data_Entry_2017.csv").unlink()
    assert [r.patient for r in look(tmp_path).records] == ["00000001", "00000001", "00000002"]
    put("data_splits/chestxray/val_official.txt", "00000001_001.png 0 1 2\n")
    with pytest.raises(DataError, match="line 1"):
        look(tmp_path)


def test_nih_refuses_unknown_findings_and_images_named_twice(put: Put, tmp_path: Path) -> None:
    put_nih(put)
    table = tmp_path / "Data_Entry_2017.csv"
    text = table.read_text()
    table.write_text(text.replace("Hernia", "Hernie"))
    with pytest.raises(DataError, match="'Hernie' in line 4"):
        look(tmp_path)
    table.write_text(text + text.splitlines()[1] + "\n")
    with pytest.raises(DataError, match="a second time"):
        look(tmp_path)


CHEXPERT = ",".join(("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *chexpert.FINDINGS))
# Edema is column 5, Consolidation 6, Atelectasis 8.
UNCERTAIN = "1.0,,0.0,,,-1.0,-1.0,,-1.0,,1.0,,,"


def put_chexpert(put: Put) -> None:
    rows = [
        "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,",
        "CheXpert-v1.0-small/train/patient00001/study1/view2_lateral.jpg,Female,68,Lateral,,",
    ]
    put("train.csv", "\n".join([CHEXPERT, *(row + UNCERTAIN for row in rows)]) + "\n")
    row = "CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,PA,"
    put("valid.csv", f"{CHEXPERT}\n{row}{','.join(['0.0'] * 14)}\n")
    for name in ("view1_frontal", "view2_lateral"):
        put(f"train/patient00001/study1/{name}.jpg")
    put("valid/patient64541/study1/view1_frontal.jpg")


@pytest.mark.parametrize(
    ("policy", "edema", "consolidation"),
    [("ones", 1, 1), ("zeros", 0, 0), ("ignore", nan, nan), ("paper", 1, 0)],
)
def test_chexpert_and_its_uncertain_labels(
    put: Put, tmp_path: Path, policy: str, edema: float, consolidation: float
) -> None:
    put_chexpert(put)
    found = look(tmp_path, uncertain=policy)
    assert found.layout == "chexpert" and len(found.records) == 2
    assert found.notes[-1] == "1 lateral view left out"
    first = dict(zip(found.findings, found.records[0].labels, strict=True))
    got = [first[n] for n in ("Edema", "Atelectasis", "Consolidation", "Pleural Effusion")]
    np.testing.assert_array_equal(got, [edema, edema, consolidation, 1])
    assert first["Lung Lesion"] == 0  # blank is absent
    assert [(r.split, r.patient, r.sex, r.age, r.view) for r in found.records] == [
        ("train", "patient00001", "F", 68, "AP"),
        ("val", "patient64541", "M", 73, "PA"),
    ]
    five = ["Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion"]
    assert look(tmp_path, labels=five).findings == tuple(five)
    both = look(tmp_path, views=["AP", "PA", "lateral"])
    assert [r.view for r in both.records] == ["AP", "LATERAL", "PA"]


def test_chexpert_in_the_folder_above(put: Put, tmp_path: Path) -> None:
    put_chexpert(lambda name, text=None: put(f"CheXpert-v1.0-small/{name}", text))
    assert look(tmp_path).layout == "chexpert"


def put_mimic(put: Put) -> None:
    findings = sorted([*mimic.FINDINGS, "No Finding"])
    first = {"Edema": "1.0", "Pneumonia": "-1.0", "Fracture": "0.0"}
    second = {"No Finding": "1.0"}
    rows = {("10000032", "2"): first, ("10000032", "1"): second}
    put(
        "mimic-cxr-2.0.0-chexpert.csv",
        "subject_id,study_id,"
        + ",".join(findings)
        + "\n"
        + "".join(
            f"{','.join(key)},{','.join(row.get(name, '') for name in findings)}\n"
            for key, row in rows.items()
        ),
    )
    # Neither list has the order of the others.
    put(
        "mimic-cxr-2.0.0-metadata.csv",
        "dicom_id,subject_id,study_id,ViewPosition\nccc,10000032,2,LATERAL\n"
        "bbb,10000032,1,AP\naaa,10000032,2,PA\n",
    )
    put(
        "mimic-cxr-2.0.0-split.csv",
        "dicom_id,study_id,subject_id,split\naaa,2,10000032,train\nbbb,1,10000032,validate\n"
        "ccc,2,10000032,train\nddd,3,10000032,test\n",
    )
    for study, image in ((2, "aaa"), (1, "bbb"), (2, "ccc"), (3, "ddd")):
        put(f"files_resized_320/p10/p10000032/s{study}/{image}.jpg")


@pytest.mark.parametrize("packed", [False, True])
def test_mimic_joins_by_keys(put: Put, tmp_path: Path, packed: bool) -> None:
    put_mimic(put)
    if packed:
        for path in tmp_path.glob("*.csv"):
            path.with_suffix(".csv.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    found = look(tmp_path)
    assert found.layout == "mimic" and len(found.findings) == 13
    assert list(found.findings) == sorted(found.findings)
    assert [(r.path.stem, r.view, r.split) for r in found.records] == [
        ("aaa", "PA", "train"),
        ("bbb", "AP", "val"),
    ]
    first = dict(zip(found.findings, found.records[0].labels, strict=True))
    assert first["Edema"] == 1 and first["Fracture"] == 0
    assert np.isnan(first["Pneumonia"]) and np.isnan(first["Atelectasis"])
    assert not any(found.records[1].labels)  # "No Finding": blanks are absent
    assert "1 image left out, of studies without labels" in found.notes
    ones = look(tmp_path, uncertain="ones")
    assert ones.records[0].labels[ones.findings.index("Pneumonia")] == 1


def test_covidx_has_three_classes(put: Put, tmp_path: Path) -> None:
    put(
        "train_COVIDx9A.txt",
        "1 a (1).png normal rsna\n2 b.png positive x\n3 c.png pneumonia rsna\n",
    )
    put("test_COVIDx9A.txt", "4 d.png COVID-19 cohen\n")
    for name in ("train/a (1).png", "train/b.png", "train/c.png", "test/d.png"):
        put(name)
    found = look(tmp_path)
    assert found.exclusive and found.findings == ("normal", "pneumonia", "COVID-19")
    np.testing.assert_array_equal(label_matrix(found.records).argmax(1), [0, 1, 1, 2])
    assert "1 image of class positive" in found.notes[0]
    put("test_COVIDx9A.txt", "4 d.png negative cohen\n")
    with pytest.raises(DataError, match="line 1"):
        look(tmp_path)


CSV = "File;Patient-ID;Gender;Age;Years;View;Nodule;Mass;Note;lung_mask\n"


def put_csv(put: Put, text: str = "") -> Path:
    for name in ("images/a.png", "images/b.png", "other/c.png", "m/a.png"):
        put(name)
    return put(
        "labels.csv",
        text
        or CSV
        + "images/a.png;P1;female;40;41;PA;1;0;x;m/a.png\nb;P1;M;50;51;ap;;-1;y;\n"
        + "c.png;P2;;;;Lateral;0;1.0;;m/none.png\n",
    )


def test_a_csv_of_ones_own(put: Put, tmp_path: Path) -> None:
    put_csv(put)
    found = look(tmp_path, views=["PA", "AP", "LATERAL"])
    assert (found.layout, found.findings) == ("csv", ("Nodule", "Mass"))
    np.testing.assert_array_equal(label_matrix(found.records), [[1, 0], [nan, 0], [0, 1]])
    assert [r.path.name for r in found.records] == ["a.png", "b.png", "c.png"]
    assert [(r.patient, r.sex, r.age, r.view) for r in found.records] == [
        ("P1", "F", 40, "PA"),
        ("P1", "M", 50, "AP"),
        ("P2", None, None, "LATERAL"),
    ]
    assert [r.mask for r in found.records] == [tmp_path / "m/a.png", None, None]
    assert "1 mask left out, listed but not there" in found.notes
    assert "1 uncertain label (-1) settled as the paper does" in found.notes
    passed = next(note for note in found.notes if "passed over" in note)
    assert passed.startswith("2 columns passed over (Years, ")
    assert look(tmp_path).notes[-1] == "1 lateral view left out"
    older = look(tmp_path, columns={"age": "Years"}, labels=["Mass"])
    assert older.records[0].age == 41 and older.records[0].labels == (0.0,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A,Nodule\n1,0\n", "no column of image files"),
        ("image,Nodule\nimages/a.png,0\nimages/b.png,1\nimages/a.png,1\n", r"lines 2 and 4"),
        ("image,split,Nodule\nimages/a.png,training,0\nb,late,1\n", "'late'"),
        ("image,Nodule\nimages/a.png,0,1\n", "3 cells in line 2"),
        ("image,Nodule,Nodule\nimages/a.png,0,1\n", "two columns"),
        ("image,Nodule\n", "no rows"),
        ("image,Nodule\nimages/z.png,0\n", "none of 1 image"),
        ("image,Nodule\nimages/b.png,0\nb,1\n", "1 file a second time"),
    ],
)
def test_tables_that_cannot_be_used(put: Put, tmp_path: Path, text: str, words: str) -> None:
    put_csv(put, text)
    with pytest.raises(DataError, match=words):
        look(tmp_path)


def test_cells_that_are_no_labels(put: Put, tmp_path: Path) -> None:
    put_csv(put, "image,Nodule,Size\nimages/a.png,0,3\nb,1,9\n")
    assert look(tmp_path).findings == ("Nodule",)
    with pytest.raises(DataError, match=r"'3' in line 2, column 'Size': labels are 1, 0, -1"):
        look(tmp_path, labels=["Nodule", "Size"])


def test_options_that_name_nothing(put: Put, tmp_path: Path) -> None:
    put_csv(put)
    with pytest.raises(ConfigError, match="Did you mean 'Nodule'"):
        look(tmp_path, labels=["Nodul"])
    with pytest.raises(ConfigError, match="Did you mean 'patient'"):
        look(tmp_path, columns={"patients": "Note"})
    with pytest.raises(DataError, match="Did you mean 'Years'"):
        look(tmp_path, columns={"age": "Year"})
    with pytest.raises(DataError, match=r"no column 'Vew'"):
        look(tmp_path, target="Vew")
    with pytest.raises(DataError, match=r"--data\.table none\.csv"):
        look(tmp_path, table="none.csv")
    with pytest.raises(ConfigError, match="give it once"):
        find(SourceConfig(root=[str(tmp_path), str(tmp_path)]))
    with pytest.raises(ConfigError, match="every finding once"):
        look(tmp_path, labels=["Mass", "Mass"])
    with pytest.raises(DataError, match="does not exist"):
        look(tmp_path / "none")
    put("more.csv", "image\n")
    with pytest.raises(DataError, match=r"several csv files \(labels\.csv, more\.csv\)"):
        look(tmp_path)
    assert look(tmp_path, table="labels.csv").findings == ("Nodule", "Mass")


def test_names_of_patients_stay_out_of_messages(put: Put, tmp_path: Path) -> None:
    rows = "SecretPerson/a.png,SecretPerson,0\nSecretPerson/a.png,SecretPerson,1\n"
    put("labels.csv", "image,patient,Nodule\n" + rows)
    put("SecretPerson/a.png")
    with pytest.raises(DataError) as twice:
        look(tmp_path)
    put("Secret2/a.png")
    put("labels.csv", "image,patient,Nodule\na,SecretPerson,0\n")
    with pytest.raises(DataError, match="lies in 2 folders") as several:
        look(tmp_path)
    assert "Secret" not in str(twice.value) + str(several.value)


def test_a_column_of_classes(put: Put, tmp_path: Path) -> None:
    put_csv(put, "image,view,Kind\nimages/a.png,PA,up\nb,AP,down\nc,PA,\n")
    found = look(tmp_path, target="Kind")
    assert found.exclusive and found.findings == ("down", "up")
    assert [r.labels for r in found.records] == [(0.0, 1.0), (1.0, 0.0)]
    assert "1 image left out" in found.notes[0]
    assert look(tmp_path, target="Kind", labels=["up", "down"]).records[0].labels == (1.0, 0.0)
    assert look(tmp_path, target="view").findings == ("AP", "PA")
    with pytest.raises(ConfigError, match="'over'"):
        look(tmp_path, target="Kind", labels=["up", "over"])


def test_classes_of_a_known_layout(put: Put, tmp_path: Path) -> None:
    put_nih(put)
    found = look(tmp_path, target="view")
    assert found.exclusive and found.findings == ("AP", "PA")
    assert [r.labels for r in found.records] == [(0.0, 1.0), (1.0, 0.0), (0.0, 1.0)]
    with pytest.raises(ConfigError, match="view and sex"):
        look(tmp_path, target="age")


def test_nothing_but_files(put: Put, tmp_path: Path) -> None:
    for name in ("images/a.png", "images/b.png", "masks/a.png", ".hidden/c.png"):
        put(name)
    found = look(tmp_path)
    assert (found.layout, found.findings) == ("images", ())
    assert [(r.name, r.mask) for r in found.records] == [
        ("images/a.png", tmp_path / "masks/a.png"),
        ("images/b.png", None),
    ]
    put("more/a.png")
    with pytest.raises(DataError, match="one name in different folders"):
        look(tmp_path)
    with pytest.raises(DataError, match="holds no radiograph"):
        look(put("empty/readme.txt", "hello").parent)


def test_small_things() -> None:
    views = {"AP Supine": "AP SUPINE", "ll": "LATERAL", "postero-anterior": "PA", " ": None}
    assert {text: normal_view(text) for text in views} == views
    assert normal_view("left anterior oblique") == "LEFT ANTERIOR OBLIQUE"
    assert [age_of(text) for text in ("058Y", "12.5", "", "x", "414", "-1")] == [
        *(58.0, 12.5, None, None, None, None)
    ]
    labels = np.array([[-1, -1], [1, nan]], np.float32)
    settled, notes = settle(labels, ("Edema", "Mass"), "paper", chexpert.PAPER)
    np.testing.assert_array_equal(settled, [[1, 0], [1, nan]])
    assert labels[0, 0] == -1 and notes == ["2 uncertain labels (-1) settled as the paper does"]


def test_the_real_pack(shared_dir: Path) -> None:
    root = shared_dir / "data/medical/cxr"
    if not root.is_dir():
        pytest.skip("no pack of radiographs")
    found = look(root)
    assert len(found.records) == 499 and len(found.findings) == 18
    assert Counter(r.split for r in found.records) == {"train": 341, "val": 52, "test": 106}
    assert len({r.patient for r in found.records}) == 298
    assert sum(r.mask is not None for r in found.records) == 182
    sums = dict(zip(found.findings, label_matrix(found.records).sum(0), strict=True))
    assert (sums["Pneumonia"], sums["COVID-19"], sums["Chlamydophila"]) == (481, 400, 0)
    two = look(root, target="view", labels=["PA", "AP"])
    assert label_matrix(two.records).sum(0).tolist() == [288, 90]
