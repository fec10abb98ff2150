"""A checkpoint of `crossband medical train` as a MONAI bundle that gives the same results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossband.medical.networks import CLASSIFICATION, SEGMENTATION, require_task
from crossband.medical.segmenter import OVERLAP
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
    tuning, head = model.get("tuning") or {}, model.get("head")
    if tuning.get("kind", "linear") == "linear":  # it only froze parameters
        tuning = {}
    if not tuning and not head:
        return None
    return {
        "_target_": f"{_HERE}.create_tuned",
        "name": model["name"],
        "tuning": tuning,
        **({"head": head} if head else {}),
        **model.get("arguments", {}),
    }


def reading_of(config: Mapping[str, Any]) -> Reading:
    """Return transforms that read files as the library does."""
    read = dict(config.get("reading") or {})
    if read.get("volumes"):
        return _of_volumes(config, read)
    segments = config["task"] == SEGMENTATION
    sliding, colours = bool(read.get("sliding")), bool(read.get("colours"))
    common = _common(config)
    shown: Node = {"window": "@window", "keep_ids": "@keep_ids"}
    if colours:
        shown["colours"] = True
    how: Node = {"resize": read.get("resize", 0)}
    if segments:
        how = {"whole": True} if sliding else {"stretch": True}
    image: list[Node] = [{"_target_": f"{_HERE}.LoadRadiographd", **common, **how, **shown}]
    training: list[Node] = [{"_target_": f"{_HERE}.RandLoadRadiographd", **common, **shown}]
    validation = image
    inferer: Node = {"_target_": "SimpleInferer"}
    if segments:
        validation = [*image, _mask(config, "LoadMaskd", len(config["classes"]), sliding)]
        warp: Node = {"_target_": f"{_HERE}.RandWarpd", "keys": ["image", "label"]}
        warp |= {"mean": common["mean"], "std": common["std"]}
        warp |= {"colours": True} if colours else {}
        training = [*validation, warp]
        if sliding:
            side = [common["size"]] * 2
            crop = {"_target_": "RandSpatialCropd", "keys": ["image", "label"], "roi_size": side}
            training.insert(-1, crop | {"random_size": False})
            inferer = {
                "_target_": "SlidingWindowInferer",
                "roi_size": side,
                "sw_batch_size": 4,
                "overlap": OVERLAP,
                "mode": "gaussian",
            }
    listing = {"_target_": f"{_HERE}.list_radiographs", "folder": "@dataset_dir", **shown}
    restore: Node = {"_target_": f"{_HERE}.RestoreSized", "keys": "pred"}
    return Reading(
        image=image,
        training=training,
        validation=validation,
        listing=listing,
        restore=[restore | ({"crop": True} if sliding else {})],
        restores_logits=True,
        # MONAI writes images as (C, W, H).
        before_saving=[{"_target_": "Transposed", "keys": "pred", "indices": [0, 2, 1]}],
        settings=_settings(read),
        grey=not colours,
        inferer=inferer,
    )


def _of_volumes(config: Mapping[str, Any], read: Mapping[str, Any]) -> Reading:
    """Return transforms that read volumes as stacks of slices; the network sees each by itself."""
    common, keys = _common(config), ["image", "label"]
    how: Node = {"window": "@window", "keep_ids": "@keep_ids", "axis": read.get("axis", "auto")}
    sequences: Node = {"sequences": list(read.get("sequences") or [])}
    sliding = bool(read.get("sliding"))
    whole: Node = {"whole": True} if sliding else {}
    load: Node = {"_target_": f"{_HERE}.LoadVolumed", **common, **how, **sequences, **whole}
    masks = [_mask(config, "LoadVolumeMaskd", list(config["classes"]), sliding) | how, load]
    slices = [
        {
            "_target_": "RandSpatialCropd",
            "keys": keys,
            "roi_size": [*[common["size"]] * 2, 1],
            "random_size": False,
        },
        {"_target_": "SqueezeDimd", "keys": keys, "dim": -1},
        {
            "_target_": f"{_HERE}.RandWarpd",
            "keys": keys,
            "mean": common["mean"],
            "std": common["std"],
            "colours": bool(sequences["sequences"]),
        },
    ]
    listing = {"_target_": f"{_HERE}.list_volumes", "folder": "@dataset_dir", **how, **sequences}
    inferer: Node = {
        "_target_": "SliceInferer",
        "roi_size": [common["size"]] * 2,
        "spatial_dim": 2,
        "sw_batch_size": 8,
        **({"overlap": OVERLAP, "mode": "gaussian"} if sliding else {}),
    }
    restore: Node = {"_target_": f"{_HERE}.RestoreVolumed", "keys": "pred"}
    return Reading(
        image=[load | {"several": True}],
        training=[*masks, *slices],
        validation=masks,
        listing=listing,
        restore=[restore | ({"crop": True} if sliding else {})],
        restores_logits=True,
        settings=_settings(read),
        grey=not sequences["sequences"],
        inferer=inferer,
        output_ext=".nii.gz",
    )


def _common(config: Mapping[str, Any]) -> Node:
    mean, std = (list(config["normalisation"][name]) for name in ("mean", "std"))
    return {"keys": "image", "size": config["input_size"][0], "mean": mean, "std": std}


def _mask(config: Mapping[str, Any], kind: str, classes: int | list[str], whole: bool) -> Node:
    found: Node = {"_target_": f"{_HERE}.{kind}", "keys": "label", "classes": classes}
    found["size"] = config["input_size"][0]
    if config.get("mask_values"):
        found["values"] = list(config["mask_values"])
    return found | ({"whole": True} if whole else {})


def _settings(read: Mapping[str, Any]) -> dict[str, Any]:
    return {"window": list(read.get("window") or []), "keep_ids": False}
