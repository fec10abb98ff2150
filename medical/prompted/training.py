"""`crossband medical train --model sam_vit_b_prompted`: the mask decoder learns from boxes.

The encoders are frozen, so an image's map is computed once and kept. The map of a changed image
would be another one: images are not augmented, boxes are.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from crossband.medical.config import TrainConfig
from crossband.medical.data.records import counted
from crossband.medical.data.transforms import IMAGENET
from crossband.medical.jobs import Job, common_facts, gather_for, reading
from crossband.medical.networks import PROMPTED
from crossband.medical.privacy import Names
from crossband.medical.prompted import evaluation
from crossband.medical.prompted.frames import REACH
from crossband.medical.prompted.items import BoxItems, look
from crossband.medical.prompted.maps import MapStore
from crossband.medical.prompted.task import PromptedTask
from crossband.medical.prompted.weights import SIZES, describe, freeze, load, required
from crossband.medical.segmentation import mask_classes, of_volumes, palette, with_masks
from crossband.shared.errors import ConfigError
from crossband.shared.training.callbacks import RunBook
from crossband.shared.training.run_folder import RunFolder

__all__ = ["SIZES", "describe", "freeze", "load", "prepare"]

_PATCH = 16
_UPSCALED = 4  # the decoder's masks have so many times the rows of the encoder's map


def prepare(config: TrainConfig) -> Job:
    """Return the job of `train --task segmentation --model sam_vit_b_prompted`.

    Raises:
        ConfigError: options that cannot be.
        DataError: images without masks.
    """
    required(config)
    _check(config)
    low = _low(config)
    gathered, chosen = gather_for(config)
    gathered.train = with_masks(gathered.train, "train")
    chosen = with_masks(chosen, config.select_on)
    if of_volumes([*gathered.train, *chosen]):
        raise ConfigError(f"--model {config.model} takes images, not volumes.")
    classes, names = mask_classes(config.data, gathered), Names(config.keep_ids)
    # The maps are kept, so the images themselves need not be.
    store = reading(replace(config, data=replace(config.data, cache_gb=0.0)))
    train_images, small = look(gathered.train, store, classes, config.size, low, names)
    val_images, _ = look(chosen, store, classes, config.size, low, names)
    gathered.notes.insert(0, "images are not augmented: their maps are computed once")
    if small:
        gathered.notes.insert(
            1, f"{counted(small, 'outline')} too small for masks of {low} x {low} not learned from"
        )
    train = BoxItems(train_images, low, reach=REACH * config.size, seed=config.seed)
    val = BoxItems(val_images, low, first=len(train_images))
    records = [image.record for image in (*train_images, *val_images)]
    maps = MapStore(records, store, config.data.cache_gb)

    def task(model: nn.Module) -> PromptedTask:
        freeze(model)
        return PromptedTask(
            model,
            config.optimizer,
            config.schedule,
            maps=maps,
            monitor="loss" if config.monitor == "loss" else "dice",
            compile=config.trainer.compile,
        )

    facts = {
        "task": PROMPTED,
        "classes": list(classes.names),
        "mask_values": list(classes.values),
        "palette": palette(len(classes)),
        "reading": {"window": list(config.data.window), "colours": config.data.colours},
        "prompt": "box",
        "description": f"{config.model}: {', '.join(classes.names[1:])} of images, from boxes",
        **common_facts(config, gathered, chosen, IMAGENET),
    }

    def finish(folder: RunFolder, book: RunBook) -> None:
        evaluation.finish(config, folder, chosen, book)

    return Job(classes.names, gathered, chosen, train, val, task, finish, facts)


def _check(config: TrainConfig) -> None:
    """Refuse options that would do nothing.

    Raises:
        ConfigError: there is one.
    """
    loss = config.loss
    if loss.name not in ("auto", "dice_ce"):
        raise ConfigError(f"--loss.name {loss.name}: --model {config.model} takes dice_ce.")
    weights = (loss.pos_weight, loss.class_weights, loss.balance, loss.label_smoothing)
    if any(weights) or loss.sampling != "images":
        raise ConfigError(
            f"--loss.pos_weight, class_weights, balance, label_smoothing and sampling do nothing "
            f"with --model {config.model}: leave them out."
        )
    if config.tuning != "full":
        raise ConfigError(
            f"--tuning {config.tuning}: of --model {config.model} the mask decoder is trained and "
            "nothing else: leave it out."
        )
    if config.monitor in ("auroc", "accuracy"):
        raise ConfigError(f"--monitor {config.monitor} is for findings: take dice or loss.")
    if config.sliding or config.statistics:
        raise ConfigError(
            f"--sliding and --statistics: --model {config.model} sees whole images under SAM's own "
            "statistics: leave them out."
        )


def _low(config: TrainConfig) -> int:
    """Return the side of the decoder's masks.

    Raises:
        ConfigError: patches that masks of four times as many rows do not divide.
    """
    patch = config.network.arguments.get("patch_size", _PATCH)
    if not isinstance(patch, int) or patch < _UPSCALED or patch % _UPSCALED:
        raise ConfigError(f"patch_size={patch} must be a multiple of {_UPSCALED}.")
    if config.size < patch or config.size % patch:
        raise ConfigError(
            f"--size {config.size} is not cut into whole patches of {patch} pixels: give a "
            f"multiple of {patch}; SAM's own is 1024."
        )
    return _UPSCALED * config.size // patch
