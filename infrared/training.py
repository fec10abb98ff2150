"""`crossband infrared train`: fine-tuning, probing, and rivals under the same loop."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crossband.infrared import networks
from crossband.infrared.config import DataConfig, LossConfig, TrainConfig
from crossband.infrared.data.classes import palette
from crossband.infrared.data.crops import (
    FixedImages,
    Frames,
    Normalisation,
    Scale,
    TrainCrops,
    WholeImages,
)
from crossband.infrared.data.frames import Stretch
from crossband.infrared.data.layouts import Item, Labelled, find
from crossband.infrared.report import write_training_report
from crossband.infrared.scoring import best_threshold
from crossband.infrared.segment import Segmenter, infer
from crossband.shared.checkpoints import load_checkpoint, save_checkpoint
from crossband.shared.cli.parser import dump_config
from crossband.shared.environment import machine
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.files import list_digest
from crossband.shared.registry import IMAGENET_MEAN, IMAGENET_STD
from crossband.shared.tasks.segmentation import SegmentationTask
from crossband.shared.training.loop import Data, fit, is_main_process
from crossband.shared.training.resume import stored_options
from crossband.shared.training.run_folder import RunFolder

# Of the segmentation configurations of UNIP; those of pre-training differ in the last digits.
_THERMAL = Normalisation((96.9255,) * 3, (47.8976,) * 3)
_COLOURS = Normalisation(
    tuple(255 * value for value in IMAGENET_MEAN), tuple(255 * value for value in IMAGENET_STD)
)

_SMALLEST_BATCH = 2  # for batch norms over maps of one place, as in UPerHead's pooling


@dataclass
class Material:
    """What there is to learn from.

    Attributes:
        classes: Names by id.
        train: Items to train on.
        val: Items to validate on.
        frames: Reads them.
        normalisation: Of images.
        scale: Size of images in the network.
        notes: What was left out, and why.
    """

    classes: tuple[str, ...]
    train: list[Item]
    val: list[Item]
    frames: Frames
    normalisation: Normalisation
    scale: Scale
    notes: list[str]


def train(config: TrainConfig) -> None:
    """Train a segmentation network; leave the best weights and a report."""
    if config.resume:
        folder = RunFolder.existing(config.resume)
        from crossband.infrared.cli import DOMAIN

        config = stored_options(DOMAIN.verbs["train"], folder, config)
    else:
        folder = RunFolder.create(config.out, config.model)
    material = gather(config.data, config.seed)
    description = networks.describe(config.model, config.network, len(material.classes))
    torch.manual_seed(config.seed)
    # Convolutions are faster over channels that lie together, and tokens lie so anyway.
    model = networks.build(description).to(memory_format=torch.channels_last)
    loaded = None
    if config.weights:  # a resumed run has taken them over already
        told = f"as the run began: {config.weights}"
        loaded = told if config.resume else networks.load_pretrained(model, config.weights)
    task = build_task(model, config, material)
    train_set, val_set = data_sets(config, material)
    if is_main_process() and not config.quiet:
        print(_summary(config, folder, material, model, loaded), flush=True)
    if config.dry_run:
        first = train_set[0]
        with torch.no_grad():
            task.eval().loss({name: value[None] for name, value in first.items()})
        print("dry run: options, data and one batch are in order; nothing was written.")
        return
    if config.threshold == "validation" and len(material.classes) != 2:
        raise ConfigError(
            f"--threshold validation is for two classes, and there are {len(material.classes)}."
        )
    smallest = _SMALLEST_BATCH if config.network.tuning == "full" else 1
    if min(config.loader.batch_size, len(train_set)) < smallest:
        raise ConfigError(
            f"--loader.batch_size {config.loader.batch_size} of {len(train_set)} image(s): the "
            "heads' batch norms need two images or more in training."
        )
    if not config.resume:
        folder.save_config_text(dump_config(config))
    facts = checkpoint_facts(config, material, description)
    data = Data(
        train_set,
        val_set,
        config.loader,
        config.seed,
        val_batch_size=1,
        smallest_batch=smallest,
    )
    book = fit(
        task,
        data,
        folder,
        config.trainer,
        config,
        describe=lambda: facts,
        resume=bool(config.resume),
    )
    if not is_main_process():
        return
    if config.threshold == "validation":
        set_threshold(config, folder, material)
    write_training_report(config, folder, material, book)


def gather(data: DataConfig, seed: int) -> Material:
    """Find the data sets, and what to train and validate on.

    Raises:
        ConfigError: no data given, or a split that cannot be.
        DataError: data sets of different classes, a split without images, or unequal sizes.
    """
    if not data.root:
        raise ConfigError("There is nothing to train on: give --data.root.")
    sets = [find(root, data.layout) for root in data.root]
    first = sets[0]
    for other in sets[1:]:
        if other.classes != first.classes or other.binary != first.binary:
            raise DataError(
                f"{first.root} has {len(first.classes)} classes and {other.root} "
                f"{len(other.classes)}, or others: train on data sets of the same classes."
            )
    train = [item for one in sets for item in labelled(one, data.train)]
    val = [item for one in sets if data.val in one.splits for item in labelled(one, data.val)]
    if not val and data.val != "val":
        val = [item for one in sets for item in labelled(one, data.val)]
    if not val:
        count = max(1, round(data.val_fraction * len(train)))
        if not 0 < data.val_fraction < 1 or count >= len(train):
            raise ConfigError(
                f"--data.val_fraction {data.val_fraction:g} of {len(train)} image(s) leaves none "
                "to train or none to validate on."
            )
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
        val = [train[i] for i in sorted(order[:count])]
        train = [train[i] for i in sorted(order[count:])]
    frames = Frames(
        len(first.classes),
        binary=first.binary,
        channel=data.channel,
        stretch=Stretch.of(data.value_range, always=data.stretch),
    )
    scale = Scale(data.scale.short_side, data.scale.long_side, data.scale.factor)
    normalisation = _COLOURS if data.channel == "rgb" else _THERMAL
    notes = [note for one in sets for note in one.lonely]
    return Material(first.classes, train, val, frames, normalisation, scale, notes)


def labelled(data: Labelled, split: str) -> list[Item]:
    """Return the items of a split that have a mask.

    Raises:
        DataError: no such split, or none labelled.
    """
    if split not in data.splits:
        raise DataError(
            f"{data.root} has no split {split!r}: there are {', '.join(data.splits) or 'none'}."
        )
    items = [item for item in data.splits[split] if item.mask]
    if not items:
        raise DataError(f"{data.root}: the split {split!r} holds no image with a mask.")
    return items


def build_task(model: nn.Module, config: TrainConfig, material: Material) -> SegmentationTask:
    """Return the task: network, losses, and how validation images go through."""
    window = window_facts(config)

    def through(image: Tensor) -> Tensor:
        return infer(model, image, config.window, window)

    return SegmentationTask(
        model,
        config.optimizer,
        config.schedule,
        loss=config.loss.name,
        class_weights=class_weights(config.loss, material),
        avg_non_ignore=config.loss.avg_non_ignore,
        auxiliary_weight=config.loss.auxiliary_weight,
        infer=through,
        monitor=config.monitor,
        compile=config.trainer.compile,
    )


def class_weights(loss: LossConfig, material: Material) -> list[float]:
    """Return the weights of the classes in cross-entropy; none for equal ones.

    By `balance` they are the classes' shares of the labelled pixels to train on, to minus that
    power, times a constant that makes their mean over these pixels 1. A class that has none gets 1.

    Raises:
        ConfigError: another number of weights than of classes, or weights and a balance.
        DataError: a file that cannot be read.
    """
    given = loss.class_weights
    if given and len(given) != len(material.classes):
        raise ConfigError(
            f"--loss.class_weights has {len(given)} numbers for {len(material.classes)} classes: "
            "give one for each, or --loss.balance 0.5 to find them by the classes' pixels."
        )
    if loss.balance < 0 or (given and loss.balance):
        raise ConfigError(
            f"--loss.balance {loss.balance:g}: give a power above 0, or --loss.class_weights, "
            "not both."
        )
    if not loss.balance:
        return given
    pixels = np.zeros(256)
    for item in material.train:
        pixels += np.bincount(material.frames.read(item)[1].ravel(), minlength=256)
    shares = pixels[: len(material.classes)] / max(pixels[: len(material.classes)].sum(), 1)
    weights = np.where(shares > 0, np.maximum(shares, 1e-12) ** -loss.balance, 0)
    weights /= max((shares * weights).sum(), 1e-12)
    return np.where(shares > 0, weights, 1.0).tolist()


def data_sets(config: TrainConfig, material: Material) -> tuple[Any, WholeImages]:
    """Return what is trained on and what is validated on.

    Raises:
        ConfigError: numbers that cannot be.
    """
    data = config.data
    for name, value, least, most in (
        ("crop", data.crop, 16, 1 << 14),
        ("repeats", data.repeats, 1, 1 << 20),
        ("on_target", data.on_target, 0, 1),
        ("cat_max_ratio", data.cat_max_ratio, 0, 1),
        ("scale.factor", data.scale.factor, 1e-3, 1e3),
        ("scale.short_side", data.scale.short_side, 0, 1 << 14),
        ("scale.long_side", data.scale.long_side, 16, 1 << 14),
    ):
        if not least <= value <= most:
            raise ConfigError(f"--data.{name} {value:g} must lie between {least:g} and {most:g}.")
    whole = (material.frames, material.normalisation, material.scale)
    val = WholeImages(material.val, *whole)
    if not data.augment:
        return FixedImages(material.train, *whole), val
    if len(data.ratio) != 2 or not 0 < data.ratio[0] <= data.ratio[1]:
        raise ConfigError(f"--data.ratio {data.ratio}: give the smallest and the largest factor.")
    crops = partial(TrainCrops, material.train, material.frames, material.normalisation)
    train = crops(
        size=data.crop,
        scale=material.scale,
        ratio=(data.ratio[0], data.ratio[1]),
        cat_max_ratio=data.cat_max_ratio,
        on_target=data.on_target,
        flips=data.flips,
        photometric=data.photometric,
        repeats=data.repeats,
        seed=config.seed,
    )
    return train, val


def set_threshold(config: TrainConfig, folder: RunFolder, material: Material) -> None:
    """Write into the checkpoint by how much class 1 has to be ahead to be chosen."""
    segmenter = Segmenter.load(folder.best, device=config.device, precision=config.precision)
    segmenter.offsets.zero_()  # a run that is resumed after its end has some already
    ahead = best_threshold(segmenter, material.val, material.frames, config.window)
    checkpoint = load_checkpoint(folder.best)
    text = f"class 1 where its logit is {ahead:.2f} ahead, chosen by IoU on the validation images"
    decided = {"offsets": [0.0, -ahead], "threshold": text}
    save_checkpoint(folder.best, checkpoint.state_dict, checkpoint.config | decided)


def window_facts(config: TrainConfig) -> dict[str, int]:
    """Return side and step of the windows that a checkpoint stores.

    Raises:
        ConfigError: windows that cannot be.
    """
    size = config.window.size or config.data.crop
    stride = config.window.stride or max(1, 2 * size // 3)
    if (size > 0 and not 1 <= stride <= size) or config.window.batch < 1:
        raise ConfigError(
            f"--window.stride {stride} must lie between 1 and the windows' {size} pixels, "
            f"--window.batch {config.window.batch} be at least 1."
        )
    return {"size": size, "stride": stride}


def checkpoint_facts(
    config: TrainConfig, material: Material, description: dict[str, Any]
) -> dict[str, Any]:
    """Return what a checkpoint says beside the weights."""
    return {
        "task": networks.TASK,
        "model": description,
        "classes": list(material.classes),
        "palette": [list(colour) for colour in palette(material.classes)],
        "reading": {
            "channel": config.data.channel,
            "value_range": list(config.data.value_range),
            "stretch": config.data.stretch,
        },
        "normalisation": {
            "mean": list(material.normalisation.mean),
            "std": list(material.normalisation.std),
        },
        "scale": asdict(material.scale),
        "window": window_facts(config),
        "protocol": {
            "images": {"train": len(material.train), "val": len(material.val)},
            "sha256": list_digest([item.name for item in (*material.train, *material.val)]),
            "pretrained": config.weights,
            "seed": config.seed,
            "machine": machine(),
        },
    }


def _summary(
    config: TrainConfig, folder: RunFolder, material: Material, model: nn.Module, loaded: Any
) -> str:
    count = sum(p.numel() for p in model.parameters())
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = "" if learned == count else f", {learned:,} trained"
    lines = [
        f"{config.model}: {count:,} parameters{frozen}, seed {config.seed}",
        f"classes: {', '.join(material.classes)}",
        f"images: {len(material.train)} to train on, {len(material.val)} to validate on",
        f"weights: {loaded or 'none, from scratch'}",
        *(f"note: {note}" for note in material.notes[:5]),
        f"run folder: {folder.path}",
    ]
    return "\n".join(lines)
