"""Reports of training and evaluation: curves, tables, confusion, the worst images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crossband.infrared.data.crops import Frames
from crossband.infrared.data.layouts import Item
from crossband.infrared.scoring import EXPLANATION, SMALL_EXPLANATION, Outcome, score, worst
from crossband.infrared.segment import Segmenter
from crossband.shared.cli.output import format_table, print_json
from crossband.shared.reports.figures import confusion, curves, panel, png
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
    report.figure(curves(book.history, ("val_miou", "val_iou")), f"best epoch {book.best['epoch']}")
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
    report.figure(confusion(outcome.scores.counts.numpy(), classes), "rows: true class")
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


def _explanation(outcome: Outcome) -> str:
    return EXPLANATION + (f" {SMALL_EXPLANATION}" if outcome.small is not None else "")


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f}"
