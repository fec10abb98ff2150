"""`crossband medical evaluate` of a detector: AP50 and AP with their protocol."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from crossband.medical import evaluation as common
from crossband.medical.config import EvaluateConfig, SourceConfig
from crossband.medical.detection.detector import Detector
from crossband.medical.detection.gathering import gather_boxes
from crossband.medical.detection.pictures import scores_text
from crossband.medical.detection.reading import BoxReadings, add_results, read_boxes, store_for
from crossband.medical.detection.scoring import EXPLANATION
from crossband.medical.jobs import NOT_A_DEVICE
from crossband.medical.privacy import Names
from crossband.medical.report import protocol_text
from crossband.shared.cli.output import print_json
from crossband.shared.errors import EXIT_PARTIAL, ConfigError, DataError
from crossband.shared.files import json_text, write_text
from crossband.shared.reports.html import Report


def evaluate(config: EvaluateConfig) -> int | None:
    """Score a detector; write metrics.json, predictions.json (COCO's results) and report.html.

    Raises:
        ConfigError: a number that cannot be, or splits drawn in another way than in training.
        DataError: no image with boxes in the split.
    """
    if config.bootstrap < 0:
        raise ConfigError(f"--bootstrap {config.bootstrap}: give 0 or more.")
    detector = Detector.load(config.weights, device=config.device, precision=config.precision)
    names = Names(config.keep_ids)
    source = SourceConfig(**{f.name: getattr(config.data, f.name) for f in fields(SourceConfig)})
    data = gather_boxes(source, detector.config["fusion"], names, detector.classes)
    common._same_draw(detector, data, config)  # type: ignore[arg-type]
    split = config.data.split
    items = {"train": data.train, "val": data.val, "test": data.test}.get(split, [])
    if not sum(len(item.boxes) for item in items):
        raise DataError(
            f"{', '.join(config.data.root)}: no image with a box in the split {split!r}; name "
            "another by --data.split."
        )
    talk = not config.quiet and not config.json
    for note in data.notes[:8] if talk else ():
        print(f"note: {note}")
    store = store_for(detector, names, config.data.window)
    readings = read_boxes(detector, items, store, names, progress=talk)
    scores = readings.scores(detector, resamples=config.bootstrap, seed=config.seed)
    records = [item.record for item in readings.items]
    protocol = common.protocol(config, detector, records)  # type: ignore[arg-type]
    protocol |= {"size": f"longer side {detector.size} px", "fusion": detector.config["fusion"]}
    results = {"protocol": protocol | {"explanation": EXPLANATION}, **scores}
    name = "evaluation" if split == "test" else f"evaluation-{split}"
    out = Path(config.out or Path(config.weights).parent / name)
    write_text(out / "metrics.json", json_text(results) + "\n")
    write_text(out / "predictions.json", json_text(_coco_results(readings, names)) + "\n")
    report = Report("Evaluation: boxes", protocol_text(protocol))
    add_results(report, detector, readings, scores, store, names)
    report.write(out / "report.html")
    if config.json:
        print_json(results)
    else:
        for problem in readings.problems:
            print(f"left out: {problem}")
        print(scores_text(scores))
        if not config.quiet:
            print(NOT_A_DEVICE)
        print(f"report: {out / 'report.html'}")
    return EXIT_PARTIAL if readings.problems else None


def _coco_results(readings: BoxReadings, names: Names) -> list[dict[str, Any]]:
    """Return what was found as COCO's results; ids of images and categories count from 1."""
    rows = []
    for number, (item, found) in enumerate(
        zip(readings.items, readings.found, strict=True), start=1
    ):
        assert found.scores is not None
        shown = names.image(item.record.path, item.record.name)
        for (x0, y0, x1, y1), label, value in zip(
            found.corners.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True
        ):
            box = [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)]
            rows.append(
                {
                    "image_id": number,
                    "image": shown,
                    "category_id": label + 1,
                    "bbox": box,
                    "score": round(value, 5),
                }
            )
    return rows
