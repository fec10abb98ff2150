"""Reports of training and evaluation: curves, tables, confusion, the worst images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from crossband.infrared.data.crops import Frames
from crossband.infrared.data.layouts import Item
from crossband.infrared.scoring import EXPLANATION, SMALL_EXPLANATION, Outcome, score, worst
from crossband.infrared.segment import Segmenter, overlay
from crossband.shared.cli.output import format_table, print_json
from crossband.shared.reports.html import Report
from crossband.shared.training.callbacks import RunBook
from crossband.shared.training.run_folder import RunFolder

if TYPE_CHECKING:
    from crossband.infrared.config import TrainConfig, WindowConfig
    from crossband.infrared.training import Material

_SHOWN = 8


def write_training_report(
    config: TrainConfig, folder: RunFolder, material: Material, book: RunBook
) -> None:
    """Score the best weights on the validation images; write metrics.json and report.html."""
    segmenter = Segmenter.load(folder.best, device=config.device, precision=config.precision)
    small = len(material.classes) == 2
    outcome = score(segmenter, material.val, material.frames, config.window, small_targets=small)
    protocol = segmenter.config["protocol"] | {"split": config.data.val, "minutes": minutes(book)}
    results = {
        "protocol": protocol | {"explanation": _explanation(outcome)},
        "best": book.best,
        "validation": outcome.summary(segmenter.classes),
        "history": book.history,
    }
    folder.write_results(results)
    report = Report(f"Training: {config.model}", protocol_text(protocol))
    report.heading("Validation images, best weights")
    add_scores(report, outcome, segmenter.classes)
    report.heading("Curves")
    report.figure(curves(book.history), f"best epoch {book.best['epoch']}")
    add_pictures(report, segmenter, outcome, material.val, material.frames, config.window, _SHOWN)
    report.write(folder.report)
    if config.json:
        print_json({"weights": str(folder.best), **results})
        return
    print(score_table(outcome, segmenter.classes))
    print(f"weights: {folder.best}\nreport: {folder.report}")


def minutes(book: RunBook) -> float:
    """Return the minutes of training."""
    return round(book.seconds / 60, 2)


def protocol_text(protocol: dict[str, Any]) -> str:
    """Return a protocol as one line."""
    return "; ".join(f"{name}: {value}" for name, value in protocol.items() if name != "sha256")


def score_table(outcome: Outcome, classes: Sequence[str]) -> str:
    """Return the scores as a table for a terminal, in percent."""
    rows = [tuple(row.values()) for row in class_rows(outcome, classes)]
    text = format_table(("class", "IoU", "accuracy", "precision", "F-score"), rows)
    return f"{text}\n{headline(outcome)}"


def headline(outcome: Outcome) -> str:
    """Return the scores of the whole set as one line."""
    names = {name: f"{100 * value:.2f} %" for name, value in outcome.scores.summary().items()}
    line = ", ".join(f"{name} {value}" for name, value in names.items())
    if outcome.small is not None:
        small = outcome.small
        line += (
            f"\nsmall targets: nIoU {100 * small['nIoU']:.2f} %, Pd {100 * small['Pd']:.2f} %, "
            f"Fa {1e6 * small['Fa']:.1f} per million pixels"
        )
    return line


def class_rows(outcome: Outcome, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row of percentages per class."""
    scores = outcome.scores
    columns = {
        "IoU": scores.iou,
        "accuracy": scores.accuracy,
        "precision": scores.precision,
        "F-score": scores.fscore,
    }
    return [
        {"class": name, **{title: _percent(float(v[i])) for title, v in columns.items()}}
        for i, name in enumerate(classes)
    ]


def add_scores(report: Report, outcome: Outcome, classes: Sequence[str]) -> None:
    """Add tables of scores, in percent, and the confusion matrix."""
    report.text(headline(outcome))
    report.table(class_rows(outcome, classes), f"In percent. {_explanation(outcome)}")
    report.figure(_confusion(outcome.scores.counts.numpy(), classes), "rows: true class")
    if outcome.problems:
        report.heading("Left out")
        for problem in outcome.problems:
            report.text(problem)


def add_pictures(
    report: Report,
    segmenter: Segmenter,
    outcome: Outcome,
    items: Sequence[Item],
    frames: Frames,
    window: WindowConfig,
    count: int,
) -> None:
    """Add the worst images: as they are, with the truth, with what was found."""
    by_name = {item.name: item for item in items}
    chosen = worst(outcome, count)
    if not chosen:
        return
    report.heading("Worst images")
    report.note("From left to right: the image, labels, predictions.")
    for name in chosen:
        pixels, label = frames.read(by_name[name])
        picture = panel(pixels, label, segmenter.predict(pixels, window), segmenter.palette)
        row = next(row for row in outcome.images if row["image"] == name)
        found = "" if outcome.small is None else f", IoU {row['iou']:.2f}"
        report.picture(png(picture), "png", f"{name}: {row['wrong pixels']} pixels wrong{found}")


def panel(
    pixels: np.ndarray, label: np.ndarray, found: np.ndarray, palette: np.ndarray
) -> np.ndarray:
    """Return RGB: an image, its labels, and what was found, side by side."""
    truth = label * (label != 255)
    parts = [overlay(pixels, ids, palette) for ids in (np.zeros_like(truth), truth, found)]
    gap = np.full((pixels.shape[0], 4, 3), 255, np.uint8)
    return np.hstack([parts[0], gap, parts[1], gap, parts[2]])


def png(pixels: np.ndarray) -> bytes:
    """Return an RGB picture as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def curves(history: Sequence[dict[str, float]]) -> Figure:
    """Draw losses and validation scores by epoch."""
    figure = Figure(figsize=(9, 3))
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for name in ("train_loss", "val_loss"):
        left.plot(epochs, [row[name] for row in history], marker=".", label=name)
    for name in ("val_miou", "val_iou"):
        right.plot(epochs, [row[name] for row in history], marker=".", label=name)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.legend()
        axes.grid(alpha=0.3)
    figure.tight_layout()
    return figure


def _confusion(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(3.0, 0.45 * len(classes))
    figure = Figure(figsize=(side + 1.5, side))
    axes = figure.subplots()
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for row, column in np.ndindex(*shares.shape):
        value = shares[row, column]
        if value >= 0.005:
            colour = "white" if value > 0.5 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, c=colour)
    return figure


def _explanation(outcome: Outcome) -> str:
    return EXPLANATION + (f" {SMALL_EXPLANATION}" if outcome.small is not None else "")


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f}"
