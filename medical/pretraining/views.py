"""Methods that compare views of unlabelled images of any modality: LVM-Med and its rivals."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch

from crossband.medical.data.pool import BalancedPool, PictureStore, Pool, PoolImages, find_pool
from crossband.medical.data.transforms import IMAGENET
from crossband.medical.jobs import given_statistics
from crossband.medical.lvm_med.model import LVMMed
from crossband.medical.lvm_med.training import LVMMedTask
from crossband.medical.lvm_med.views import PairedViews
from crossband.medical.pretraining.config import MultiCropConfig, PretrainConfig
from crossband.medical.pretraining.encoders import load_encoder, read_ours
from crossband.medical.pretraining.plan import Plan
from crossband.medical.pretraining.report import write_views_report
from crossband.medical.pretraining.rivals import ContrastiveTask, create_rival
from crossband.medical.privacy import Names
from crossband.shared.backbones.base import Backbone
from crossband.shared.environment import machine
from crossband.shared.errors import ConfigError
from crossband.shared.registry import create_model
from crossband.shared.tasks.base import Task
from crossband.shared.training.callbacks import RunBook
from crossband.shared.training.run_folder import RunFolder

GRAPHS = "lvm-med"
# Names that people know, and backbones that give maps.
BACKBONES = {
    "resnet50": "lvm_med_resnet50",
    "sam_vit_b": "lvm_med_vit_base",
    "densenet121": "timm:densenet121",
    "convnext_tiny": "timm:convnext_tiny",
}
_FEWEST = 2  # images that can be compared


def prepare(config: PretrainConfig) -> Plan:
    """Find the images and build the method.

    Raises:
        ConfigError: options that cannot work.
        DataError: nothing to learn from.
        CheckpointError: weights that do not fit.
    """
    crops = crops_of(config)
    _check_batch(config)
    names = Names(False)
    pool = find_pool(
        config.data.root,
        names,
        axis=config.data.axis,
        windows=config.data.windows,
        unpack=config.data.unpack,
    )
    kept, held = pool.split(config.data.val_fraction, config.seed)
    store = PictureStore(config.data.cache_gb)
    balanced = BalancedPool(kept, store, names, copies=config.data.copies, seed=config.seed)
    held_images = PoolImages(held, store, names)
    _check_counts(config, len(balanced), len(held_images))
    normalise = given_statistics(config.statistics) if config.statistics else IMAGENET
    settings = {"normalisation": normalise, "seed": config.seed}
    train = PairedViews(balanced, crops, **settings)
    val = PairedViews(held_images, crops, varied=False, **settings)
    torch.manual_seed(config.seed)
    name, backbone = build_backbone(config)
    task = build_task(config, backbone)
    description = {
        "task": "pre-training",
        "method": config.method,
        "model": {"name": name, "arguments": config.arguments},
        "normalisation": asdict(normalise),
        "protocol": _protocol(config, crops, pool, kept, held, balanced),
    }

    def finish(folder: RunFolder, book: RunBook) -> None:
        left_out = {"skipped": pool.skipped, "notes": pool.notes}
        write_views_report(config, folder, task, val, description | left_out, book)

    return Plan(
        task,
        train,
        val,
        name,
        pool.counts,
        description,
        finish,
        smallest_batch=_FEWEST,
        notes=[
            *(f"skipped: {reason}" for reason in pool.skipped),
            *pool.notes,
            f"{len(balanced)} shown per epoch: images of small modalities come more than once",
        ],
    )


def crops_of(config: PretrainConfig) -> MultiCropConfig:
    """Return the crops, large ones of the size of the run.

    Raises:
        ConfigError: sizes that contradict each other.
    """
    crops, default = config.crops, MultiCropConfig()
    if len(crops.sizes) != 2 or crops.sizes[0] not in (default.sizes[0], config.size):
        shown = " ".join(map(str, crops.sizes))
        raise ConfigError(
            f"--crops.sizes {shown} and --size {config.size} disagree: give two sizes, of which "
            "the first is --size."
        )
    if len(crops.counts) == 2 and crops.counts[1] and crops.sizes[1] > config.size:
        raise ConfigError(
            f"Small crops of {crops.sizes[1]} pixels are larger than the large ones of --size "
            f"{config.size}: give --crops.sizes {config.size} {max(1, config.size // 2)}, or "
            "--crops.counts 2 0."
        )
    return replace(crops, sizes=[config.size, crops.sizes[1]])


def _check_batch(config: PretrainConfig) -> None:
    graphs, batch = config.method == GRAPHS, config.loader.batch_size
    fewest = max(_FEWEST, config.matching.graph_size if graphs else 0)
    if batch < fewest:
        what = f"a graph of --matching.graph_size {fewest}" if graphs else "the two it compares"
        raise ConfigError(
            f"--loader.batch_size {batch} is fewer images than {what}: give {fewest} or more."
        )
    if config.matching.k < 1:
        raise ConfigError(f"--matching.k {config.matching.k} must be at least 1, as 5.")
    other = "heads" if graphs else "matching"
    if getattr(config, other) != getattr(PretrainConfig(), other):
        raise ConfigError(
            f"--{other} says nothing to --method {config.method}: leave it out, or take "
            f"{'simclr, byol, vicreg, dino or barlow-twins' if graphs else GRAPHS}."
        )


def _check_counts(config: PretrainConfig, train: int, val: int) -> None:
    fewest = max(_FEWEST, config.matching.graph_size if config.method == GRAPHS else 0)
    if train < fewest:
        raise ConfigError(
            f"There are {train} images to train on, and --method {config.method} compares "
            f"{fewest}: give more by --data.root, or a smaller --matching.graph_size."
        )
    if val < _FEWEST:
        raise ConfigError(
            f"{val} image is held back to validate on, which cannot be compared: raise "
            f"--data.val_fraction {config.data.val_fraction:g}."
        )


def build_backbone(config: PretrainConfig) -> tuple[str, Backbone]:
    """Return name and network of what is pre-trained.

    Raises:
        ConfigError: an unknown network, or one without feature maps.
        CheckpointError: weights that cannot be read or do not fit.
    """
    model = config.model or "resnet50"
    name = BACKBONES.get(model, model)
    weights = None if config.resume else config.weights
    ours = read_ours(weights) if weights else None
    backbone = create_model(name, None if ours else weights, features_only=True, **config.arguments)
    if ours and weights:
        load_encoder(backbone, ours, weights)
    return name, backbone


def build_task(config: PretrainConfig, backbone: Backbone) -> Task:
    """Put a method around a backbone.

    Raises:
        ConfigError: arguments that the method does not take.
        MissingExtraError: lightly is not installed.
    """
    settings = (config.optimizer, config.schedule)
    if config.method != GRAPHS:
        rival = create_rival(config.method, backbone, **config.heads)
        return ContrastiveTask(rival, *settings, compile=config.trainer.compile)
    options = asdict(config.matching)
    workers = options.pop("workers")
    model = LVMMed(backbone, objective=options)
    return LVMMedTask(model, *settings, compile=config.trainer.compile, workers=workers)


def _protocol(
    config: PretrainConfig,
    crops: MultiCropConfig,
    pool: Pool,
    kept: Pool,
    held: Pool,
    balanced: BalancedPool,
) -> dict[str, Any]:
    by_modality = {
        name: {
            "train": kept.counts.get(name, 0),
            "shown_per_epoch": balanced.counts.get(name, 0),
            "val": held.counts.get(name, 0),
        }
        for name in pool.counts
    }
    graphs = {"matching": asdict(config.matching)} if config.method == GRAPHS else {}
    return {
        "images": {"train": sum(kept.counts.values()), "val": sum(held.counts.values())},
        "modalities": by_modality,
        "unreadable": len(pool.skipped),
        "sha256": pool.fingerprint,
        "size": config.size,
        "crops": asdict(crops),
        **(graphs or {"heads": config.heads}),
        "weights": config.weights,
        "batch_size": config.loader.batch_size * config.trainer.accumulate_grad_batches,
        "seed": config.seed,
        "machine": machine(),
    }
