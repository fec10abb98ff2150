"""Scores of masks that boxes ask for: boxes of the masks themselves, or those of a csv."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crossband.medical.cases import ImageCase, fitted
from crossband.medical.config import EvaluateConfig, TrainConfig
from crossband.medical.data.masks import MaskClasses, read_mask
from crossband.medical.data.radiographs import RadiographStore
from crossband.medical.data.records import Record
from crossband.medical.jobs import reading
from crossband.medical.mask_reports import Scored, evaluation_results, training_results
from crossband.medical.mask_scores import (
    Distances,
    explanation,
    score_masks,
)
from crossband.medical.privacy import NamedStore, Names
from crossband.medical.prompted.boxes import Boxes, BoxTable
from crossband.medical.prompted.frames import class_boxes
from crossband.medical.prompted.segmenter import PromptedSegmenter
from crossband.medical.segmentation import of_volumes, with_masks
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.training.callbacks import RunBook
from crossband.shared.training.run_folder import RunFolder

OF_MASKS = "of the masks themselves, exact: one around all that a class covers in an image"


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
    scored = _scored(segmenter, scores, classes, explanation(distances, False), cases)
    return evaluation_results(config, out, "Evaluation: masks from boxes", scored, protocol)


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
    scored = _scored(segmenter, scores, classes, explanation(Distances(False), False), cases)
    training_results(config, folder, book, scored, "val_dice", boxes=OF_MASKS)


def _scored(
    segmenter: PromptedSegmenter,
    scores: dict[str, Any],
    classes: MaskClasses,
    said: str,
    cases: Sequence[PromptedCase],
) -> Scored:
    by_record = {id(case.record): case for case in cases}

    def again(records: Sequence[Record]) -> list[PromptedCase]:
        return [by_record[id(record)] for record in records]

    return Scored(segmenter, scores, classes, said, again, "what was found in their boxes")


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
