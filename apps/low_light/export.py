"""`crossband low-light export`."""

from __future__ import annotations

from pathlib import Path

import torch

from crossband.apps.low_light.config import ExportConfig
from crossband.apps.low_light.enhance import load_tml
from crossband.shared.cli.output import print_json
from crossband.shared.errors import ConfigError
from crossband.shared.export import SUFFIXES, export_model


def export(config: ExportConfig) -> None:
    """Write a checkpoint as ONNX or .pt2 of one size, checked against PyTorch."""
    model, stored = load_tml(config.weights)
    native = (model.height, model.width)
    size = (config.size[0], config.size[-1]) if config.size else native
    if size != native and not model.any_size:
        raise ConfigError(
            f"--size {size[0]} {size[1]}: this network takes {native[0]} x {native[1]} only."
        )
    path = Path(config.out or Path(config.weights).with_suffix(SUFFIXES[config.format]))
    if path.resolve() == Path(config.weights).resolve() or path.suffix != SUFFIXES[config.format]:
        raise ConfigError(
            f"--out {path}: name a file that ends in {SUFFIXES[config.format]}, or leave it out."
        )
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    difference = export_model(model, {"image": image}, path, {**stored, "size": list(size)})
    if config.json:
        print_json({"path": str(path), "largest_difference": difference, "size": list(size)})
    else:
        print(
            f"{path}: {size[0]} x {size[1]}, equal to PyTorch within {difference:.1e}, "
            "batch size free"
        )
