"""`crossband medical predict` of a detector: boxes as a csv, and drawn into the images."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from crossband.medical.config import PredictConfig
from crossband.medical.data.radiographs import read_radiograph
from crossband.medical.detection.data import Boxes
from crossband.medical.detection.detector import Detector, Found
from crossband.medical.detection.pictures import draw
from crossband.medical.pictures import save_picture, stem_of
from crossband.medical.predict import find_studies
from crossband.medical.privacy import Names
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.files import write_text
from crossband.shared.prediction import predict_each

TABLE = "boxes.csv"
_HEAD = ("image", "class", "score", "x0", "y0", "x1", "y1")


def predict(config: PredictConfig) -> int | None:
    """Find boxes in images; write boxes.csv, predictions.jsonl, and a picture of each image.

    Raises:
        ConfigError: options that cannot be.
        DataError: no image that can be read.
    """
    if not 0 <= config.score <= 1:
        raise ConfigError(f"--score {config.score:g} must be in 0 to 1.")
    out = Path(config.out if config.out != PredictConfig.out else "boxes")
    if out.suffix.lower() == ".csv":
        raise ConfigError(f"--out {config.out}: boxes are written to a folder, with {TABLE} in it.")
    paths, others = find_studies(config.inputs)
    talk = not config.quiet and not config.json
    if others and talk:
        print(f"passed over {others} file(s) that are no images")
    detector = Detector.load(config.weights, device=config.device, precision=config.precision)
    reading, names = detector.config["reading"], Names(config.keep_ids)
    window = config.window or reading["window"]
    rows: list[tuple[str, Found]] = []
    taken: dict[str, str] = {}

    def run(path: Path) -> dict[str, Any]:
        try:
            image = read_radiograph(path, window, colours=reading["colours"])
        except DataError as error:
            raise DataError(names.error(error, path)) from None
        shown = names.image(path)
        found = detector.predict(image.pixels, config.score)
        target = out / f"{stem_of(shown, taken)}_boxes.jpg"
        save_picture(draw(image.pixels, _boxes(found, detector), detector.classes), target)
        rows.extend((shown, one) for one in found)
        return {
            "input": shown,
            "size": list(image.pixels.shape[:2]),
            "boxes": [
                {
                    "class": one.name,
                    "score": round(one.score, 5),
                    "box": [round(value, 2) for value in one.box],
                }
                for one in found
            ],
            "overlay": str(target),
            "notes": list(image.notes),
        }

    try:
        code = predict_each(
            paths, run, name=names.image, describe=_sentence, options=config, folder=out
        )
    finally:
        if taken:
            write_text(out / TABLE, _table(rows))
    if talk:
        print(f"boxes: {out / TABLE}")
    return code


def _boxes(found: list[Found], detector: Detector) -> Boxes:
    labels = [detector.classes.index(one.name) for one in found]
    boxes = Boxes.of([one.box for one in found], labels)
    return Boxes(boxes.corners, boxes.labels, np.array([one.score for one in found], np.float32))


def _table(rows: list[tuple[str, Found]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_HEAD)
    for shown, one in rows:
        writer.writerow([shown, one.name, f"{one.score:.5f}", *(f"{v:.2f}" for v in one.box)])
    return buffer.getvalue()


def _sentence(entry: dict[str, Any]) -> str:
    counts: dict[str, int] = {}
    for box in entry["boxes"]:
        counts[box["class"]] = counts.get(box["class"], 0) + 1
    told = ", ".join(f"{count} {name}" for name, count in counts.items()) or "no box"
    notes = f" ({' '.join(entry['notes'])})" if entry["notes"] else ""
    return f"{entry['input']}: {told}{notes}"
