"""`crossband infrared evaluate`: scores on labelled images, with their protocol."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from crossband.infrared.config import EvaluateConfig, EvaluateSource
from crossband.infrared.data.crops import Frames
from crossband.infrared.data.frames import Stretch
from crossband.infrared.data.layouts import Labelled, find
from crossband.infrared.report import (
    add_pictures,
    add_scores,
    protocol_text,
    score_table,
)
from crossband.infrared.scoring import EXPLANATION, SMALL_EXPLANATION, score
from crossband.infrared.segment import Segmenter
from crossband.infrared.training import labelled
from crossband.shared.cli.output import print_json
from crossband.shared.environment import machine
from crossband.shared.errors import EXIT_PARTIAL, ConfigError, DataError
from crossband.shared.files import json_text, list_digest, write_text
from crossband.shared.reports.html import Report

_SHOWN_NOTES = 5


def evaluate(config: EvaluateConfig) -> int | None:
    """Run `crossband infrared evaluate`."""
    if not config.data.root:
        raise ConfigError("There is nothing to score on: give --data.root.")
    segmenter = Segmenter.load(config.weights, device=config.device, precision=config.precision)
    sets = [find(root, config.data.layout) for root in config.data.root]
    for one in sets:
        _same_classes(segmenter, one, config.weights)
        if one.binary != sets[0].binary:
            raise DataError(
                f"{sets[0].root} and {one.root} write the target differently (1 or 255): score on "
                "them one by one."
            )
    items = [item for one in sets for item in labelled(one, config.data.split)]
    lonely = [note for one in sets for note in one.lonely]
    if not config.quiet and not config.json:
        for note in lonely[:_SHOWN_NOTES]:
            print(f"note: {note}")
    frames = _frames(segmenter, config.data, sets[0])
    small = config.small_targets == "yes" or (
        config.small_targets == "auto" and len(segmenter.classes) == 2
    )
    outcome = score(
        segmenter,
        items,
        frames,
        config.window,
        small_targets=small,
        progress=_progress(len(items)) if not config.quiet else None,
    )
    protocol = {
        "data": ", ".join(config.data.root),
        "split": config.data.split,
        "images": len(outcome.images),
        "sha256": list_digest([item.name for item in items]),
        "weights": config.weights,
        "window": f"{config.window.mode}, {segmenter.config['window']}",
        "threshold": segmenter.config.get("threshold", "largest logit"),
        "machine": machine(),
    }
    explanation = EXPLANATION + (f" {SMALL_EXPLANATION}" if small else "")
    results = {
        "protocol": protocol | {"explanation": explanation},
        **outcome.summary(segmenter.classes),
        "images": outcome.images,
        "left_out": outcome.problems,
        "without_partner": lonely,
    }
    name = "evaluation" if config.data.split == "test" else f"evaluation-{config.data.split}"
    out = Path(config.out or Path(config.weights).parent / name)
    write_text(out / "metrics.json", json_text(results) + "\n")
    report = Report("Evaluation: infrared segmentation", protocol_text(protocol))
    add_scores(report, outcome, segmenter.classes)
    add_pictures(report, segmenter, outcome, items, frames, config.window, config.worst)
    report.write(out / "report.html")
    if config.json:
        print_json(results)
    else:
        for problem in outcome.problems:
            print(f"left out: {problem}")
        print(score_table(outcome, segmenter.classes))
        print(f"report: {out / 'report.html'}")
    return EXIT_PARTIAL if outcome.problems else None


def _same_classes(segmenter: Segmenter, data: Labelled, weights: str) -> None:
    """Refuse labels of other classes.

    Raises:
        DataError: their number or names differ.
    """
    if len(segmenter.classes) != len(data.classes):
        raise DataError(
            f"{weights} knows {len(segmenter.classes)} classes ({', '.join(segmenter.classes)}), "
            f"{data.root} has {len(data.classes)} ({', '.join(data.classes)}): train on this data "
            "first, or score on data of the same classes."
        )
    if tuple(segmenter.classes) != data.classes:
        pairs = zip(segmenter.classes, data.classes, strict=True)
        number, (ours, theirs) = next(
            (i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1]
        )
        raise DataError(
            f"class {number} is {ours!r} in {weights} and {theirs!r} in {data.root}: bring the "
            "ids of the masks to the order of the checkpoint's classes."
        )


def _frames(segmenter: Segmenter, source: EvaluateSource, data: Labelled) -> Frames:
    """Return a reader that reads as in training unless the options say otherwise."""
    stretch = segmenter.stretch
    if source.value_range or source.stretch:
        stretch = Stretch.of(source.value_range, always=source.stretch)
    return Frames(
        len(segmenter.classes),
        binary=data.binary,
        channel=segmenter.channel,
        stretch=stretch,
        cache_bytes=0,
    )


def _progress(count: int) -> Callable[[int], None]:
    """Return what shows the number of images on a terminal."""

    def show(done: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done == count else ""
            print(f"\r{done}/{count} images", end=end, file=sys.stderr, flush=True)

    return show
