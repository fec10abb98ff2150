"""What a run and an evaluation of masks leave: metrics.json, report.html, and words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossband.medical.cases import ImageCase, ScanCase
from crossband.medical.config import EvaluateConfig, TrainConfig
from crossband.medical.data.masks import MaskClasses
from crossband.medical.data.records import Record
from crossband.medical.jobs import NOT_A_DEVICE
from crossband.medical.mask_scores import public, scores_text, table_rows
from crossband.medical.privacy import Names
from crossband.medical.report import protocol_text
from crossband.shared.checkpoints import load_checkpoint, save_checkpoint
from crossband.shared.cli.output import print_json
from crossband.shared.errors import EXIT_PARTIAL
from crossband.shared.files import json_text, write_text
from crossband.shared.reports.figures import curves, panel, png
from crossband.shared.reports.html import Report
from crossband.shared.training.callbacks import RunBook
from crossband.shared.training.run_folder import RunFolder

_WORST = 6
_SIZE = (960, 320)  # of a picture in a report, pixels


@dataclass(frozen=True)
class Scored:
    """Scores of masks, and how to see their images again.

    Attributes:
        segmenter: What gave the masks: `predict` and `palette`, or what its cases need.
        scores: Of `mask_scores.score_masks`.
        classes: Of the masks.
        explanation: What the scores mean.
        again: Gives the cases of images, to show them.
        predictions: What stands in the last column of the pictures.
    """

    segmenter: Any
    scores: dict[str, Any]
    classes: MaskClasses
    explanation: str
    again: Callable[[Sequence[Record]], Iterable[ImageCase | ScanCase]]
    predictions: str = "predictions"


def evaluation_results(
    config: EvaluateConfig, out: Path, title: str, scored: Scored, protocol: dict[str, Any]
) -> int | None:
    """Write metrics.json and report.html; print the scores.

    Returns:
        None, or `EXIT_PARTIAL` if images were left out.
    """
    names, scores = Names(config.keep_ids), scored.scores
    results = {
        "protocol": protocol | {"explanation": scored.explanation},
        **public(scores, names),
    }
    write_text(out / "metrics.json", json_text(results) + "\n")
    report = Report(title, protocol_text(protocol))
    _add(report, scored, names)
    report.write(out / "report.html")
    if config.json:
        print_json(results)
    else:
        for problem in scores["left_out"]:
            print(f"left out: {problem}")
        print(scores_text(scores))
        if not config.quiet:
            if "boxes" in protocol:
                print(f"boxes: {protocol['boxes']}")
            print(NOT_A_DEVICE)
        print(f"report: {out / 'report.html'}")
    return EXIT_PARTIAL if scores["left_out"] else None


def training_results(
    config: TrainConfig,
    folder: RunFolder,
    book: RunBook,
    scored: Scored,
    curve: str,
    **protocol: Any,
) -> None:
    """Add the scores to the best weights; write metrics.json and report.html; print the scores.

    Args:
        config: Options of the run.
        folder: Of the run.
        book: Of the run.
        scored: On the images that chose the weights.
        curve: Column of the history to draw.
        protocol: What there is to say beyond the checkpoint's own protocol.
    """
    names, scores = Names(config.keep_ids), scored.scores
    checkpoint = load_checkpoint(folder.best)
    metrics = {f"{config.select_on}_mean_dice": scores["dice"]["value"]}
    save_checkpoint(folder.best, checkpoint.state_dict, checkpoint.config | {"metrics": metrics})
    minutes = round(book.seconds / 60, 2)
    whole = {"split": config.select_on, **protocol, "minutes": minutes}
    whole = checkpoint.config["protocol"] | whole
    results = {
        "headline": {"dice": scores["dice"]["value"]},
        "protocol": whole | {"explanation": scored.explanation},
        "best": book.best,
        config.select_on: public(scores, names),
        "history": book.history,
    }
    folder.write_results(results)
    report = Report(f"Training: {config.model}", protocol_text(whole))
    _add(report, scored, names)
    report.heading("Curves")
    report.figure(curves(book.history, (curve,)), f"best epoch {book.best['epoch']}")
    report.write(folder.report)
    if config.json:
        print_json({"weights": str(folder.best), **results})
    else:
        print(scores_text(scores))
        print(f"weights: {folder.best}\nreport: {folder.report}")


def _add(report: Report, scored: Scored, names: Names) -> None:
    """Add the table and the worst images."""
    report.note(NOT_A_DEVICE)
    report.table(table_rows(scored.scores), scored.explanation)
    for problem in scored.scores["left_out"]:
        report.text(f"Left out: {problem}")
    report.heading("Worst images")
    report.note(
        "From left to right: the image (of a volume the slice with most labels), labels, "
        f"{scored.predictions}."
    )
    rows = scored.scores["rows"]
    dice = {id(row["image"]): row["dice"] for row in rows}
    worst = sorted(rows, key=lambda row: _mean(row["dice"]))[:_WORST]
    for case in scored.again([row["image"] for row in worst]):
        record = case.record
        found, truth = case.found(scored.segmenter), case.truth(scored.classes)
        shown = Image.fromarray(panel(*case.shown(found, truth), scored.segmenter.palette))
        shown.thumbnail(_SIZE)
        values = ", ".join(
            f"{name} {'-' if np.isnan(value) else format(value, '.3f')}"
            for name, value in dice[id(record)].items()
        )
        caption = f"{names.image(record.path, record.name)}: Dice {values}"
        report.picture(png(np.asarray(shown)), "png", caption)


def _mean(dice: dict[str, float]) -> float:
    values = np.array(list(dice.values()))
    return float(np.nanmean(values)) if not np.isnan(values).all() else 1.0
