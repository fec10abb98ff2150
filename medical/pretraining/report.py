"""The report of a pre-training run: curves, protocol, and what the network draws or is shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from crossband.medical.jobs import NOT_A_DEVICE
from crossband.medical.pretraining.config import PretrainConfig
from crossband.medical.pretraining.encoders import ENCODER_FILE, plain_keys
from crossband.shared.checkpoints import save_checkpoint
from crossband.shared.cli.output import print_json
from crossband.shared.pretraining.mae import MAETask
from crossband.shared.reports.figures import curves, rows_of_images
from crossband.shared.reports.html import Report
from crossband.shared.reports.reconstructions import reconstructions
from crossband.shared.tasks.base import Task
from crossband.shared.training.callbacks import RunBook
from crossband.shared.training.run_folder import RunFolder

_SHOWN = 4
_GRAPH_COLUMNS = ("epoch", "train_loss", "val_loss", "val_matched", "val_energy", "val_gap")


def write_report(
    config: PretrainConfig,
    folder: RunFolder,
    task: MAETask,
    val: Dataset,
    description: dict[str, Any],
    book: RunBook,
) -> None:
    """Write metrics.json and report.html of masked images; print where they are.

    Args:
        config: Options of the run.
        folder: Of the run.
        task: With the final weights.
        val: Images that were held back.
        description: Of the checkpoint.
        book: History of the run.
    """
    outcome = _outcome(description, book)
    folder.write_results(outcome)
    report = Report(f"Pre-training: {config.method}", _protocol_text(description))
    report.note(NOT_A_DEVICE)
    report.heading("Loss")
    report.figure(curves(book.history, unit="squared error of hidden patches"))
    report.heading("On images that were held back")
    image = torch.stack([val[place]["image"] for place in _places(val)])
    report.figure(*reconstructions(task.cpu().eval(), image, _grey))
    report.write(folder.report)
    _tell(config, folder, outcome)


def write_views_report(
    config: PretrainConfig,
    folder: RunFolder,
    task: Task,
    val: Dataset,
    description: dict[str, Any],
    book: RunBook,
) -> None:
    """Write encoder.safetensors, metrics.json and report.html of matched views.

    Args:
        config: Options of the run.
        folder: Of the run.
        task: With the final weights.
        val: Views of images that were held back.
        description: Of the checkpoint, with `skipped` and `notes`.
        book: History of the run.
    """
    last = book.history[-1]
    facts = {k: v for k, v in description.items() if k not in ("skipped", "notes")}
    backbone = plain_keys(task.model.backbone)
    save_checkpoint(folder.path / ENCODER_FILE, backbone, {**facts, "training": last})
    scores = {k.removeprefix("val_"): last[k] for k in _GRAPH_COLUMNS[3:] if k in last}
    outcome = scores | _outcome(description, book)
    folder.write_results(outcome)
    report = Report(f"Pre-training: {config.method}", _views_text(description))
    report.note(NOT_A_DEVICE)
    report.heading("Loss" + (" and share of images that found their other view" * bool(scores)))
    report.figure(curves(book.history, ("val_matched",) if scores else ()))
    if scores:
        rows = [{k: row[k] for k in _GRAPH_COLUMNS if k in row} for row in book.history]
        report.table(
            [rows[0], *rows[1:][-5:]],
            "First and last epochs. Energy: mean cost of a matching; gap: to its lower bound.",
        )
    report.heading("Images")
    modalities = description["protocol"]["modalities"]
    report.table([{"modality": name, **counts} for name, counts in modalities.items()])
    for sentence in (*(f"skipped: {s}" for s in description["skipped"]), *description["notes"]):
        report.note(sentence)
    report.heading("Views of images that were held back")
    items = [val[place] for place in _places(val)]
    views = [[_grey(v) for v in (*item["views"], *item.get("small", ()))] for item in items]
    large, small = len(items[0]["views"]), len(items[0].get("small", ()))
    report.figure(rows_of_images(views, [*["large"] * large, *["small"] * small]))
    report.write(folder.report)
    _tell(config, folder, outcome)


def _outcome(description: dict[str, Any], book: RunBook) -> dict[str, Any]:
    waiting = [row["waiting"] for row in book.history if "waiting" in row]
    return {
        **{k: v for k, v in description.items() if k != "task"},
        "minutes": round(book.seconds / 60, 2),
        "share_of_time_waiting_for_data": waiting[-1] if waiting else None,
        "history": book.history,
    }


def _tell(config: PretrainConfig, folder: RunFolder, outcome: dict[str, Any]) -> None:
    if config.json:
        print_json({"weights": str(folder.best), **outcome})
    else:
        print(f"weights: {folder.best}\nreport: {folder.report}")


def _places(val: Dataset) -> list[int]:
    """Return a few places, evenly apart."""
    length = len(val)  # type: ignore[arg-type]
    return torch.linspace(0, length - 1, min(_SHOWN, length)).round().long().tolist()


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


def _views_text(description: dict[str, Any]) -> str:
    protocol = description["protocol"]
    return (
        f"{description['model']['name']} on {protocol['images']['train']} images, large crops of "
        f"{protocol['size']} x {protocol['size']} pixels, batches of {protocol['batch_size']}; "
        f"{protocol['images']['val']} held back to validate on, {protocol['unreadable']} files "
        f"could not be read. Seed {protocol['seed']}. {protocol['machine']}."
    )
