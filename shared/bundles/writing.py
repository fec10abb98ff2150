"""From a crossband checkpoint to a bundle that MONAI runs."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import torch

from crossband.shared.bundles.folder import SCHEMA
from crossband.shared.bundles.workflows import evaluate_config, inference_config, train_config
from crossband.shared.checkpoints import load_checkpoint
from crossband.shared.environment import versions
from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.files import atomic_path, write_text
from crossband.shared.registry import get_entry

TASKS = ("segmentation", "classification")


def write_bundle(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    authors: str = "unknown",
    copyright: str = "unknown",  # noqa: A002 - MONAI's word
    data_licence: str = "",
) -> Path:
    """Write a checkpoint as a MONAI bundle: weights, metadata, inference, training, evaluation.

    The checkpoint's configuration must say `task` (segmentation or classification), `model`
    (name in our registry, arguments) and `classes`; it may say `input_size` (H, W), `channels`,
    `value_range` of the files, `normalisation` (mean, std), `multilabel`, `modality`, `metrics`,
    `description`. What it does not say comes from the model's catalog entry.

    Args:
        checkpoint: crossband's safetensors file.
        folder: To write; must not hold a bundle.
        authors: For the metadata.
        copyright: For the metadata.
        data_licence: Text of `docs/data_license.txt`.

    Returns:
        The folder.

    Raises:
        CheckpointError: a checkpoint that does not say what it is.
        ConfigError: the folder holds a bundle already.
    """
    folder = Path(folder)
    if (folder / "configs").exists():
        raise ConfigError(f"{folder} already holds a bundle: choose another folder.")
    stored = load_checkpoint(checkpoint)
    facts = _facts(stored.config, str(checkpoint), folder.name)
    facts |= {"authors": authors, "copyright": copyright}
    configs = {
        "metadata": _metadata(facts),
        "inference": inference_config(facts),
        "train": train_config(facts),
        "evaluate": evaluate_config(facts),
    }
    for name, config in configs.items():
        write_text(folder / "configs" / f"{name}.json", json.dumps(config, indent=2) + "\n")
    with atomic_path(folder / "models" / "model.pt") as temporary:
        torch.save(dict(stored.state_dict), temporary)
    write_text(folder / "docs" / "README.md", _readme(facts))
    write_text(folder / "docs" / "data_license.txt", data_licence or "Not stated.\n")
    write_text(folder / "LICENSE", f"{facts['licence']}\n")
    return folder


def _facts(config: dict[str, Any], source: str, name: str) -> dict[str, Any]:
    task, model = config.get("task"), config.get("model", {})
    if task not in TASKS or "name" not in model:
        raise CheckpointError(
            f"{source} is of the task {task!r}: bundles are written for {' and '.join(TASKS)}."
        )
    classes = config.get("classes")
    if not classes:
        raise CheckpointError(f"{source} names no classes, which a bundle's metadata must.")
    entry = None if ":" in model["name"] else get_entry(model["name"])
    shape = (entry.input_shape if entry else None) or (3, 224, 224)
    normalisation = config.get("normalisation") or {}
    channels = int(config.get("channels", shape[0]))
    mean = normalisation.get("mean") or (entry.mean if entry and channels == 3 else None)
    std = normalisation.get("std") or (entry.std if entry and channels == 3 else None)
    return {
        "name": name,
        "task": task,
        "model": {"name": model["name"], **model.get("arguments", {})},
        "classes": list(classes),
        "multilabel": bool(config.get("multilabel", False)),
        "size": list(config.get("input_size") or shape[1:]),
        "channels": channels,
        "value_range": list(config.get("value_range", (0, 255))),
        "mean": list(mean or [0.0] * channels),
        "std": list(std or [1.0] * channels),
        "modality": config.get("modality", "n/a"),
        "metrics": config.get("metrics", {}),
        "description": config.get("description") or f"{model['name']} for {task}",
        "licence": entry.licence if entry else "see the network's library",
        "references": [entry.paper] if entry and entry.paper else [],
    }


def _metadata(facts: dict[str, Any]) -> dict[str, Any]:
    import ignite
    import monai
    import numpy as np

    found = versions()
    classes = {str(i): name for i, name in enumerate(facts["classes"])}
    segments = facts["task"] == "segmentation"
    size = facts["size"]
    channels = ("red", "green", "blue") if facts["channels"] == 3 else ("image",)
    return {
        "schema": SCHEMA.name,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"written on {date.today().isoformat()}"},
        "monai_version": monai.__version__,
        "pytorch_version": str(torch.__version__).partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {
            "crossband": found["crossband"],
            "pytorch-ignite": ignite.__version__,
        },
        "name": facts["name"],
        "task": facts["task"],
        "description": facts["description"],
        "authors": facts["authors"],
        "copyright": facts["copyright"],
        "intended_use": "Research only. This is not a medical device.",
        "eval_metrics": facts["metrics"],
        "references": facts["references"],
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": facts["modality"],
                    "num_channels": facts["channels"],
                    "spatial_shape": size,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": {
                        str(i): channels[i] if i < len(channels) else f"channel {i}"
                        for i in range(facts["channels"])
                    },
                }
            },
            "outputs": {
                "pred": {
                    "type": "image" if segments else "probabilities",
                    "format": "segmentation" if segments else "classes",
                    "num_channels": len(classes),
                    "spatial_shape": size if segments else [],
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": classes,
                }
            },
        },
    }


def _readme(facts: dict[str, Any]) -> str:
    return f"""# {facts["name"]}

{facts["description"]}. Written by crossband; research only, not a medical device.

    crossband bundle run . images/ --out out/
    python -m monai.bundle run --config_file configs/inference.json --meta_file \
configs/metadata.json --bundle_root . --dataset_dir images/ --output_dir out/

Classes: {", ".join(facts["classes"])}. Images are brought to {facts["size"][0]} x \
{facts["size"][1]}; results have the size of the file. Training and evaluation read `dataset.json`
in `dataset_dir`: `{{"training": [{{"image": "a.png", "label": ...}}], "validation": [...]}}`.
"""
