"""MIMIC-CXR-JPG 2.0.0 (Johnson et al., 2019): three csv files, plain or gzipped, and JPEG files.

    mimic-cxr-2.0.0-{split,metadata,chexpert}.csv.gz
    files_resized_320/p10/p10000032/s50414267/<dicom_id>.jpg          (or files/...)

Labels belong to a study and views to an image; all are joined by their keys, never by the order of
the rows. A blank label is absent where "No Finding" is 1, else unknown; uncertain ones (-1) are
unknown in the paper's way.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from crossband.medical.config import SourceConfig
from crossband.medical.data.records import Collection, Record, counted, normal_view
from crossband.medical.data.tables import Table, numbers, read_table, settle, split_name
from crossband.shared.errors import DataError

FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum"),
    *("Fracture", "Lung Lesion", "Lung Opacity", "Pleural Effusion", "Pleural Other"),
    *("Pneumonia", "Pneumothorax", "Support Devices"),
)
_FOLDERS = ("files_resized_320", "files")
_PAPER = {"": np.nan}


def detect(root: Path) -> bool:
    """Whether a folder holds it."""
    return _path(root, "split") is not None


def read(root: Path, config: SourceConfig) -> Collection:
    """Read its lists.

    Raises:
        DataError: a list that is missing or not as it should be.
    """
    split, metadata, chexpert = (_table(root, name) for name in ("split", "metadata", "chexpert"))
    labels, notes = _labels(chexpert, config.uncertain)
    views = dict(zip(metadata.column("dicom_id"), metadata.column("ViewPosition"), strict=True))
    split.require_unique("dicom_id")
    folder = next((root / name for name in _FOLDERS if (root / name).is_dir()), root / "files")
    records, without = [], 0
    columns = (split.column(name) for name in ("dicom_id", "subject_id", "study_id", "split"))
    for image, subject, study, word in zip(*columns, strict=True):
        row = labels.get((subject, study))
        if row is None:
            without += 1
            continue
        name = f"p{subject[:2]}/p{subject}/s{study}/{image}.jpg"
        records.append(
            Record(
                folder / name,
                name,
                patient=subject,
                labels=row,
                split=split_name(word, split.path.name),
                view=normal_view(views.get(image, "")),
            )
        )
    if without:
        notes.append(f"{counted(without, 'image')} left out, of studies without labels")
    return Collection(root, "mimic", FINDINGS, False, records, notes)


def _path(root: Path, name: str) -> Path | None:
    return next(iter(sorted(root.glob(f"mimic-cxr-2.*-{name}.csv*"))), None)


def _table(root: Path, name: str) -> Table:
    path = _path(root, name)
    if path is None:
        raise DataError(
            f"{root} holds no mimic-cxr-2.0.0-{name}.csv or .csv.gz: put the three lists of "
            "MIMIC-CXR-JPG (split, metadata, chexpert) there."
        )
    return read_table(path)


def _labels(table: Table, policy: str) -> tuple[dict[tuple[str, str], tuple[float, ...]], list]:
    """Return labels by (subject, study), and notes."""
    values = numbers(table, FINDINGS)
    healthy = numbers(table, ("No Finding",))[:, 0] == 1
    values = np.where(np.isnan(values) & healthy[:, None], np.float32(0), values)
    values, notes = settle(values, FINDINGS, policy, _PAPER)
    keys = zip(table.column("subject_id"), table.column("study_id"), strict=True)
    return dict(zip(keys, map(tuple, values.tolist()), strict=True)), notes
