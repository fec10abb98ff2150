"""What a pre-training run learns from: the pool's images, or scenes of several sensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from crossband.infrared.catalog import MEAN, STD
from crossband.infrared.data.frames import Stretch
from crossband.infrared.data.images import frame_store, gather, shortened
from crossband.infrared.data.modalities import COLOUR, SceneImages, find_scenes, scene_stores
from crossband.infrared.data.pool import PoolImages
from crossband.infrared.pretraining.config import PretrainConfig
from crossband.shared.errors import ConfigError
from crossband.shared.registry import IMAGENET_MEAN, IMAGENET_STD

Item = TypeVar("Item")


@dataclass
class Material:
    """What there is to learn from.

    Attributes:
        train: Random crops.
        val: Middle squares of what is held back.
        probe: Middle squares of everything, to look at teachers with.
        data_sets: Name -> number of files.
        fingerprint: sha256 of all files' names, each with its folder's.
        normalisation: For the checkpoint.
        notes: What was left out, and why.
    """

    train: Dataset[dict[str, Tensor]]
    val: Dataset[dict[str, Tensor]]
    probe: Dataset[dict[str, Tensor]]
    data_sets: dict[str, int]
    fingerprint: str
    normalisation: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Number of items to train and to validate on."""
        return {"train": len(self.train), "val": len(self.val)}  # type: ignore[arg-type]

    def note_lines(self) -> list[str]:
        """Return lines on what was left out."""
        return shortened(self.notes)


def gather_material(config: PretrainConfig) -> Material:
    """Find the images of the options and split them.

    Raises:
        ConfigError: options that cannot work.
        DataError: nothing to learn from.
    """
    if config.size < 1:
        raise ConfigError(f"--size {config.size} must be at least 1.")
    if config.method == "multimae":
        return _scenes(config)
    if config.data.modalities:
        raise ConfigError(f"--data.modalities is for --method multimae, not {config.method}.")
    channels = config.arguments.get("in_chans", 3)
    if channels not in (1, 3):
        raise ConfigError(f"--arguments in_chans={channels}: images have 1 or 3 equal channels.")
    pool, data = gather(config.data), config.data
    store = frame_store(data)

    def items(paths: Sequence[Path], random: bool = False) -> PoolImages:
        return PoolImages(
            paths,
            config.size,
            store,
            random=random,
            seed=config.seed,
            smallest=data.smallest,
            largest=data.largest,
            channels=channels,
        )

    train, val = hold_back(pool.paths, data.val_fraction, config.seed)
    return Material(
        items(train, random=True),
        items(val),
        items(pool.paths),
        {name: len(files) for name, files in pool.files.items()},
        _digest(pool.paths),
        {"mean": list(MEAN[:channels]), "std": list(STD[:channels])},
        pool.notes,
    )


def hold_back(items: Sequence[Item], fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Hold back a part of the files or scenes to validate on, at least one.

    Raises:
        ConfigError: nothing would be left to train on.
    """
    count = max(1, round(fraction * len(items)))
    if not 0 < fraction < 1 or count >= len(items):
        raise ConfigError(
            f"--data.val_fraction {fraction:g} of {len(items)} image(s) leaves none to train or "
            "none to validate on: give more images, or another fraction."
        )
    held = set(np.random.default_rng(seed).permutation(len(items))[:count].tolist())
    return (
        [item for i, item in enumerate(items) if i not in held],
        [item for i, item in enumerate(items) if i in held],
    )


def _scenes(config: PretrainConfig) -> Material:
    data = config.data
    if data.datasets or data.exclude or data.per_class or data.ratio != 1 or data.channel != "grey":
        raise ConfigError(
            "--data.datasets, exclude, per_class, ratio and channel choose among the images of a "
            "pool: leave them out with --method multimae."
        )
    scenes = find_scenes(data.root, data.modalities)
    stores = scene_stores(data.modalities, data.cache_gb, Stretch.of(data.value_range))

    def items(files: Sequence[dict[str, Path]], random: bool = False) -> SceneImages:
        return SceneImages(
            files,
            config.size,
            stores,
            random=random,
            seed=config.seed,
            smallest=data.smallest,
            largest=data.largest,
        )

    train, val = hold_back(scenes.files, data.val_fraction, config.seed)
    normalisation = {
        name: {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
        if name == COLOUR
        else "each image by the mean and std of its middle 80 %"
        for name in data.modalities
    }
    paths = [path for files in scenes.files for path in files.values()]
    return Material(
        items(train, random=True),
        items(val),
        items(scenes.files),
        scenes.counts,
        _digest(paths),
        normalisation,
        scenes.notes,
    )


def _digest(paths: Iterable[Path]) -> str:
    names = "\n".join(sorted("/".join(path.parts[-2:]) for path in paths))
    return hashlib.sha256(names.encode()).hexdigest()
