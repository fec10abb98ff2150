"""Masked autoencoders of ViTs and CNNs, on radiographs whose data set says whose they are."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from crossband.medical.catalog import AUTOENCODERS
from crossband.medical.config import SourceConfig
from crossband.medical.data.layouts import find
from crossband.medical.data.radiographs import RadiographStore
from crossband.medical.data.records import Collection, Record
from crossband.medical.data.splits import complete, folds, patients_split
from crossband.medical.data.tolerant import GoingOn
from crossband.medical.data.transforms import PRETRAINING, Normalisation
from crossband.medical.data.views import EvalViews, PretrainCrops
from crossband.medical.jobs import given_statistics
from crossband.medical.pretraining.config import PretrainConfig
from crossband.medical.pretraining.plan import Plan
from crossband.medical.pretraining.report import write_report
from crossband.medical.privacy import NamedStore, Names
from crossband.shared.environment import machine
from crossband.shared.errors import ConfigError, DataError, did_you_mean
from crossband.shared.files import list_digest
from crossband.shared.pretraining.mae import MAETask
from crossband.shared.registry import create_model
from crossband.shared.training.callbacks import RunBook
from crossband.shared.training.run_folder import RunFolder

_SAMPLE = 256  # images that mean and deviation are measured on
_MASKED = {"mae": 0.9, "cnn-mae": 0.75}
_BORROWED = ("root", "layout", "table", "columns", "views", "window", "cache_gb", "shrink")


@dataclass
class Material:
    """What there is to learn from.

    Attributes:
        train: Random crops.
        val: Middle squares of what is held back.
        data_sets: Name -> number of images.
        statistics: Name -> mean and deviation of its pixels.
        fingerprint: sha256 of all names.
        notes: What was left out, and why.
    """

    train: Dataset
    val: Dataset
    data_sets: dict[str, int]
    statistics: dict[str, Normalisation]
    fingerprint: str
    notes: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Number of images to train and to validate on."""
        return {"train": len(self.train), "val": len(self.val)}  # type: ignore[arg-type]


def prepare(config: PretrainConfig) -> Plan:
    """Find the images and build the network.

    Raises:
        ConfigError: options that cannot work.
        DataError: nothing to learn from.
        CheckpointError: weights that do not fit.
    """
    material = gather_material(config)
    torch.manual_seed(config.seed)
    name, arguments = describe(config)
    model = create_model(name, config.weights if not config.resume else None, **arguments)
    task = MAETask(model, config.optimizer, config.schedule, compile=config.trainer.compile)
    description = {
        "task": "pre-training",
        "method": config.method,
        "model": {"name": name, "arguments": arguments},
        "normalisation": _stored(material),
        "protocol": {
            "images": material.counts,
            "data_sets": material.data_sets,
            "statistics": {k: [v.mean[0], v.std[0]] for k, v in material.statistics.items()},
            "sha256": material.fingerprint,
            "size": config.size,
            "mask_ratio": arguments["mask_ratio"],
            "batch_size": config.loader.batch_size * config.trainer.accumulate_grad_batches,
            "seed": config.seed,
            "machine": machine(),
        },
    }

    def finish(folder: RunFolder, book: RunBook) -> None:
        write_report(config, folder, task, material.val, description, book)

    return Plan(
        task,
        material.train,
        material.val,
        name,
        material.data_sets,
        description,
        finish,
        smallest_batch=2 if config.method == "cnn-mae" else 1,
        notes=material.notes,
    )


