"""Masks: training, and Dice of what was outlined."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from crossband.medical.config import EvaluateConfig, TrainConfig
from crossband.medical.data.radiographs import RadiographStore
from crossband.medical.data.records import Record
from crossband.medical.data.splits import patient_key
from crossband.medical.data.tolerant import GoingOn
from crossband.medical.data.views import MaskedViews, read_mask
from crossband.medical.jobs import (
    NOT_A_DEVICE,
    Job,
    common_facts,
    gather_for,
    normalisation,
    reading,
)
from crossband.medical.networks import SEGMENTATION
from crossband.medical.privacy import NamedStore, Names, Store
from crossband.medical.report import protocol_text
from crossband.medical.scoring import text
from crossband.medical.segmenter import Segmenter
from crossband.shared.checkpoints import load_checkpoint, save_checkpoint
from crossband.shared.cli.output import format_table, print_json
from crossband.shared.errors import EXIT_PARTIAL, ConfigError, DataError
from crossband.shared.files import json_text, write_text
from crossband.shared.metrics.ranking import bootstrap
from crossband.shared.reports.figures import curves, panel, png
from crossband.shared.reports.html import Report
from crossband.shared.tasks.segmentation import SegmentationTask
from crossband.shared.training.callbacks import RunBook
from crossband.shared.training.run_folder import RunFolder

EXPLANATION = (
    "Dice of every image at its own size, mean over images; an image without a class and without a "
    "prediction of it is left out for that class. Intervals of 95 % from resampling patients."
)
CLASSES = ("background", "lung")
_PALETTE = ((0, 0, 0), (64, 160, 255), (255, 140, 0), (60, 200, 90), (220, 60, 120))
_WORST = 6


def prepare(config: TrainConfig) -> Job:
    """Return the job of `train --task segmentation`.

    Raises:
        ConfigError: options that cannot be.
        DataError: images without masks.
    """
    gathered, chosen = gather_for(config)
    gathered.train = with_masks(gathered.train, "train")
    chosen = with_masks(chosen, config.select_on)
    store, normalise = reading(config), normalisation(config)
    names, count = Names(config.keep_ids), len(CLASSES)
    train = MaskedViews(
        gathered.train,
        store,
        config.size,
        classes=count,
        augment=config.augment,
        normalisation=normalise,
        seed=config.seed,
    )
    val = MaskedViews(chosen, store, config.size, classes=count, normalisation=normalise)
    if config.loss.name not in ("auto", "ce", "ce_dice") or config.loss.pos_weight:
        raise ConfigError("--task segmentation takes --loss.name ce or ce_dice, and class_weights.")
    if len(config.loss.class_weights) not in (0, count):
        raise ConfigError(
            f"--loss.class_weights has {len(config.loss.class_weights)} numbers for {count} "
            f"classes ({', '.join(CLASSES)}): one for each."
        )
    if config.loss.balance or config.loss.label_smoothing or config.loss.sampling != "images":
        raise ConfigError("--loss.balance, label_smoothing and sampling are for findings.")
    if config.monitor in ("auroc", "accuracy"):
        raise ConfigError(f"--monitor {config.monitor} is for findings: take dice or loss.")

    def task(model: nn.Module) -> SegmentationTask:
        return SegmentationTask(
            model,
            config.optimizer,
            config.schedule,
            loss="ce" if config.loss.name == "ce" else "ce_dice",
            class_weights=config.loss.class_weights,
            monitor="loss" if config.monitor == "loss" else "iou",
            compile=config.trainer.compile,
        )

    facts = {
        "task": SEGMENTATION,
        "classes": list(CLASSES),
        "palette": [list(colour) for colour in _PALETTE[: len(CLASSES)]],
        "reading": {"resize": 0, "window": list(config.data.window)},
        "description": f"{config.model}: {', '.join(CLASSES[1:])} of radiographs",
        **common_facts(config, gathered, chosen, normalise),
    }

    def finish(folder: RunFolder, book: RunBook) -> None:
        _finish(config, folder, chosen, book)

    views = (GoingOn(items, items.records, names) for items in (train, val))
    return Job(CLASSES, gathered, chosen, *views, task, finish, facts)


def with_masks(records: Sequence[Record], split: str) -> list[Record]:
    """Return the images that have a mask.

    Raises:
        DataError: none has.
    """
    found = [record for record in records if record.mask is not None]
    if not found:
        raise DataError(
            f"No image of the split {split!r} has a mask: give folders images/ and masks/ of equal "
            "names, or a csv column of masks (--data.columns mask=NAME)."
        )
    return found


def score_masks(
    segmenter: Segmenter,
    records: Sequence[Record],
    store: Store,
    names: Names,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return Dice per class with intervals, a row per image, and what could not be read.

    Raises:
        DataError: no image can be scored.
    """
    classes = segmenter.classes
    kept: list[Record] = []
    dice: list[list[float]] = []
    problems: list[str] = []
    for record in records:
        try:
            pixels = store.read(record.path)
            truth = read_mask(record, len(classes))
        except DataError as error:
            problems.append(names.error(error, record.path, record.mask))
            continue
        ids = segmenter.predict(pixels)
        if ids.shape != truth.shape:
            size = (truth.shape[1], truth.shape[0])
            ids = np.asarray(_image(ids).resize(size, 0))
        kept.append(record)
        dice.append([_dice(ids == k, truth == k) for k in range(1, len(classes))])
    if not kept:
        raise DataError(f"None of the {len(records)} images can be scored: {problems[0]}")
    values, groups = np.array(dice), [patient_key(record) for record in kept]
    rows = [
        {"image": record, "dice": dict(zip(classes[1:], row, strict=True))}
        for record, row in zip(kept, dice, strict=True)
    ]

    def interval(column: np.ndarray) -> dict[str, float | None]:
        found = bootstrap(_mean, [column], groups, count=resamples, seed=seed)
        return {k: None if np.isnan(v) else float(v) for k, v in found._asdict().items()}

    per_class = {
        name: interval(values[:, k]) | {"median": float(np.nanmedian(values[:, k]))}
        for k, name in enumerate(classes[1:])
    }
    mean = interval(np.nanmean(values, 1))
    return {"dice": mean, "classes": per_class, "rows": rows, "left_out": problems}


