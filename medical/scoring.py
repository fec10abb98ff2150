"""Scores of findings: ranking with intervals, calibration, operating points, subgroups."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from crossband.medical.data.records import Record, label_matrix
from crossband.medical.privacy import Names, Store
from crossband.medical.reader import Reader
from crossband.shared.errors import DataError
from crossband.shared.metrics.calibration import brier, expected_calibration_error
from crossband.shared.metrics.ranking import (
    Interval,
    at_threshold,
    auroc_interval,
    average_precision,
    bootstrap,
    mean_auroc,
    operating_points,
)

EXPLANATION = (
    "AUROC and AUPRC per finding over the images whose label is known; intervals of 95 % from "
    "resampling patients (DeLong's where every image is of another patient). The mean is over "
    "findings that are both present and absent. ECE: expected calibration error over 15 bins of "
    "equal width, after the stored temperature. Centre crop, one view per image, no test-time "
    "augmentation."
)
AGES = ((0, 40), (40, 60), (60, 80), (80, 200))
_FEW = 5  # positives and negatives from which a subgroup's finding gets a row


@dataclass
class Readings:
    """What a network said of images.

    Attributes:
        records: Images that could be read.
        logits: (N, K), before the temperature.
        problems: Images that could not be read, and why.
    """

    records: list[Record]
    logits: np.ndarray
    problems: list[str] = field(default_factory=list)

    @property
    def labels(self) -> np.ndarray:
        """Labels, (N, K), NaN where not known."""
        return label_matrix(self.records)

    @property
    def groups(self) -> list[Hashable]:
        """Patient of each image; an image of nobody known is a group of its own."""
        return [
            ("image", number) if record.patient is None else record.patient
            for number, record in enumerate(self.records)
        ]


def read_all(
    reader: Reader,
    records: Sequence[Record],
    store: Store,
    names: Names,
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> Readings:
    """Run a network over images; a broken file is left out and listed.

    Raises:
        DataError: no image can be read.
    """
    kept: list[Record] = []
    problems: list[str] = []
    logits: list[np.ndarray] = []
    waiting: list[torch.Tensor] = []

    def flush() -> None:
        if waiting:
            logits.append(reader.logits(torch.stack(waiting)))
            waiting.clear()

    for done, record in enumerate(records, start=1):
        try:
            waiting.append(reader.prepare(store.read(record.path)))
            kept.append(record)
        except DataError as error:
            problems.append(names.error(error, record.path))
        if len(waiting) == batch_size:
            flush()
        if progress and sys.stderr.isatty():
            end = "\n" if done == len(records) else ""
            print(f"\r{done}/{len(records)} images", end=end, file=sys.stderr, flush=True)
    flush()
    if not kept:
        raise DataError(f"None of the {len(records)} images can be read: {problems[0]}")
    return Readings(kept, np.concatenate(logits), problems)


def score(
    reader: Reader, readings: Readings, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Return all scores of a set of images, as metrics.json holds them."""
    probability = reader.probabilities(readings.logits)
    labels, groups = readings.labels, readings.groups
    rows = []
    for k, name in enumerate(reader.findings):
        p, y = probability[:, k], labels[:, k]
        known = ~np.isnan(y)
        area = auroc_interval(p, y, groups, count=resamples, seed=seed)
        precision = bootstrap(average_precision, [p, y], groups, count=resamples, seed=seed)
        rows.append(
            {
                "finding": name,
                "images": int(known.sum()),
                "positives": int((y == 1).sum()),
                "auroc": _interval(area),
                "auprc": _interval(precision),
                "ece": expected_calibration_error(p, y),
                "brier": brier(p, y),
                "operating_point": at_threshold(p, y, reader.thresholds.get(name, 0.5)),
                "best_points_here": operating_points(p, y),
            }
        )
    mean = bootstrap(mean_auroc, [probability, labels], groups, count=resamples, seed=seed)
    found: dict[str, Any] = {"mean_auroc": _interval(mean), "findings": rows}
    if reader.exclusive:
        right = bootstrap(_accuracy, [probability, labels], groups, count=resamples, seed=seed)
        found["accuracy"] = _interval(right)
        classes = len(reader.findings)
        pairs = labels.argmax(1) * classes + probability.argmax(1)
        counts = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        found["confusion"] = counts.tolist()
        found["per_class"] = [
            {
                "class": name,
                "sensitivity": _share(counts[k, k], counts[k].sum()),
                "ppv": _share(counts[k, k], counts[:, k].sum()),
            }
            for k, name in enumerate(reader.findings)
        ]
    return found


def subgroups(
    reader: Reader, readings: Readings, *, resamples: int = 200, seed: int = 0
) -> list[dict[str, Any]]:
    """Return the mean AUROC, and that of each finding, by sex, age and view, where they are known.

    A finding is given where at least five images of a group have it and five have not.
    """
    probability, labels = reader.probabilities(readings.logits), readings.labels
    rows = []
    for attribute, of in (("sex", _sex), ("age", _age_band), ("view", _view)):
        values = [of(record) for record in readings.records]
        for value in sorted({v for v in values if v is not None}):
            inside = np.array([v == value for v in values])
            groups = [g for g, one in zip(readings.groups, inside, strict=True) if one]
            p, y = probability[inside], labels[inside]
            mean = bootstrap(mean_auroc, [p, y], groups, count=resamples, seed=seed)
            row: dict[str, Any] = {
                "group": f"{attribute} {value}",
                "images": int(inside.sum()),
                "mean_auroc": _interval(mean),
            }
            for k, name in enumerate(reader.findings):
                counts = [(y[:, k] == v).sum() for v in (0, 1)]
                if min(counts) >= _FEW:
                    area = auroc_interval(p[:, k], y[:, k], groups, count=resamples, seed=seed)
                    row[name] = _interval(area)
            rows.append(row)
    return rows


def text(interval: dict[str, float | None] | None) -> str:
    """Return an interval as words: 0.812 [0.79, 0.83]."""
    if interval is None or interval["value"] is None:
        return "-"
    if interval["low"] is None:
        return f"{interval['value']:.3f}"
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def finding_rows(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the table of findings."""
    return [
        {
            "finding": row["finding"],
            "positives": f"{row['positives']}/{row['images']}",
            "AUROC": text(row["auroc"]),
            "AUPRC": text(row["auprc"]),
            "ECE": _number(row["ece"]),
            "threshold": _number(row["operating_point"]["threshold"]),
            "sensitivity": _number(row["operating_point"]["sensitivity"]),
            "specificity": _number(row["operating_point"]["specificity"]),
        }
        for row in scores["findings"]
    ]


def _interval(found: Interval) -> dict[str, float | None]:
    return {name: None if np.isnan(v) else float(v) for name, v in found._asdict().items()}


def _number(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.3f}"


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _accuracy(probability: np.ndarray, labels: np.ndarray) -> float:
    return float((probability.argmax(1) == labels.argmax(1)).mean())


def _sex(record: Record) -> str | None:
    return record.sex


def _view(record: Record) -> str | None:
    return record.view


def _age_band(record: Record) -> str | None:
    if record.age is None:
        return None
    return next((f"{low}-{high}" for low, high in AGES if low <= record.age < high), None)