def describe(config: PretrainConfig) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of the network.

    Raises:
        ConfigError: an unknown model.
    """
    ratio = config.mask_ratio or _MASKED[config.method]
    if config.method == "cnn-mae":
        model = config.model or "densenet121"
        if model.startswith("vit") or model in AUTOENCODERS.values():
            raise ConfigError(f"--method cnn-mae trains CNNs: {model} is for --method mae.")
        return "cnn_mae_densenet121", {"mask_ratio": ratio, "encoder": model, **config.arguments}
    model = (config.model or "vit_small").removeprefix("chest_mae_")
    if model.startswith("vit_") and (size := model.removeprefix("vit_")) in AUTOENCODERS:
        model = AUTOENCODERS[size]
    if not model.startswith("mae_vit"):
        names = [f"vit_{size}" for size in AUTOENCODERS]
        hint = did_you_mean(model, names) or f" There are: {', '.join(names)}, and mae_vit_*."
        raise ConfigError(f"--model {config.model} is no masked autoencoder.{hint}")
    return model, {"mask_ratio": ratio, "img_size": config.size, **config.arguments}


def gather_material(config: PretrainConfig) -> Material:
    """Find the images and split them by patients.

    Raises:
        ConfigError: options that cannot work.
        DataError: nothing to learn from.
    """
    if config.size < 1:
        raise ConfigError(f"--size {config.size} must be at least 1.")
    if not 0 < config.data.val_fraction < 1:
        raise ConfigError(f"--data.val_fraction {config.data.val_fraction:g} must be in (0, 1).")
    own = {f.name for f in fields(SourceConfig)} & set(_BORROWED)
    source = SourceConfig(**{name: getattr(config.data, name) for name in own})
    collections = find(source)
    store = NamedStore(
        RadiographStore(config.data.cache_gb, config.data.window, config.data.shrink), Names(False)
    )
    train: list[Record] = []
    val: list[Record] = []
    data_sets: dict[str, int] = {}
    statistics: dict[str, Normalisation] = {}
    whose: dict[str, str] = {}
    notes: list[str] = []
    for collection in collections:
        records = _wanted(collection, config.data.splits, notes)
        split = patients_split(records, config.seed, config.data.val_fraction, 0.0)
        held = [record for record in split if record.split == "val"]
        kept = [record for record in split if record.split == "train"]
        if not held or not kept:
            held, kept = _by_halves(records, config.seed)
        name = collection.root.name
        name = name if name not in data_sets else str(collection.root)
        data_sets[name] = len(records)
        statistics[name] = _statistics(config, collection, kept, store)
        whose |= {str(record.path): name for record in records}
        train, val = [*train, *kept], [*val, *held]
        notes += collection.notes

    def normalise(record: Record) -> Normalisation:
        return statistics[whose[str(record.path)]]

    crops = PretrainCrops(
        train,
        store,
        config.size,
        normalisation=normalise,
        scale=(config.data.smallest, config.data.largest),
        seed=config.seed,
    )
    squares = _Squares(val, store, config.size, normalise)
    names = [record.name for record in (*train, *val)]
    return Material(
        GoingOn(crops, train, Names(False)),
        GoingOn(squares, val, Names(False)),
        data_sets,
        statistics,
        list_digest(names),
        notes,
    )


class _Squares(Dataset):
    """Middle squares without labels, each with its data set's statistics."""

    def __init__(self, records: list[Record], store: NamedStore, size: int, normalise: Any) -> None:
        self.views = EvalViews(records, store, size)
        self.normalise = normalise

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.views.normalisation = self.normalise(self.views.records[int(index)])
        return {"image": self.views[index]["image"]}


def _wanted(collection: Collection, splits: list[str], notes: list[str]) -> list[Record]:
    """Return the images of the splits, or all of a set without any."""
    labelled = collection.findings or any(record.mask for record in collection.records)
    if labelled and all(record.split is None for record in collection.records):
        complete(collection, SourceConfig())  # as `train` draws, which tests on what was not seen
    there = {record.split for record in collection.records}
    if there == {None}:
        notes.append(
            f"{collection.root.name} has no split: all is learned from, also what `train` would "
            "draw to test on"
        )
        return collection.records
    found = [record for record in collection.records if record.split in splits]
    if not found:
        known = ", ".join(sorted(str(s) for s in there if s))
        raise DataError(
            f"{collection.root} has no image in the splits {', '.join(splits)}: it has {known}; "
            "name some by --data.splits."
        )
    left = len(collection.records) - len(found)
    if left:
        notes.append(f"{left} images of {collection.root.name} left out, of other splits")
    return found


def _by_halves(records: list[Record], seed: int) -> tuple[list[Record], list[Record]]:
    split = folds(records, 2, 0, seed)
    return [r for r in split if r.split == "val"], [r for r in split if r.split == "train"]


def _statistics(
    config: PretrainConfig, collection: Collection, records: list[Record], store: NamedStore
) -> Normalisation:
    """Return what is given, what the paper takes, or what is measured."""
    if config.statistics:
        return given_statistics(config.statistics)
    if collection.layout in PRETRAINING:
        return PRETRAINING[collection.layout]
    step = max(1, len(records) // _SAMPLE)
    sums, text = np.zeros(3), ""
    for record in records[::step]:
        try:
            values = store.read(record.path).astype(np.float64) / 255
        except DataError as error:  # told again when it is its turn
            text = str(error)
            continue
        sums += (values.size, values.sum(), np.square(values).sum())
    if not sums[0]:
        raise DataError(
            f"None of {len(records[::step])} images of {collection.root} can be read, as: {text}"
        )
    mean = sums[1] / sums[0]
    std = (sums[2] / sums[0] - mean**2) ** 0.5
    return given_statistics([round(float(mean), 4), round(float(std), 4)])


def _stored(material: Material) -> dict[str, Any]:
    """Return the statistics for the checkpoint, if they are the same for all data sets."""
    found = set(material.statistics.values())
    return asdict(found.pop()) if len(found) == 1 else {}
