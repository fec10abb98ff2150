"""Scores of masks that boxes ask for: boxes of the masks themselves, or those of a csv."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossband.medical.cases import ImageCase, fitted
from crossband.medical.config import EvaluateConfig, TrainConfig
from crossband.medical.data.masks import MaskClasses, read_mask
from crossband.medical.data.radiographs import RadiographStore
from crossband.medical.data.records import Record
from crossband.medical.jobs import NOT_A_DEVICE, reading
from crossband.medical.mask_scores import (
    Distances,
    explanation,
    public,
    score_masks,
    scores_text,
    table_rows,
)
from crossband.medical.privacy import NamedStore, Names
from crossband.medical.prompted.boxes import Boxes, BoxTable
from crossband.medical.prompted.frames import class_boxes
from crossband.medical.prompted.segmenter import PromptedSegmenter
from crossband.medical.report import protocol_text
from crossband.medical.segmentation import of_volumes, with_masks
from crossband.shared.checkpoints import load_checkpoint, save_checkpoint
from crossband.shared.cli.output import print_json
from crossband.shared.errors import EXIT_PARTIAL, ConfigError, DataError
from crossband.shared.files import json_text, write_text
from crossband.shared.reports.figures import curves, panel, png
from crossband.shared.reports.html import Report
from crossband.shared.training.callbacks import RunBook
from crossband.shared.training.run_folder import RunFolder

OF_MASKS = "of the masks themselves, exact: one around all that a class covers in an image"
_WORST = 6


@dataclass
class PromptedCase(ImageCase):
    """An image with its mask and its boxes.

    Attributes:
        classes: Of the mask.
        given: Boxes of a csv; None: those of the mask.
    """

    classes: MaskClasses = field(default_factory=MaskClasses)
    given: Boxes | None = None

    def found(self, segmenter: Any, batch_size: int = 8) -> np.ndarray:
        """Return class ids of what the boxes hold, uint8 (H, W).

        Raises:
            DataError: no image, no mask, no box, or a box that is none.
        """
        pixels = self.store.read(self.record.path)
        if self.given is None:
            truth = fitted(read_mask(self.record, self.classes), pixels.shape[:2])
            return segmenter.outline(pixels, *class_boxes(truth))
        if not len(self.given):
            raise DataError(f"{self.record.path} has no box: add one to --boxes.")
        return segmenter.outline(pixels, self.given.corners, self.given.kinds)


def evaluate(
    config: EvaluateConfig,
    segmenter: PromptedSegmenter,
    records: list[Record],
    protocol: dict[str, Any],
    out: Path,
) -> int | None:
    """Score masks; write metrics.json and report.html.

    Raises:
        ConfigError: volumes, or classes that cannot be.
        DataError: no masks, boxes that cannot be read, or nothing that can be scored.
    """
    names = Names(config.keep_ids)
    window = config.data.window or segmenter.config["reading"]["window"]
    raw = RadiographStore(0.0, window, config.data.shrink, segmenter.colours)
    records = with_masks(records, config.data.split)
    if of_volumes(records):
        raise ConfigError(f"{config.weights} outlines images, not volumes.")
    values = config.data.mask_values or segmenter.config["mask_values"]
    classes = MaskClasses.given(segmenter.classes, values)
    cases = _cases(records, NamedStore(raw, names), classes, config.boxes, names)
    distances = Distances(config.distances, config.tolerance)
    scores = score_masks(
        segmenter,  # type: ignore[arg-type]
        _told(cases, not config.quiet and not config.json),
        classes,
        names,
        distances=distances,
        resamples=config.bootstrap,
        seed=config.seed,
    )
    protocol |= {"images": len(scores["rows"]), "boxes": config.boxes or OF_MASKS}
    said = explanation(distances, False)
    results = {"protocol": protocol | {"explanation": said}, **public(scores, names)}
    write_text(out / "metrics.json", json_text(results) + "\n")
    report = Report("Evaluation: masks from boxes", protocol_text(protocol))
    _add(report, segmenter, scores, said, cases, names)
    report.write(out / "report.html")
    if config.json:
        print_json(results)
    else:
        for problem in scores["left_out"]:
            print(f"left out: {problem}")
        print(scores_text(scores))
        if not config.quiet:
            print(f"boxes: {protocol['boxes']}")
            print(NOT_A_DEVICE)
        print(f"report: {out / 'report.html'}")
    return EXIT_PARTIAL if scores["left_out"] else None


def finish(config: TrainConfig, folder: RunFolder, chosen: list[Record], book: RunBook) -> None:
    """Score the best weights of a run on the images that chose them; write results and report."""
    segmenter = PromptedSegmenter.load(
        folder.best, device=config.device, precision=config.precision
    )
    names = Names(config.keep_ids)
    classes = MaskClasses.given(segmenter.classes, segmenter.config["mask_values"])
    cases = _cases(chosen, reading(config), classes, None, names)
    talk = not config.quiet and not config.json
    scores = score_masks(segmenter, _told(cases, talk), classes, names)  # type: ignore[arg-type]
    checkpoint = load_checkpoint(folder.best)
    metrics = {f"{config.select_on}_mean_dice": scores["dice"]["value"]}
    save_checkpoint(folder.best, checkpoint.state_dict, checkpoint.config | {"metrics": metrics})
    protocol = segmenter.config["protocol"] | {
        "split": config.select_on,
        "boxes": OF_MASKS,
        "minutes": round(book.seconds / 60, 2),
    }
    said = explanation(Distances(False), False)
    results = {
        "headline": {"dice": scores["dice"]["value"]},
        "protocol": protocol | {"explanation": said},
        "best": book.best,
        config.select_on: public(scores, names),
        "history": book.history,
    }
    folder.write_results(results)
    report = Report(f"Training: {config.model}", protocol_text(protocol))
    _add(report, segmenter, scores, said, cases, names)
    report.heading("Curves")
    report.figure(curves(book.history, ("val_dice",)), f"best epoch {book.best['epoch']}")
    report.write(folder.report)
    if config.json:
        print_json({"weights": str(folder.best), **results})
    else:
        print(scores_text(scores))
        print(f"weights: {folder.best}\nreport: {folder.report}")


def _cases(
    records: Sequence[Record],
    store: NamedStore,
    classes: MaskClasses,
    boxes: str | None,
    names: Names,
) -> list[PromptedCase]:
    given: Sequence[Boxes | None] = [None] * len(records)
    if boxes:
        table = BoxTable.read(boxes, classes.names)
        given, _ = table.assign([(record.path, record.name) for record in records], names)
    return [
        PromptedCase(record, store, classes=classes, given=own)
        for record, own in zip(records, given, strict=True)
    ]


def _told(cases: Sequence[PromptedCase], talk: bool) -> Iterator[PromptedCase]:
    """Yield cases; tell a terminal how many are done, since the encoder takes its time."""
    for done, case in enumerate(cases):
        if talk and sys.stderr.isatty():
            print(f"\r{done}/{len(cases)} images", end="", file=sys.stderr, flush=True)
        yield case
    if talk and sys.stderr.isatty():
        print(f"\r{len(cases)}/{len(cases)} images", file=sys.stderr, flush=True)


def _add(
    report: Report,
    segmenter: PromptedSegmenter,
    scores: dict[str, Any],
    said: str,
    cases: Sequence[PromptedCase],
    names: Names,
) -> None:
    """Add the table and the worst images."""
    report.note(NOT_A_DEVICE)
    report.table(table_rows(scores), said)
    for problem in scores["left_out"]:
        report.text(f"Left out: {problem}")
    report.heading("Worst images")
    report.note("From left to right: the image, labels, what was found in their boxes.")
    dice = {id(row["image"]): _known(row["dice"]) for row in scores["rows"]}
    scored = [case for case in cases if dice.get(id(case.record))]
    ranked = sorted(scored, key=lambda case: np.mean(list(dice[id(case.record)].values())))
    for case in ranked[:_WORST]:
        record = case.record
        parts = case.shown(case.found(segmenter), case.truth(case.classes))
        shown = Image.fromarray(panel(*parts, segmenter.palette))
        shown.thumbnail((960, 320))
        values = ", ".join(f"{name} {value:.3f}" for name, value in dice[id(record)].items())
        caption = f"{names.image(record.path, record.name)}: Dice {values}"
        report.picture(png(np.asarray(shown)), "png", caption)


def _known(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if not np.isnan(value)}
