"""`crossband spatiotemporal export`."""

from __future__ import annotations

from pathlib import Path

import torch

from crossband.shared.cli.output import print_json
from crossband.shared.export import SUFFIXES, export_model
from crossband.spatiotemporal.config import ExportConfig
from crossband.spatiotemporal.scheme import load_network


def export(config: ExportConfig) -> None:
    """Write a checkpoint as ONNX or .pt2, checked against PyTorch."""
    network, scheme, stored = load_network(config.weights)
    if config.horizon:
        network.horizon = config.horizon
        stored["scheme"]["horizon"] = config.horizon
    path = Path(config.out or Path(config.weights).with_suffix(SUFFIXES[config.format]))
    generator = torch.Generator().manual_seed(0)
    channels, size = len(scheme.variables), scheme.fit.target
    inputs = {"frames": torch.randn(2, scheme.history, channels, *size, generator=generator)}
    if network.climatology is not None:
        stored["climatology"] = network.climatology.tolist()
        times = scheme.history + network.frames_ahead
        inputs["background"] = torch.randn(2, times, channels, *size, generator=generator)
    difference = export_model(network, inputs, path, stored)
    if config.json:
        print_json({"path": str(path), "largest_difference": difference})
    else:
        print(f"{path}: equal to PyTorch within {difference:.1e}, batch size free")
