"""COVIDx 9A (Wang et al., 2020): `train_COVIDx9A.txt`, `test_COVIDx9A.txt`, `train/`, `test/`.

A line is `patient_id filename class source`. The classes are exclusive; "positive" counts with
pneumonia, as in the paper's metric.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from crossband.medical.config import SourceConfig
from crossband.medical.data.records import Collection, Record, counted
from crossband.medical.data.tables import require_unique
from crossband.shared.errors import DataError

FINDINGS = ("normal", "pneumonia", "COVID-19")
_MEANT = {"normal": 0, "pneumonia": 1, "positive": 1, "covid-19": 2}


def detect(root: Path) -> bool:
    """Whether a folder holds it."""
    return bool(_lists(root))


def read(root: Path, config: SourceConfig) -> Collection:
    """Read its lists.

    Raises:
        DataError: a list that is missing or not as it should be.
    """
    lists = _lists(root)
    if not lists:
        raise DataError(
            f"{root} holds no train_COVIDx9A.txt or test_COVIDx9A.txt: give the folder of COVIDx, "
            "or another --data.layout."
        )
    records: list[Record] = []
    classes: Counter[str] = Counter()
    for split, path in lists.items():
        found = [
            _record(root, path, split, number, line, classes)
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
            if line.strip()
        ]
        require_unique([record.name for record in found], path.name, range(1, len(found) + 1))
        records += found
    merged = classes["positive"]
    notes = (
        [f"{counted(merged, 'image')} of class positive counted with pneumonia"] if merged else []
    )
    return Collection(root, "covidx", FINDINGS, True, records, notes)


def _lists(root: Path) -> dict[str, Path]:
    found = {split: sorted(root.glob(f"{split}*COVIDx*.txt")) for split in ("train", "val", "test")}
    return {split: paths[0] for split, paths in found.items() if paths}


def _record(
    root: Path, path: Path, split: str, number: int, line: str, classes: Counter[str]
) -> Record:
    words = line.split()
    if len(words) < 4 or words[-2].lower() not in _MEANT:
        raise DataError(
            f"{path} is not `patient filename class source`, with one of the classes "
            f"{', '.join(FINDINGS)}, in line {number}: the lists of COVIDx 9A are read here."
        )
    meant = words[-2].lower()
    classes[meant] += 1
    name = f"{split}/{' '.join(words[1:-2])}"
    labels = tuple(float(place == _MEANT[meant]) for place in range(len(FINDINGS)))
    return Record(root / name, name, patient=words[0], labels=labels, split=split)
