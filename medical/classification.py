"""Training for findings: data, loss, and what is found on validation images afterwards."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from torch import nn

from crossband.medical import report
from crossband.medical.baselines import statistics
from crossband.medical.config import TrainConfig
from crossband.medical.data.records import Record, label_matrix
from crossband.medical.data.splits import Gathered, patient_key
from crossband.medical.data.tolerant import GoingOn
from crossband.medical.data.views import EvalViews, TrainViews
from crossband.medical.jobs import Job, common_facts, gather_for, normalisation, reading
from crossband.medical.networks import CLASSIFICATION
from crossband.medical.privacy import Names
from crossband.medical.reader import Reader
from crossband.medical.scoring import Readings, read_all, score
from crossband.shared.checkpoints import load_checkpoint, save_checkpoint
from crossband.shared.cli.output import print_json
from crossband.shared.cli.parser import dump_config
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.metrics.calibration import fit_temperature
from crossband.shared.metrics.ranking import operating_points
from crossband.shared.tasks.classification import UNKNOWN, ClassificationTask
from crossband.shared.training.callbacks import RunBook
from crossband.shared.training.run_folder import RunFolder

_ENOUGH = 20  # validation images from which a temperature is fitted


def _with_findings(config: TrainConfig) -> tuple[Gathered, list[Record]]:
    gathered, chosen = gather_for(config)
    if not gathered.findings:
        raise DataError(
            "The data names no findings: give images with labels, --data.labels, or --data.target."
        )
    return gathered, chosen


def prepare(config: TrainConfig) -> Job:
    """Return the job of `train --task classification`.

    Raises:
        ConfigError: options that cannot be.
        DataError: nothing to learn from, or no findings.
    """
    gathered, chosen = _with_findings(config)
    if config.monitor in ("auto", "auroc"):
        _require_both(chosen)
    store, normalise = reading(config), normalisation(config)
    train = TrainViews(
        gathered.train,
        store,
        config.size,
        augment=config.augment,
        normalisation=normalise,
        exclusive=gathered.exclusive,
        weights=chances(gathered.train) if config.loss.sampling == "balanced" else (),
        seed=config.seed,
    )
    resize = config.augment.resize or config.size * 256 // 224
    val = EvalViews(
        chosen,
        store,
        config.size,
        resize=resize,
        normalisation=normalise,
        exclusive=gathered.exclusive,
    )
    weights = loss_weights(config, gathered.train, gathered.exclusive, gathered.findings)

    def task(model: nn.Module) -> ClassificationTask:
        if "dice" in config.loss.name or config.monitor == "dice":
            raise ConfigError(
                f"--loss.name {config.loss.name} or --monitor dice: dice is of masks."
            )
        return ClassificationTask(
            model,
            config.optimizer,
            config.schedule,
            exclusive=gathered.exclusive,
            loss=config.loss.name,
            label_smoothing=config.loss.label_smoothing,
            monitor="auroc" if config.monitor == "auto" else config.monitor,
            compile=config.trainer.compile,
            **weights,
        )

    facts = {
        "task": CLASSIFICATION,
        "classes": list(gathered.findings),
        "multilabel": not gathered.exclusive,
        "reading": {
            "resize": resize,
            "window": list(config.data.window),
            "colours": config.data.colours,
        },
        "description": f"{config.model}: {len(gathered.findings)} findings of images",
        **common_facts(config, gathered, chosen, normalise),
    }

    def finish(folder: RunFolder, book: RunBook) -> None:
        _finish(config, folder, chosen, book)

    views = (GoingOn(items, items.records, Names(config.keep_ids)) for items in (train, val))
    return Job(gathered.findings, gathered, chosen, *views, task, finish, facts)


def _require_both(records: list[Record]) -> None:
    """Refuse images on which no finding can be ranked, before anything is trained.

    Raises:
        DataError: no finding is both present and absent.
    """
    labels = label_matrix(records)
    if not ((labels == 1).any(0) & (labels == 0).any(0)).any():
        raise DataError(
            f"None of the findings is both present and absent in the {len(records)} images that "
            "choose the weights, so the AUROC cannot: raise --data.val_fraction, or give --monitor "
            "loss."
        )


def loss_weights(
    config: TrainConfig, records: list[Record], exclusive: bool, findings: tuple[str, ...]
) -> dict[str, list[float]]:
    """Return the weights of the loss: those given, or by the labels' shares.

    By `balance` b a present finding of share s among the known labels weighs `((1 - s) / s)^b`, a
    class `s^-b` times a constant that makes the mean over images 1.

    Raises:
        ConfigError: weights for the other kind of labels, of another number, or given twice.
    """
    given = config.loss.class_weights if exclusive else config.loss.pos_weight
    other = config.loss.pos_weight if exclusive else config.loss.class_weights
    name = "class_weights" if exclusive else "pos_weight"
    if other:
        kind = "classes" if exclusive else "findings that may occur together"
        raise ConfigError(f"The labels are {kind}: give --loss.{name}.")
    if given and len(given) != len(findings):
        raise ConfigError(
            f"--loss.{name} has {len(given)} numbers for {len(findings)} outputs: one for each."
        )
    if config.loss.balance < 0 or (given and config.loss.balance):
        raise ConfigError("--loss.balance: give a power above 0, or weights, not both.")
    if not config.loss.balance:
        return {name: given}
    labels = label_matrix(records)
    known = (~np.isnan(labels)).sum(0)
    # One half where nothing is known, so that the weight of what is not counted is a number.
    share = np.where(known > 0, np.nansum(labels, 0) / np.maximum(known, 1), 0.5)
    share = share.clip(1e-4, 1 - 1e-4)
    if not exclusive:
        return {name: (((1 - share) / share) ** config.loss.balance).tolist()}
    weights = share**-config.loss.balance
    return {name: (weights / (share * weights).sum()).tolist()}


def chances(records: list[Record]) -> list[float]:
    """Return how often each image is drawn, as a part of all draws, for a balanced diet.

    An image counts for its rarest finding, 1 over that finding's number of images; images without
    any finding count together as much as one finding does.
    """
    labels = np.nan_to_num(label_matrix(records))
    counts = labels.sum(0)
    empty = labels.sum(1) == 0
    rare = (labels / np.maximum(counts, 1)).max(1, initial=0.0)
    found = np.where(empty, 1 / max(1, int(empty.sum())), rare)
    return (found / found.sum()).tolist()


def _finish(config: TrainConfig, folder: RunFolder, chosen: list[Record], book: RunBook) -> None:
    reader = Reader.load(folder.best, device=config.device, precision=config.precision)
    readings = read_all(reader, chosen, reading(config), Names(config.keep_ids))
    decided = calibrated(readings, reader.exclusive, reader.findings, config.calibrate)
    reader.temperature, reader.thresholds = decided["temperature"], decided["thresholds"]
    scores = score(reader, readings)
    checkpoint = load_checkpoint(folder.best)
    facts = checkpoint.config | decided
    facts["metrics"] = {f"{config.select_on}_mean_auroc": scores["mean_auroc"]["value"]}
    save_checkpoint(folder.best, checkpoint.state_dict, facts)
    minutes = round(book.seconds / 60, 2)
    results = {
        "headline": headline(scores),
        "protocol": facts["protocol"] | {"split": config.select_on, "minutes": minutes},
        "best": book.best,
        **decided,
        config.select_on: scores,
        "history": book.history,
    }
    folder.write_results(results)
    report.training_report(config, folder, reader, readings, results)
    if config.json:
        print_json({"weights": str(folder.best), **results})
    else:
        print(report.scores_text(scores))
        print(f"weights: {folder.best}\nreport: {folder.report}")


def headline(scores: dict[str, Any]) -> dict[str, float | None]:
    """Return the numbers that folds are compared by."""
    found = {"mean_auroc": scores["mean_auroc"]["value"]}
    if "accuracy" in scores:
        found["accuracy"] = scores["accuracy"]["value"]
    return found


def calibrated(
    readings: Readings, exclusive: bool, findings: tuple[str, ...], fit: bool
) -> dict[str, Any]:
    """Return temperature and thresholds (Youden's) from validation images.

    Of few images a temperature says more of their chance than of the network, and is not fitted.
    """
    labels = readings.labels
    enough = fit and len(labels) >= _ENOUGH
    truth = np.where(np.isnan(labels).any(1), UNKNOWN, labels.argmax(1)) if exclusive else labels
    temperature = fit_temperature(readings.logits, truth, exclusive) if enough else 1.0
    thresholds = {}
    if not exclusive:
        chance = 1 / (1 + np.exp(-readings.logits.astype(np.float64) / temperature))
        for k, name in enumerate(findings):
            point = operating_points(chance[:, k], labels[:, k])["youden"]["threshold"]
            if not np.isnan(point):
                # Half way to the next image, which no rounding of another batch or format reaches.
                below = chance[(chance[:, k] < point) & ~np.isnan(labels[:, k]), k]
                thresholds[name] = float((point + below.max(initial=0.0)) / 2)
    return {"temperature": float(temperature), "thresholds": thresholds}


def fit_statistics(config: TrainConfig, folder: RunFolder) -> None:
    """Fit the linear model on image statistics, the rival that needs no network."""
    if config.data.colours:
        raise ConfigError("--model statistics is of grey values: leave out --data.colours.")
    if config.weights or config.resume or config.tuning != "full":
        raise ConfigError("--model statistics takes no --weights, --resume or --tuning.")
    gathered, chosen = _with_findings(config)
    store = reading(config)
    if config.dry_run:
        store.read(gathered.train[0].path)
        print("dry run: options and data are in order; nothing was written.")
        return
    start = time.monotonic()
    folder.save_config_text(dump_config(config))
    model = statistics.fit(
        (store.read(record.path) for record in gathered.train),
        label_matrix(gathered.train),
        [patient_key(record) for record in gathered.train],
        gathered.exclusive,
    )
    facts = {
        "task": CLASSIFICATION,
        "classes": list(gathered.findings),
        "multilabel": not gathered.exclusive,
        "reading": {"resize": 0, "window": list(config.data.window)},
        **common_facts(config, gathered, chosen, normalisation(config)),
    }
    model.save(folder.best, **facts)
    book = RunBook(folder, dict)
    book.seconds = time.monotonic() - start
    _finish(config, folder, chosen, book)
