"""CheXpert (Irvin et al., AAAI 2019), small or full: `train.csv`, `valid.csv`, perhaps `test.csv`.

Blank labels are absent. Uncertain ones (-1) follow `--data.uncertain`; in the paper's mix they are
present for Edema and Atelectasis, absent for the other findings.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from crossband.medical.config import SourceConfig
from crossband.medical.data.records import FRONTAL, Collection, Record, normal_view
from crossband.medical.data.tables import Table, age_of, numbers, read_table, settle, sex_of
from crossband.shared.errors import DataError

FINDINGS = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion"),
    *("Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion"),
    *("Pleural Other", "Fracture", "Support Devices"),
)
PAPER = {"Edema": 1.0, "Atelectasis": 1.0, "": 0.0}
_LISTS = {"train": "train.csv", "val": "valid.csv", "test": "test.csv"}
_COLUMNS = ("Path", "Frontal/Lateral")


def detect(root: Path) -> bool:
    """Whether a folder, or the only one of its name inside, holds it."""
    return _home(root) is not None


def read(root: Path, config: SourceConfig) -> Collection:
    """Read its lists.

    Raises:
        DataError: a list that is not as it should be.
    """
    home = _home(root)
    if home is None:
        raise DataError(
            f"{root} holds no train.csv or valid.csv with the columns {' and '.join(_COLUMNS)}: "
            "give the folder of CheXpert, or another --data.layout."
        )
    records: list[Record] = []
    labels: list[np.ndarray] = []
    for split, name in _LISTS.items():
        if (home / name).is_file():
            table = read_table(home / name)
            table.require_unique("Path")
            labels.append(np.nan_to_num(numbers(table, FINDINGS)))
            records += _records(home, table, split)
    settled, notes = settle(np.concatenate(labels), FINDINGS, config.uncertain, PAPER)
    records = [
        Record(**{**vars(record), "labels": tuple(row)})
        for record, row in zip(records, settled.tolist(), strict=True)
    ]
    return Collection(root, "chexpert", FINDINGS, False, records, notes)


def _home(root: Path) -> Path | None:
    for folder in (root, *sorted(root.glob("CheXpert-v1.0*"))):
        for name in ("train.csv", "valid.csv"):
            path = folder / name
            if path.is_file() and all(word in _first_line(path) for word in _COLUMNS):
                return folder
    return None


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return file.readline()


def _records(home: Path, table: Table, split: str) -> list[Record]:
    blank = [""] * len(table.rows)
    sex, age, side, direction = (
        table.column(name) if name in table.header else blank
        for name in ("Sex", "Age", "Frontal/Lateral", "AP/PA")
    )
    records = []
    for place, written in enumerate(table.column("Path")):
        parts = PurePosixPath(written).parts
        parts = parts[1:] if parts and parts[0].startswith("CheXpert") else parts
        name = "/".join(parts)
        view = normal_view(direction[place])
        if side[place].lower() == "lateral":
            view = "LATERAL"
        elif view not in FRONTAL:  # a slip in one row of train.csv
            view = None
        records.append(
            Record(
                home / name,
                name,
                patient=next((part for part in parts if part.startswith("patient")), None),
                split=split,
                view=view,
                sex=sex_of(sex[place]),
                age=age_of(age[place]),
            )
        )
    return records
