"""NIH ChestX-ray14 (Wang et al., CVPR 2017): the official lists, or the csv and its lists.

Data_Entry_2017.csv (or ..._v2020.csv)     train_val_list.txt     test_list.txt
data_splits/chestxray/{train,val,test}_official.txt      # file, then 14 numbers
images/*.png, images_001/images/*.png ..., or *.png
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from crossband.medical.config import SourceConfig
from crossband.medical.data.records import Collection, Record, counted, normal_view
from crossband.medical.data.tables import (
    Files,
    Table,
    age_of,
    read_table,
    require_unique,
    sex_of,
    walk,
)
from crossband.shared.errors import DataError

FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"),
    *("Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening"),
    "Hernia",
)
_LISTS = "data_splits/chestxray"
_TABLES = "Data_Entry_2017*.csv"
# Lists of names, by the split that they are of; the first that exist are taken.
_NAMES = (
    {"train": "train_list*.txt", "val": "val_list*.txt", "test": "test_list*.txt"},
    {"train": "train_val_list*.txt", "test": "test_list*.txt"},
)


def detect(root: Path) -> bool:
    """Whether a folder holds it."""
    return bool(_official(root)) or any(root.glob(_TABLES))


def read(root: Path, config: SourceConfig) -> Collection:
    """Read its lists.

    Raises:
        DataError: a list or a csv that is not as it should be.
    """
    table = next((read_table(path) for path in sorted(root.glob(_TABLES))), None)
    about = _about(table) if table else {}
    lists = _official(root)
    if lists:
        rows = [row for split, path in lists.items() for row in _numbers(path, split)]
    elif table:
        rows = _from_table(root, table)
    else:
        raise DataError(
            f"{root} holds neither Data_Entry_2017.csv nor train_official.txt: give the folder of "
            "NIH ChestX-ray14, or another --data.layout."
        )
    require_unique([name for name, _, _ in rows], "the lists", range(1, len(rows) + 1))
    files = Files(root, walk(root))
    records = []
    for name, labels, split in rows:
        known = about.get(name, {"patient": name.partition("_")[0]})
        records.append(Record(files.find(name), name, labels=labels, split=split, **known))
    left = len(table.rows) - len(rows) if table else 0
    notes = (
        [f"{counted(left, 'image')} of the csv left out, in none of the lists"] if left > 0 else []
    )
    return Collection(root, "nih", FINDINGS, False, records, notes)


def _official(root: Path) -> dict[str, Path]:
    for folder in (root / _LISTS, root):
        found = {name: folder / f"{name}_official.txt" for name in ("train", "val", "test")}
        found = {name: path for name, path in found.items() if path.is_file()}
        if found:
            return found
    return {}


def _numbers(path: Path, split: str) -> list[tuple[str, tuple[float, ...], str]]:
    """Read `00000001_000.png 0 1 0 ...`."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 1 + len(FINDINGS) or set(words[1:]) - {"0", "1"}:
            raise DataError(
                f"{path} is not a file name and {len(FINDINGS)} numbers of 0 or 1 in line "
                f"{number}: take the official list again."
            )
        rows.append((words[0], tuple(map(float, words[1:])), split))
    return rows


def _from_table(root: Path, table: Table) -> list[tuple[str, tuple[float, ...], str | None]]:
    names = table.column("Image Index")
    splits = _splits(root)
    rows = []
    for place, (name, cell) in enumerate(zip(names, table.column("Finding Labels"), strict=True)):
        labels = np.zeros(len(FINDINGS))
        for finding in cell.split("|"):
            if finding in FINDINGS:
                labels[FINDINGS.index(finding)] = 1
            elif finding != "No Finding":
                raise DataError(
                    f"{table.path.name} has the finding {finding[:30]!r} in line "
                    f"{table.lines[place]}: NIH ChestX-ray14 has {', '.join(FINDINGS)}."
                )
        rows.append((name, tuple(labels.tolist()), splits.get(name)))
    return [row for row in rows if row[2] is not None] if splits else rows


def _splits(root: Path) -> dict[str, str]:
    for patterns in _NAMES:
        paths = {split: sorted(root.glob(pattern)) for split, pattern in patterns.items()}
        if not paths["train"]:
            continue
        return {
            name: split
            for split, found in paths.items()
            for path in found
            for name in path.read_text(encoding="utf-8").split()
        }
    return {}


def _about(table: Table) -> dict[str, dict]:
    sex = next((name for name in ("Patient Gender", "Patient Sex") if name in table.header), None)
    columns = (
        table.column("Image Index"),
        table.column("Patient ID"),
        table.column("View Position"),
        table.column("Patient Age"),
        table.column(sex) if sex else [""] * len(table.rows),
    )
    return {
        name: {
            "patient": patient,
            "view": normal_view(view),
            "age": age_of(age),
            "sex": sex_of(gender),
        }
        for name, patient, view, age, gender in zip(*columns, strict=True)
    }
