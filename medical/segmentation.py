"""Masks of images and volumes: training and evaluation."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from crossband.medical.cases import ImageCase, ScanCase, is_scan
from crossband.medical.config import EvaluateConfig, SourceConfig, TrainConfig
from crossband.medical.data.masks import FOREGROUND, MaskClasses
from crossband.medical.data.radiographs import RadiographStore
from crossband.medical.data.records import Record
from crossband.medical.data.splits import Gathered
from crossband.medical.data.tolerant import GoingOn
from crossband.medical.data.views import ImagePairs, MaskedViews, Pairs
from crossband.medical.jobs import (
    Job,
    common_facts,
    gather_for,
    normalisation,
    reading,
)
from crossband.medical.mask_reports import Scored, evaluation_results, training_results
from crossband.medical.mask_scores import (
    Distances,
    explanation,
    score_masks,
)
from crossband.medical.networks import SEGMENTATION
from crossband.medical.privacy import NamedStore, Names
from crossband.medical.segmenter import Segmenter
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.tasks.segmentation import SegmentationTask
from crossband.shared.training.callbacks import RunBook
from crossband.shared.training.run_folder import RunFolder

LOSSES = ("auto", "ce", "ce_dice", "ce_dice_all", "dice_ce")
_PALETTE = ((0, 0, 0), (64, 160, 255), (255, 140, 0), (60, 200, 90), (220, 60, 120))


def prepare(config: TrainConfig) -> Job:
    """Return the job of `train --task segmentation`.

    Raises:
        ConfigError: options that cannot be.
        DataError: images without masks.
    """
    gathered, chosen = gather_for(config)
    gathered.train = with_masks(gathered.train, "train")
    chosen = with_masks(chosen, config.select_on)
    volumes = of_volumes([*gathered.train, *chosen])
    classes = mask_classes(config.data, gathered)
    _check(config, classes)
    normalise, names = normalisation(config), Names(config.keep_ids)
    train_pairs = _pairs(config, gathered.train, classes, volumes)
    train = MaskedViews(
        train_pairs,
        config.size,
        sliding=config.sliding,
        augment=config.augment,
        normalisation=normalise,
        weights=_chances(config, train_pairs),
        seed=config.seed,
    )
    val = MaskedViews(
        _pairs(config, chosen, classes, volumes),
        config.size,
        sliding=config.sliding,
        normalisation=normalise,
        seed=config.seed,
    )

    def task(model: nn.Module) -> SegmentationTask:
        return SegmentationTask(
            model,
            config.optimizer,
            config.schedule,
            loss="ce_dice" if config.loss.name == "auto" else config.loss.name,  # type: ignore
            class_weights=config.loss.class_weights,
            monitor=_monitor(config, classes),  # type: ignore
            compile=config.trainer.compile,
        )

    facts = {
        "task": SEGMENTATION,
        "classes": list(classes.names),
        "mask_values": list(classes.values),
        "palette": palette(len(classes)),
        "reading": {
            "resize": 0,
            "window": list(config.data.window),
            # Several sequences of a volume are shown as colours.
            "colours": config.data.colours or (volumes and train_pairs.read(0)[0].ndim == 3),
            "sliding": config.sliding,
            "volumes": volumes,
            "axis": config.data.axis,
            "sequences": list(config.data.sequences),
        },
        "description": f"{config.model}: {', '.join(classes.names[1:])} of "
        f"{'volumes, slice by slice' if volumes else 'images'}",
        **common_facts(config, gathered, chosen, normalise),
    }

    def finish(folder: RunFolder, book: RunBook) -> None:
        _finish(config, folder, chosen, book)

    views = (GoingOn(items, items.records, names) for items in (train, val))
    return Job(classes.names, gathered, chosen, *views, task, finish, facts)


def _check(config: TrainConfig, classes: MaskClasses) -> None:
    """Refuse options of the other tasks.

    Raises:
        ConfigError: there is one.
    """
    count = len(classes)
    if config.loss.name not in LOSSES or config.loss.pos_weight:
        raise ConfigError(
            f"--task segmentation takes --loss.name {', '.join(LOSSES[1:])}, and class_weights."
        )
    if len(config.loss.class_weights) not in (0, count):
        raise ConfigError(
            f"--loss.class_weights has {len(config.loss.class_weights)} numbers for {count} "
            f"classes ({', '.join(classes.names)}): one for each."
        )
    if config.loss.balance or config.loss.label_smoothing:
        raise ConfigError("--loss.balance and label_smoothing are for findings.")
    if config.monitor in ("auroc", "accuracy"):
        raise ConfigError(f"--monitor {config.monitor} is for findings: take dice or loss.")


def _monitor(config: TrainConfig, classes: MaskClasses) -> str:
    if config.monitor == "loss":
        return "loss"
    return "iou" if len(classes) == 2 else "miou"


def mask_classes(source: SourceConfig, gathered: Gathered) -> MaskClasses:
    """Return the classes of the masks: those given, those that the data sets tell, or two.

    Raises:
        ConfigError: classes that cannot be, or data sets that tell different ones.
    """
    told = {c.classes for c in gathered.collections if c.classes}
    if not source.classes and len(told) > 1:
        raise ConfigError(
            "The data sets have masks of different classes "
            f"({'; '.join(', '.join(names) for names in sorted(told))}): give --data.classes and "
            "--data.mask_values, or train on one of them."
        )
    names = source.classes or (next(iter(told)) if told else None)
    if names is None:
        many = len(source.mask_values)
        names = FOREGROUND if many < 3 else ["background", *map(str, source.mask_values[1:])]
    return MaskClasses.given(names, source.mask_values)


def of_volumes(records: Sequence[Record]) -> bool:
    """Whether the records are volumes.

    Raises:
        ConfigError: some are, and some are images.
    """
    kinds = {is_scan(record.path) for record in records}
    if len(kinds) > 1:
        raise ConfigError(
            "The data holds both images and volumes: train on one kind, with --data.root for each "
            "set of it."
        )
    return kinds.pop()


def palette(count: int) -> list[list[int]]:
    """Return a colour (RGB, 0 to 255) for each of `count` classes; the background is black."""
    import colorsys

    found = [list(colour) for colour in _PALETTE[:count]]
    for number in range(len(found), count):  # turns by the golden angle stay apart
        shade = colorsys.hsv_to_rgb(number * 0.381966 % 1.0, 0.75, 0.95)
        found.append([round(255 * part) for part in shade])
    return found


def _pairs(
    config: TrainConfig, records: list[Record], classes: MaskClasses, volumes: bool
) -> Pairs:
    if not volumes:
        return ImagePairs(records, reading(config), classes)
    from crossband.medical.data.scans import SlicePairs

    source = config.data
    found = SlicePairs(
        records,
        classes,
        axis=source.axis,
        window=source.window,
        cache_gb=source.cache_gb,
        names=Names(config.keep_ids),
    )
    for problem in found.skipped:
        print(f"left out: {problem}", file=sys.stderr, flush=True)
    return found


def _chances(config: TrainConfig, pairs: Pairs) -> list[float]:
    """Return the chance of each slice, if those with labels shall come as often as the others."""
    if config.loss.sampling == "images":
        return []
    labelled = getattr(pairs, "labelled", None)
    if labelled is None:
        raise ConfigError("--loss.sampling balanced: of masks it is for slices of volumes.")
    count = int(labelled.sum())
    if count in (0, len(labelled)):
        return []
    return np.where(labelled, 0.5 / count, 0.5 / (len(labelled) - count)).tolist()


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


def cases_of(
    records: Sequence[Record], store: NamedStore, segmenter: Segmenter, window: Sequence[float]
) -> Iterator[ImageCase | ScanCase]:
    """Yield what masks are scored on; a volume is in memory until the next one.

    Raises:
        ConfigError: images and volumes together.
    """
    if not of_volumes(records):
        return (ImageCase(record, store) for record in records)
    axis = segmenter.config["reading"].get("axis", "auto")
    return (ScanCase(record, axis, window) for record in records)


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
    raw = RadiographStore(0.0, window, config.data.shrink, segmenter.colours)
    store = NamedStore(raw, names)
    records = with_masks(records, config.data.split)
    classes = segmenter.mask_classes
    if tuple(config.data.classes) != segmenter.classes:
        raise ConfigError(
            f"{config.weights} gives the classes {', '.join(segmenter.classes)}: leave out "
            "--data.classes, and say by --data.mask_values which values they have here."
        )
    if config.data.mask_values:
        classes = MaskClasses.given(segmenter.classes, config.data.mask_values)
    distances = Distances(config.distances, config.tolerance)
    scores = score_masks(
        segmenter,
        cases_of(records, store, segmenter, window),
        classes,
        names,
        distances=distances,
        resamples=config.bootstrap,
        seed=config.seed,
        batch_size=config.batch_size,
    )
    volumes = of_volumes(records)
    protocol["volumes" if volumes else "images"] = len(scores["rows"])
    scored = Scored(
        segmenter,
        scores,
        classes,
        explanation(distances, volumes),
        lambda some: cases_of(some, store, segmenter, window),
    )
    return evaluation_results(config, out, "Evaluation: masks", scored, protocol)


def _finish(config: TrainConfig, folder: RunFolder, chosen: list[Record], book: RunBook) -> None:
    segmenter = Segmenter.load(folder.best, device=config.device, precision=config.precision)
    names, store, classes = Names(config.keep_ids), reading(config), segmenter.mask_classes

    def cases(records: Sequence[Record]) -> Iterable[ImageCase | ScanCase]:
        return cases_of(records, store, segmenter, config.data.window)

    scores = score_masks(segmenter, cases(chosen), classes, names)
    said = explanation(Distances(False), of_volumes(chosen))
    curve = "val_iou" if len(classes) == 2 else "val_miou"
    training_results(config, folder, book, Scored(segmenter, scores, classes, said, cases), curve)
