"""A detector run over images with boxes, and what came of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from crossband.medical.data.radiographs import RadiographStore
from crossband.medical.data.splits import patient_key
from crossband.medical.detection.data import Boxed, Boxes
from crossband.medical.detection.detector import Detector
from crossband.medical.detection.fusion import iou
from crossband.medical.detection.pictures import add_scores, side_by_side
from crossband.medical.detection.scoring import score
from crossband.medical.privacy import NamedStore, Names
from crossband.shared.errors import DataError
from crossband.shared.reports.html import Report

_PICTURES = 6
SHOWN_SCORE = 0.3  # least score of a box in pictures


@dataclass
class BoxReadings:
    """What a detector found.

    Attributes:
        items: Images that could be read, with the boxes drawn in them.
        found: Boxes found in each.
        sizes: (height, width) of each.
        problems: A sentence for each image that could not.
    """

    items: list[Boxed] = field(default_factory=list)
    found: list[Boxes] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def scores(self, detector: Detector, *, resamples: int, seed: int) -> dict[str, Any]:
        """Return AP50 and AP per class with intervals, and what was left out."""
        found = score(
            [item.boxes for item in self.items],
            self.found,
            self.sizes,
            detector.classes,
            [patient_key(item.record) for item in self.items],
            resamples=resamples,
            seed=seed,
        )
        return found | {"images": len(self.items), "left_out": self.problems}


def read_boxes(
    detector: Detector,
    items: Sequence[Boxed],
    store: NamedStore,
    names: Names,
    *,
    progress: bool = False,
) -> BoxReadings:
    """Look for boxes in images; those that cannot be read are left out.

    Raises:
        DataError: none can be read.
    """
    readings = BoxReadings()
    step = max(1, len(items) // 10)
    for number, item in enumerate(items, start=1):
        path = item.record.path
        try:
            pixels = store.read(path)
        except DataError as error:
            readings.problems.append(str(error))
            continue
        size = (pixels.shape[0], pixels.shape[1])
        readings.items.append(Boxed(item.record, item.boxes.inside(size)))
        readings.found.append(detector.boxes(pixels))
        readings.sizes.append(size)
        if progress and number % step == 0:
            print(f"read {number} of {len(items)} images", file=sys.stderr, flush=True)
    if not readings.items:
        raise DataError(f"None of the {len(items)} images can be read: {readings.problems[0]}")
    return readings


def store_for(
    detector: Detector, names: Names, window: Sequence[float] = (), cache_gb: float = 0.0
) -> NamedStore:
    """Return what reads images as the detector wants them: in colours, or grey."""
    reading = detector.config["reading"]
    store = RadiographStore(cache_gb, window or reading["window"], colours=reading["colours"])
    return NamedStore(store, names)


def add_results(
    report: Report,
    detector: Detector,
    readings: BoxReadings,
    scores: dict[str, Any],
    store: NamedStore,
    names: Names,
) -> None:
    """Add scores and pictures of the images in which most went wrong."""
    add_scores(report, scores)
    report.heading("Worst images")
    report.note(
        f"Left the boxes drawn, right those found with a score of {SHOWN_SCORE:g} or more: the "
        "images with most boxes missed or wrong."
    )
    wrong = [
        _wrong(item.boxes, found)
        for item, found in zip(readings.items, readings.found, strict=True)
    ]
    ranked = sorted(range(len(wrong)), key=lambda number: -sum(wrong[number]))
    for number in ranked[:_PICTURES]:
        record = readings.items[number].record
        picture = side_by_side(
            store.read(record.path),
            readings.items[number].boxes,
            readings.found[number],
            detector.classes,
            SHOWN_SCORE,
        )
        missed, false = wrong[number]
        shown = names.image(record.path, record.name)
        report.picture(picture, "png", f"{shown}: {missed} missed, {false} wrong")


def _wrong(drawn: Boxes, found: Boxes) -> tuple[int, int]:
    """Return how many boxes were missed and how many are wrong, at an IoU of 0.5."""
    assert found.scores is not None
    found = found.take(found.scores >= SHOWN_SCORE)
    free = set(range(len(drawn)))
    overlaps = iou(found.corners, drawn.corners)
    right = 0
    for number, label in enumerate(found.labels):
        near = [k for k in free if drawn.labels[k] == label and overlaps[number, k] >= 0.5]
        if near:
            free.remove(max(near, key=lambda k: overlaps[number, k]))
            right += 1
    return len(free), len(found) - right
