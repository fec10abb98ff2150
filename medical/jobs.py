"""What `train` needs of a task: what to learn from, what to minimise, how to finish."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from crossband.medical.catalog import MEAN, STD
from crossband.medical.config import TrainConfig
from crossband.medical.data.radiographs import RadiographStore
from crossband.medical.data.records import Collection, Record
from crossband.medical.data.splits import Gathered, gather
from crossband.medical.data.transforms import IMAGENET, Normalisation
from crossband.medical.privacy import NOT_A_DEVICE, NamedStore, Names
from crossband.shared.checkpoints import HEADER_KEY, read_config, read_state_dict
from crossband.shared.environment import machine
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.files import list_digest
from crossband.shared.tasks.base import Task
from crossband.shared.training.callbacks import RunBook
from crossband.shared.training.run_folder import RunFolder

# Networks whose pre-training saw images under ImageNet's statistics.
LVM_MED = ("lvm_med_resnet50", "lvm_med_vit_base", "sam_vit_b")
# Options that say which patients are in which split, where a set does not.
DRAWN_BY = ("seed", "test_fraction", "lists", "val_fraction", "folds", "fold")


@dataclass
class Job:
    """A task with its data.

    Attributes:
        classes: Names of the network's outputs.
        gathered: The data sets.
        val_records: Images that choose the weights.
        train: Items to learn from.
        val: Items to validate on.
        task: Makes the task of a network.
        finish: Adds to the best weights what is found on validation images; writes the report.
        facts: What the checkpoint says of task and reading.
    """

    classes: tuple[str, ...]
    gathered: Gathered
    val_records: list[Record]
    train: Dataset
    val: Dataset
    task: Callable[[nn.Module], Task]
    finish: Callable[[RunFolder, RunBook], None]
    facts: dict[str, Any] = field(default_factory=dict)


def gather_for(config: TrainConfig) -> tuple[Gathered, list[Record]]:
    """Return the data and the images that choose the weights.

    Raises:
        DataError: no image to train or to validate on.
        ConfigError: a number that cannot be.
    """
    _check_numbers(config)
    gathered = gather(config.data, labelled=config.task == "classification")
    chosen = getattr(gathered, config.select_on)
    for split, records in (("train", gathered.train), (config.select_on, chosen)):
        if not records:
            raise DataError(
                f"There is no image in the split {split!r}: give data that has one, or "
                "--data.val_fraction above 0."
            )
    return gathered, chosen


def _check_numbers(config: TrainConfig) -> None:
    least = {"size": config.size, "loader.batch_size": config.loader.batch_size}
    for name, value in least.items():
        if value < 1:
            raise ConfigError(f"--{name} {value} must be at least 1.")
    if config.data.shrink < 0:
        raise ConfigError(f"--data.shrink {config.data.shrink} must be at least 0.")
    parts = {
        "augment.flip": config.augment.flip,
        "augment.vertical_flip": config.augment.vertical_flip,
        "network.drop_path": config.network.drop_path,
    }
    for name, part in parts.items():
        if not 0 <= part <= 1:
            raise ConfigError(f"--{name} {part:g} is a probability: give 0 to 1.")
    for name in ("pos_weight", "class_weights"):
        values = getattr(config.loss, name)
        if any(value < 0 for value in values):
            shown = " ".join(f"{value:g}" for value in values)
            raise ConfigError(f"--loss.{name} {shown}: weights must be at least 0.")


def reading(config: TrainConfig) -> NamedStore:
    """Return what reads the images."""
    source = config.data
    store = RadiographStore(source.cache_gb, source.window, source.shrink, source.colours)
    return NamedStore(store, Names(config.keep_ids))


def normalisation(config: TrainConfig) -> Normalisation:
    """Return mean and deviation: those given, those of the weights, NIH's, or ImageNet's.

    ImageNet's are those of images in colours, and of all that LVM-Med's networks see.

    Raises:
        ConfigError: not two numbers, or a deviation of 0.
    """
    known = known_normalisation(config)
    if known is not None:
        return known
    if config.data.colours or config.model in LVM_MED:
        return IMAGENET
    return Normalisation(MEAN, STD)


def known_normalisation(config: TrainConfig) -> Normalisation | None:
    """Return mean and deviation: those given, or those that our file of weights tells.

    Raises:
        ConfigError: not two numbers, or a deviation of 0.
    """
    if config.statistics:
        return given_statistics(config.statistics)
    if config.weights and config.weights.endswith(".safetensors"):
        if HEADER_KEY in read_state_dict(config.weights)[1]:
            stored = read_config(config.weights).get("normalisation") or {}
            if len(stored.get("mean", ())) == 3:
                return Normalisation(tuple(stored["mean"]), tuple(stored["std"]))
    return None


def given_statistics(values: list[float]) -> Normalisation:
    """Return the normalisation of a mean and a deviation.

    Raises:
        ConfigError: not two numbers, or a deviation that is not above 0.
    """
    if len(values) != 2 or values[1] <= 0:
        raise ConfigError(
            f"--statistics {' '.join(f'{v:g}' for v in values)}: give mean and deviation of pixels "
            "in 0 to 1, as 0.5056 0.252."
        )
    return Normalisation((values[0],) * 3, (values[1],) * 3)


def common_facts(
    config: TrainConfig, gathered: Gathered, chosen: list[Record], normalise: Normalisation
) -> dict[str, Any]:
    """Return what every checkpoint of the domain says beside the weights."""
    names = [record.name for record in (*gathered.train, *chosen)]
    selection = "validation images"
    if config.select_on == "test":
        selection = "TEST images, as the paper does: their scores are too good"
    return {
        "input_size": [config.size, config.size],
        "channels": 3,
        "value_range": [0, 255],
        "normalisation": asdict(normalise),
        "modality": modality(gathered.collections),
        "intended_use": NOT_A_DEVICE,
        "protocol": {
            "data_sets": [data_set_name(c) for c in gathered.collections],
            "images": {"train": len(gathered.train), config.select_on: len(chosen)},
            "patients": {"train": _patients(gathered.train), config.select_on: _patients(chosen)},
            "sha256": list_digest(names),
            "drawn_by": {name: getattr(config.data, name) for name in DRAWN_BY},
            "weights_chosen_on": selection,
            "pretrained": config.weights,
            "tuning": config.tuning,
            "seed": config.seed,
            "machine": machine(),
        },
    }


def modality(collections: list[Collection]) -> str:
    """Return what the images are, as far as the layouts of the data sets tell."""
    chests = all(c.layout in ("nih", "chexpert", "mimic", "covidx") for c in collections)
    return "X-ray" if chests else "unknown"


def data_set_name(collection: Collection) -> str:
    """Return what a checkpoint calls a data set."""
    return f"{collection.root.name} ({collection.layout})"


def _patients(records: list[Record]) -> int | None:
    found = {record.patient for record in records}
    return None if None in found else len(found)
