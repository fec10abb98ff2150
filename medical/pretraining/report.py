"""The report of a pre-training run: curves, protocol, and what the network draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from crossband.medical.config import PretrainConfig
from crossband.medical.jobs import NOT_A_DEVICE
from crossband.shared.cli.output import print_json
from crossband.shared.pretraining.mae import MAETask
from crossband.shared.reports.figures import curves
from crossband.shared.reports.html import Report
from crossband.shared.reports.reconstructions import reconstructions
from crossband.shared.training.callbacks import RunBook
from crossband.shared.training.run_folder import RunFolder

_SHOWN = 4


def write_report(
    config: PretrainConfig,
    folder: RunFolder,
    task: MAETask,
    val: Dataset,
    description: dict[str, Any],
    book: RunBook,
) -> None:
    """Write metrics.json and report.html; print where they are.

    Args:
        config: Options of the run.
        folder: Of the run.
        task: With the final weights.
        val: Images that were held back.
        description: Of the checkpoint.
        book: History of the run.
    """
    facts = {k: v for k, v in description.items() if k != "task"}
    waiting = [row["waiting"] for row in book.history if "waiting" in row]
    outcome = {
        **facts,
        "minutes": round(book.seconds / 60, 2),
        "share_of_time_waiting_for_data": waiting[-1] if waiting else None,
        "history": book.history,
    }
    folder.write_results(outcome)
    report = Report(f"Pre-training: {config.method}", _protocol_text(description))
    report.note(NOT_A_DEVICE)
    report.heading("Loss")
    report.figure(curves(book.history, unit="squared error of hidden patches"))
    length = len(val)  # type: ignore[arg-type]
    places = torch.linspace(0, length - 1, min(_SHOWN, length)).round().long().tolist()
    report.heading("On images that were held back")
    image = torch.stack([val[place]["image"] for place in places])
    report.figure(*reconstructions(task.cpu().eval(), image, _grey))
    report.write(folder.report)
    if config.json:
        print_json({"weights": str(folder.best), **outcome})
    else:
        print(f"weights: {folder.best}\nreport: {folder.report}")


def _grey(image: Tensor) -> np.ndarray:
    """Return (H, W) in [0, 1]: from 2 deviations below to 2 above the mean."""
    return (image.float().mean(0) / 4 + 0.5).clamp(0, 1).numpy()


def _protocol_text(description: dict[str, Any]) -> str:
    protocol, model = description["protocol"], description["model"]
    sets = ", ".join(f"{name} {count}" for name, count in protocol["data_sets"].items())
    return (
        f"{model['name']} on {protocol['images']['train']} images ({sets}), of "
        f"{protocol['size']} x {protocol['size']} pixels, batches of {protocol['batch_size']}, "
        f"{protocol['mask_ratio']:.0%} masked; {protocol['images']['val']} held back to validate "
        f"on. Seed {protocol['seed']}. {protocol['machine']}."
    )
