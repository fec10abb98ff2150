"""Boxes drawn into images, and the parts of reports that show them."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from crossband.medical.detection.data import Boxes
from crossband.medical.detection.scoring import EXPLANATION
from crossband.medical.privacy import NOT_A_DEVICE
from crossband.medical.scoring import text
from crossband.shared.cli.output import format_table
from crossband.shared.reports.figures import png
from crossband.shared.reports.html import Report

_SHOWN = 480  # pixels of the longer side in a report
_NAMED = 12  # boxes in one picture whose names are written beside them


def palette(count: int) -> list[tuple[int, int, int]]:
    """Return RGB colours of classes, hues a golden angle apart."""
    hues = [colorsys.hsv_to_rgb((0.12 + 0.618034 * k) % 1, 0.85, 1.0) for k in range(count)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in hues]


def draw(
    pixels: np.ndarray, boxes: Boxes, classes: Sequence[str], score: float = 0.0, side: int = 0
) -> np.ndarray:
    """Return RGB, uint8 (H, W, 3), of an image with boxes, their classes and scores.

    Args:
        pixels: uint8, grey (H, W) or RGB (H, W, 3).
        boxes: In its pixels.
        classes: Names by class id.
        score: Least score of a box that is drawn.
        side: Bring the longer side to so many pixels; 0: as it is.
    """
    picture = Image.fromarray(pixels).convert("RGB")
    factor = side / max(picture.size) if side else 1.0
    if factor != 1.0:
        size = [max(1, round(length * factor)) for length in picture.size]
        picture = picture.resize((size[0], size[1]))
    canvas, colours = ImageDraw.Draw(picture), palette(len(classes))
    width = max(1, round(max(picture.size) / 400))
    kept = boxes if boxes.scores is None else boxes.take(boxes.scores >= score)
    for number, (corners, label) in enumerate(zip(kept.corners, kept.labels, strict=True)):
        x0, y0, x1, y1 = (factor * corners).tolist()
        canvas.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), None, colours[label], width)
        if len(classes) > 1 and number < _NAMED:
            word = classes[label]
            word += "" if kept.scores is None else f" {kept.scores[number]:.2f}"
            canvas.text((x0 + 2, max(0, y0 - 12)), word, fill=colours[label])
    return np.asarray(picture)


def side_by_side(
    pixels: np.ndarray, drawn: Boxes, found: Boxes, classes: Sequence[str], score: float
) -> bytes:
    """Return a PNG: the image with the boxes that were drawn, and with those that were found."""
    left = draw(pixels, drawn, classes, side=_SHOWN)
    right = draw(pixels, found, classes, score, _SHOWN)
    gap = np.full((left.shape[0], 4, 3), 255, np.uint8)
    return png(np.hstack([left, gap, right]))


def score_rows(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """Return rows of a table: a class each, and their mean."""
    rows = [
        {
            "class": name,
            "boxes": one["boxes"],
            "AP50": text(one["ap50"]) if one["ap50"]["value"] is not None else "-",
            "AP": "-" if one["ap"] is None else f"{one['ap']:.3f}",
        }
        for name, one in scores["classes"].items()
    ]
    mean = {
        "class": "mean",
        "boxes": sum(row["boxes"] for row in rows),
        "AP50": text(scores["ap50"]) if scores["ap50"]["value"] is not None else "-",
        "AP": "-" if scores["ap"] is None else f"{scores['ap']:.3f}",
    }
    return [*rows, mean]


def scores_text(scores: dict[str, Any]) -> str:
    """Return the scores as a table for a terminal."""
    rows = score_rows(scores)
    return format_table(list(rows[0]), [tuple(row.values()) for row in rows])


def add_scores(report: Report, scores: dict[str, Any]) -> None:
    """Add the table of scores and what could not be read."""
    report.note(NOT_A_DEVICE)
    report.table(score_rows(scores), EXPLANATION)
    for problem in scores["left_out"]:
        report.text(f"Left out: {problem}")
