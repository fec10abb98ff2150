"""What our bundles build besides MONAI's parts: a table, a loss and a score for labels.

A stranger's configuration may build these with any arguments, so nothing here takes code, reads a
file or writes anywhere but to `output_dir`.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.metrics import EpochMetric
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.files import atomic_path
from crossband.shared.metrics.ranking import auroc

TABLE = "predictions.csv"


class PredictionTable:
    """Writes predictions.csv: an image per row, a column per class; for `ClassificationSaver`.

    Args:
        classes: Names of the columns.
        output_dir: Folder of the file.
    """

    def __init__(self, classes: Sequence[str], output_dir: str) -> None:
        """Start empty."""
        self.classes, self.folder = list(classes), Path(output_dir)
        self.rows: list[tuple[str, list[float]]] = []

    def save_batch(self, batch_data: Tensor, meta_data: dict[str, Any] | None = None) -> None:
        """Take probabilities (B, K) and the names of their images."""
        rows = torch.as_tensor(batch_data).detach().cpu().flatten(1).tolist()
        names = (meta_data or {}).get("filename_or_obj") or range(len(rows))
        self.rows += [(str(name), row) for name, row in zip(names, rows, strict=True)]

    def finalize(self) -> None:
        """Write the file."""
        with atomic_path(self.folder / TABLE) as temporary:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                table = csv.writer(file, lineterminator="\n")
                table.writerow(["image", *self.classes])
                table.writerows([name, *(f"{x:.7g}" for x in row)] for name, row in self.rows)
        self.rows = []


class KnownLabelsLoss(nn.Module):
    """Binary cross-entropy of logits, averaged over the labels that are not NaN."""

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the loss of logits (B, K) against labels (B, K) of 0, 1 or NaN."""
        known = ~label.isnan()
        each = F.binary_cross_entropy_with_logits(logits, label.nan_to_num(0.0), reduction="none")
        return (each * known).sum() / known.sum().clamp(min=1)


class MeanAUROC(EpochMetric):
    """Area under the ROC curve, averaged over the classes of which both values are there.

    0.5 if there is no such class.

    Args:
        output_transform: To probabilities (K,) and labels, (K,) with NaN for unknown or class ids.
    """

    def __init__(self, output_transform: Any = lambda x: x) -> None:
        """Choose the function that is computed at the end of an epoch."""
        super().__init__(mean_auroc, output_transform, check_compute_fn=False)

    def update(self, output: Sequence[Any]) -> None:
        """Take a batch."""
        pred, label = (torch.stack([torch.as_tensor(item) for item in part]) for part in output)
        if label.ndim == 1 or label.shape[1] == 1 < pred.shape[1]:
            label = F.one_hot(label.flatten().long(), pred.shape[1])
        super().update((pred.detach().cpu().float(), label.detach().cpu().float()))


def mean_auroc(pred: Tensor, label: Tensor) -> float:
    """Return the mean over columns of (N, K); 0.5 where no column has both values."""
    each = [auroc(p, y) for p, y in zip(pred.numpy().T, label.numpy().T, strict=True)]
    return 0.5 if np.isnan(each).all() else float(np.nanmean(each))
