"""`crossband.shared.load`: from a checkpoint or exported file to something that predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossband.shared.checkpoints import read_config
from crossband.shared.cli.domain import load_object
from crossband.shared.errors import CheckpointError
from crossband.shared.registry import domain_packages


def load(path: str | Path, **options: Any) -> Any:
    """Load a trained model with all it needs to predict.

    Args:
        path: A checkpoint (.safetensors), or what `export` made of one (.onnx, .pt2).
        options: Of the task's loader, e.g. `device="cpu"`.

    Returns:
        An object with `predict`, e.g. `crossband.spatiotemporal.forecast.Forecaster`.

    Raises:
        CheckpointError: missing, foreign or damaged file, or no installed domain for its task.
    """
    from crossband.shared.export import is_exported, load_exported

    config = load_exported(path)[1] if is_exported(path) else read_config(path)
    loaders: dict[str, str] = {}
    for package in domain_packages().values():
        loaders |= load_object(f"{package}.catalog:LOADERS")
    task = config.get("task")
    if task not in loaders:
        raise CheckpointError(
            f"{path} is of the task '{task}', which no installed domain can run (there are: "
            f"{', '.join(sorted(loaders))})."
        )
    return load_object(loaders[task]).load(path, **options)
