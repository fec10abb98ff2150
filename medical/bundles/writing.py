"""A checkpoint of `crossband medical train` as a MONAI bundle that gives the same results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossband.medical.networks import CLASSIFICATION, SEGMENTATION, require_task
from crossband.shared.bundles.reading import Node, Reading
from crossband.shared.bundles.writing import bundle_files, write_bundle
from crossband.shared.checkpoints import read_config
from crossband.shared.errors import CheckpointError

_HERE = "crossband.medical.bundles.transforms"


def write(
    checkpoint: str | Path,
    out: str | Path,
    *,
    authors: str = "unknown",
    copyright: str = "unknown",  # noqa: A002 - MONAI's word
    data_licence: str = "",
) -> Path:
    """Write a checkpoint as a bundle.

    Args:
        checkpoint: Of `crossband medical train`.
        out: Folder to write; must not hold a bundle.
        authors: For the metadata.
        copyright: For the metadata.
        data_licence: Of the images that were trained on.

    Returns:
        The folder.

    Raises:
        CheckpointError: missing, foreign, damaged, or of another task.
        ConfigError: the folder holds a bundle already.
    """
    config = read_config(checkpoint)
    require_task(config, checkpoint, CLASSIFICATION, SEGMENTATION)
    if "base" in config:
        raise CheckpointError(
            f"{checkpoint} holds the tuned part alone, a bundle needs all: give best.safetensors."
        )
    return write_bundle(
        checkpoint,
        out,
        authors=authors,
        copyright=copyright,
        data_licence=data_licence,
        reading=reading_of(config),
        network=network_of(config),
    )


def files_of(config: Mapping[str, Any], name: str, **described: str) -> dict[str, str]:
    """Return the text files of a bundle by path, from what a checkpoint says of itself."""
    return bundle_files(
        dict(config), name, reading=reading_of(config), network=network_of(config), **described
    )


def network_of(config: Mapping[str, Any]) -> Node | None:
    """Return what builds the network, where more than the registry is needed."""
    model = config["model"]
    tuning = model.get("tuning") or {}
    if tuning.get("kind", "linear") == "linear":  # it only froze parameters
        return None
    return {
        "_target_": f"{_HERE}.create_tuned",
        "name": model["name"],
        "tuning": tuning,
        **model.get("arguments", {}),
    }


def reading_of(config: Mapping[str, Any]) -> Reading:
    """Return transforms that read files as the library does."""
    size, stretch = config["input_size"][0], config["task"] == SEGMENTATION
    mean, std = (list(config["normalisation"][name]) for name in ("mean", "std"))
    read = config.get("reading") or {}
    common: Node = {"keys": "image", "size": size, "mean": mean, "std": std}
    shown: Node = {"window": "@window", "keep_ids": "@keep_ids"}
    how: Node = {"stretch": True} if stretch else {"resize": read.get("resize", 0)}
    image: list[Node] = [{"_target_": f"{_HERE}.LoadRadiographd", **common, **how, **shown}]
    training: list[Node] = [{"_target_": f"{_HERE}.RandLoadRadiographd", **common, **shown}]
    validation = image
    if stretch:
        classes = len(config["classes"])
        label = {"_target_": f"{_HERE}.LoadMaskd", "keys": "label", "size": size}
        validation = [*image, label | {"classes": classes}]
        keys = ["image", "label"]
        warp = {"_target_": f"{_HERE}.RandWarpd", "keys": keys, "mean": mean, "std": std}
        training = [*validation, warp]
    listing = {"_target_": f"{_HERE}.list_radiographs", "folder": "@dataset_dir", **shown}
    return Reading(
        image=image,
        training=training,
        validation=validation,
        listing=listing,
        restore=[{"_target_": f"{_HERE}.RestoreSized", "keys": "pred"}],
        restores_logits=True,
        # MONAI writes images as (C, W, H).
        before_saving=[{"_target_": "Transposed", "keys": "pred", "indices": [0, 2, 1]}],
        settings={"window": list(read.get("window") or []), "keep_ids": False},
        grey=True,
    )