def evaluate(
    config: EvaluateConfig,
    segmenter: Segmenter,
    records: list[Record],
    protocol: dict[str, Any],
    out: Path,
) -> int | None:
    """Score masks; write metrics.json and report.html."""
    names = Names(config.keep_ids)
    window = config.data.window or segmenter.config["reading"]["window"]
    store = NamedStore(RadiographStore(0.0, window, config.data.shrink), names)
    scores = score_masks(
        segmenter,
        with_masks(records, config.data.split),
        store,
        names,
        resamples=config.bootstrap,
        seed=config.seed,
    )
    protocol["images"] = len(scores["rows"])
    results = {"protocol": protocol | {"explanation": EXPLANATION}, **_public(scores, names)}
    write_text(out / "metrics.json", json_text(results) + "\n")
    report = Report("Evaluation: masks of radiographs", protocol_text(protocol))
    _add(report, segmenter, scores, store, names)
    report.write(out / "report.html")
    if config.json:
        print_json(results)
    else:
        for problem in scores["left_out"]:
            print(f"left out: {problem}")
        print(scores_text(scores))
        if not config.quiet:
            print(NOT_A_DEVICE)
        print(f"report: {out / 'report.html'}")
    return EXIT_PARTIAL if scores["left_out"] else None


def scores_text(scores: dict[str, Any]) -> str:
    """Return the scores as a table for a terminal."""
    rows = [(name, text(v), f"{v['median']:.3f}") for name, v in scores["classes"].items()]
    return format_table(("class", "Dice", "median"), rows)


def _finish(config: TrainConfig, folder: RunFolder, chosen: list[Record], book: RunBook) -> None:
    segmenter = Segmenter.load(folder.best, device=config.device, precision=config.precision)
    names, store = Names(config.keep_ids), reading(config)
    scores = score_masks(segmenter, chosen, store, names)
    checkpoint = load_checkpoint(folder.best)
    metrics = {f"{config.select_on}_mean_dice": scores["dice"]["value"]}
    save_checkpoint(folder.best, checkpoint.state_dict, checkpoint.config | {"metrics": metrics})
    minutes = round(book.seconds / 60, 2)
    protocol = segmenter.config["protocol"] | {"split": config.select_on, "minutes": minutes}
    results = {
        "headline": {"dice": scores["dice"]["value"]},
        "protocol": protocol | {"explanation": EXPLANATION},
        "best": book.best,
        config.select_on: _public(scores, names),
        "history": book.history,
    }
    folder.write_results(results)
    report = Report(f"Training: {config.model}", protocol_text(protocol))
    _add(report, segmenter, scores, store, names)
    report.heading("Curves")
    report.figure(curves(book.history, ("val_iou",)), f"best epoch {book.best['epoch']}")
    report.write(folder.report)
    if config.json:
        print_json({"weights": str(folder.best), **results})
    else:
        print(scores_text(scores))
        print(f"weights: {folder.best}\nreport: {folder.report}")


def _public(scores: dict[str, Any], names: Names) -> dict[str, Any]:
    """Return scores with images called as they may be called."""
    rows = [
        {"image": names.image(row["image"].path, row["image"].name), "dice": row["dice"]}
        for row in scores["rows"]
    ]
    return {**scores, "rows": rows}


def _add(
    report: Report, segmenter: Segmenter, scores: dict[str, Any], store: Store, names: Names
) -> None:
    """Add the table and the worst images."""
    report.note(NOT_A_DEVICE)
    rows = [
        {"class": name, "Dice": text(v), "median": round(v["median"], 4)}
        for name, v in scores["classes"].items()
    ]
    report.table(rows, EXPLANATION)
    for problem in scores["left_out"]:
        report.text(f"Left out: {problem}")
    report.heading("Worst images")
    report.note("From left to right: the image, labels, predictions.")
    ranked = sorted(scores["rows"], key=lambda row: np.nanmean(list(row["dice"].values())))
    for row in ranked[:_WORST]:
        record = row["image"]
        pixels, truth = store.read(record.path), read_mask(record, len(segmenter.classes))
        found = segmenter.predict(pixels)
        if truth.shape != pixels.shape:
            truth = np.asarray(_image(truth).resize((pixels.shape[1], pixels.shape[0]), 0))
        picture = panel(pixels, truth, found, segmenter.palette)
        values = ", ".join(f"{name} {value:.3f}" for name, value in row["dice"].items())
        shown = _image(picture)
        shown.thumbnail((960, 320))
        caption = f"{names.image(record.path, record.name)}: Dice {values}"
        report.picture(png(np.asarray(shown)), "png", caption)


def _dice(found: np.ndarray, truth: np.ndarray) -> float:
    total = int(found.sum()) + int(truth.sum())
    return float(2 * (found & truth).sum() / total) if total else float("nan")


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def _image(pixels: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)
