"""From a crossband checkpoint to a bundle that MONAI runs."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import torch

from crossband.shared.bundles.folder import SCHEMA
from crossband.shared.bundles.reading import Reading, monai_reading
from crossband.shared.bundles.workflows import evaluate_config, inference_config, train_config
from crossband.shared.checkpoints import load_checkpoint
from crossband.shared.environment import versions
from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.files import atomic_path, json_text, write_text
from crossband.shared.registry import get_entry

TASKS = ("segmentation", "classification")
# Of a checkpoint's protocol: places on the machine that trained tell others nothing.
_LOCAL = ("pretrained", "machine")


def write_bundle(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    authors: str = "unknown",
    copyright: str = "unknown",  # noqa: A002 - MONAI's word
    data_licence: str = "",
    reading: Reading | None = None,
    network: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint as a MONAI bundle: weights, metadata, inference, training, evaluation.

    The checkpoint's configuration must say `task` (that ends in segmentation or classification),
    `model` (name in our registry, arguments) and `classes`; it may say `input_size` (H, W),
    `channels`, `value_range` of the files, `normalisation` (mean, std), `multilabel`, `temperature`
    of the logits, `modality`, `metrics`, `protocol`, `description`, `license` of the data. What it
    does not say comes from the model's catalog entry.

    Args:
        checkpoint: crossband's safetensors file.
        folder: To write; must not hold a bundle.
        authors: For the metadata.
        copyright: For the metadata.
        data_licence: Text of `docs/data_license.txt`.
        reading: How files are read; default: by MONAI's transforms.
        network: What builds the network; default: `create_model`.

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
    files = bundle_files(
        stored.config,
        folder.resolve().name,
        source=str(checkpoint),
        authors=authors,
        copyright=copyright,
        data_licence=data_licence,
        reading=reading,
        network=network,
    )
    for name, text in files.items():
        write_text(folder / name, text)
    with atomic_path(folder / "models" / "model.pt") as temporary:
        torch.save(dict(stored.state_dict), temporary)
    return folder


def bundle_files(
    config: dict[str, Any],
    name: str,
    *,
    source: str = "the checkpoint",
    authors: str = "unknown",
    copyright: str = "unknown",  # noqa: A002 - MONAI's word
    data_licence: str = "",
    reading: Reading | None = None,
    network: dict[str, Any] | None = None,
) -> dict[str, str]:
    """Return the texts of a bundle by their paths; all of it but the weights.

    Args:
        config: Of a checkpoint, see `write_bundle`.
        name: Of the bundle.
        source: What errors call the checkpoint.
        authors: For the metadata.
        copyright: For the metadata.
        data_licence: Text of `docs/data_license.txt`.
        reading: How files are read; default: by MONAI's transforms.
        network: What builds the network; default: `create_model`.
    """
    facts = _facts(config, source, name)
    facts["network"] = network or facts["network"]
    facts["reading"] = reading or monai_reading(facts)
    facts |= {"authors": authors, "copyright": copyright}
    facts["data_licence"] = data_licence or config.get("license") or "Not stated."
    configs = {
        "metadata": _metadata(facts),
        "inference": inference_config(facts),
        "train": train_config(facts),
        "evaluate": evaluate_config(facts),
    }
    files = {f"configs/{key}.json": json_text(c) + "\n" for key, c in configs.items()}
    return files | {
        "docs/README.md": _readme(facts),
        "docs/data_license.txt": f"{facts['data_licence']}\n",
        "LICENSE": f"{facts['licence']}\n",
    }


def _facts(config: dict[str, Any], source: str, name: str) -> dict[str, Any]:
    whole, model = config.get("task"), config.get("model", {})
    task = str(whole).rpartition(" ")[2]  # "medical classification"
    if task not in TASKS or "name" not in model:
        raise CheckpointError(
            f"{source} is of the task {whole!r}: bundles are written for {' and '.join(TASKS)}."
        )
    classes = config.get("classes")
    if not classes:
        raise CheckpointError(f"{source} names no classes, which a bundle's metadata must.")
    code = next((str(name) for name in classes if str(name).startswith(("$", "@", "%"))), None)
    if code:
        raise CheckpointError(
            f"{source} has the class {code!r}, which MONAI would take for code: rename it."
        )
    entry = None if ":" in model["name"] else get_entry(model["name"])
    shape = (entry.input_shape if entry else None) or (3, 224, 224)
    normalisation = config.get("normalisation") or {}
    channels = int(config.get("channels", shape[0]))
    mean = normalisation.get("mean") or (entry.mean if entry and channels == 3 else None)
    std = normalisation.get("std") or (entry.std if entry and channels == 3 else None)
    return {
        "name": name,
        "task": task,
        "network": {
            "_target_": "crossband.shared.create_model",
            "name": model["name"],
            **model.get("arguments", {}),
        },
        "classes": list(classes),
        "multilabel": bool(config.get("multilabel", False)),
        "size": list(config.get("input_size") or shape[1:]),
        "channels": channels,
        "value_range": list(config.get("value_range", (0, 255))),
        "mean": list(mean or [0.0] * channels),
        "std": list(std or [1.0] * channels),
        "modality": config.get("modality", "n/a"),
        "temperature": config.get("temperature", 1.0),
        "metrics": config.get("metrics", {}),
        "protocol": {k: v for k, v in config.get("protocol", {}).items() if k not in _LOCAL},
        "description": config.get("description") or f"{model['name']} for {whole}",
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
    if facts["reading"].grey:
        channels = ("grey",) * facts["channels"]
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
        "data_license": facts["data_licence"],
        "eval_metrics": facts["metrics"],
        "eval_protocol": facts["protocol"],
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
    if facts["task"] == "segmentation":
        label, results = '"label": "masks/a.png"', "Results have the size of the file"
    else:
        label = '"label": [0, 1, ...]' if facts["multilabel"] else '"label": 0'
        results = "Results are a table, `predictions.csv`, with a column per class"
    hidden = "keep_ids" in facts["reading"].settings
    names = (
        ". Images are called by a digest of their bytes; `--keep_ids True` names the files"
        if hidden
        else ""
    )
    return f"""# {facts["name"]}

{facts["description"]}. Written by crossband; research only, not a medical device.

    crossband bundle run {facts["name"]}/ images/ --out out/
    python -m monai.bundle run --bundle_root {facts["name"]} \
--config_file {facts["name"]}/configs/inference.json --dataset_dir images/ --output_dir out/
    crossband bundle finetune {facts["name"]}/ --data ours/ --out ours_bundle/

Classes: {", ".join(facts["classes"])}. Images are brought to {facts["size"][0]} x \
{facts["size"][1]}. {results}{names}.
Training and evaluation read `dataset.json` in `dataset_dir`:
`{{"training": [{{"image": "a.png", {label}}}], "validation": [...]}}`.
"""
