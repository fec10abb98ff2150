"""`crossband infrared export`."""

from __future__ import annotations

from pathlib import Path

import torch

from crossband.infrared.config import ExportConfig
from crossband.infrared.networks import load_trained
from crossband.shared.cli.output import print_json
from crossband.shared.errors import ConfigError
from crossband.shared.export import SUFFIXES, export_model


def export(config: ExportConfig) -> None:
    """Write a checkpoint as ONNX or .pt2 of one window size, checked against PyTorch."""
    model, checkpoint = load_trained(config.weights)
    window = checkpoint.config["window"]
    side = config.size or window["size"]
    if side < 32 or side % 32:
        raise ConfigError(f"--size {side}: give a multiple of 32.")
    path = Path(config.out or Path(config.weights).with_suffix(SUFFIXES[config.format]))
    if path.resolve() == Path(config.weights).resolve() or path.suffix != SUFFIXES[config.format]:
        raise ConfigError(
            f"--out {path}: name a file that ends in {SUFFIXES[config.format]}, or leave it out."
        )
    image = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    stride = window["stride"] if side == window["size"] else max(1, 2 * side // 3)
    stored = checkpoint.config | {"window": {"size": side, "stride": stride}}
    difference = export_model(model, {"image": image}, path, stored)
    if config.json:
        print_json({"path": str(path), "largest_difference": difference, "size": side})
    else:
        print(
            f"{path}: windows of {side} x {side}, equal to PyTorch within {difference:.1e}, "
            "batch size free"
        )
