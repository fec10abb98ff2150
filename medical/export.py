"""`crossband medical export`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from crossband.medical.config import ExportConfig
from crossband.medical.networks import (
    CLASSIFICATION,
    DETECTION,
    PROMPTED,
    SEGMENTATION,
    STATISTICS,
    load_trained,
)
from crossband.shared.checkpoints import read_config
from crossband.shared.cli.output import print_json
from crossband.shared.errors import ConfigError
from crossband.shared.export import SUFFIXES, export_model


def export(config: ExportConfig) -> None:
    """Write a checkpoint as ONNX or .pt2, checked against PyTorch, or as a MONAI bundle."""
    if read_config(config.weights).get("model", {}).get("name") == STATISTICS:
        raise ConfigError(
            f"{config.weights} is the linear model on statistics, which has no network to export: "
            "evaluate and predict take it as it is."
        )
    task = read_config(config.weights).get("task")
    if task in (PROMPTED, DETECTION):
        raise ConfigError(
            f"{config.weights} is of the task '{task}', which has no export: findings, classes and "
            "masks have one; evaluate and predict take it as it is."
        )
    if config.format == "monai-bundle":
        _bundle(config)
        return
    model, checkpoint = load_trained(config.weights, CLASSIFICATION, SEGMENTATION)
    suffix = SUFFIXES[config.format]
    path = Path(config.out or Path(config.weights).with_suffix(suffix))
    if path.resolve() == Path(config.weights).resolve() or path.suffix != suffix:
        raise ConfigError(f"--out {path}: name a file that ends in {suffix}, or leave it out.")
    size = checkpoint.config["input_size"]
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    difference = export_model(_OfImages(model), {"image": image}, path, checkpoint.config)
    if config.json:
        print_json({"path": str(path), "largest_difference": difference, "size": size})
    else:
        print(
            f"{path}: images of {size[0]} x {size[1]}, equal to PyTorch within {difference:.1e}, "
            "batch size free"
        )


class _OfImages(nn.Module):
    """A network whose input is called `image`: timm and MONAI call theirs `x`."""

    def __init__(self, network: nn.Module) -> None:
        """Keep the network."""
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, S, S) to logits."""
        return self.network(image)


def _bundle(config: ExportConfig) -> None:
    from crossband.medical.bundles.writing import write

    out = config.out or str(Path(config.weights).parent / "bundle")
    folder = write(config.weights, out, authors=config.authors, data_licence=config.data_licence)
    if config.json:
        print_json({"bundle": str(folder)})
    else:
        print(f"{folder}: try `crossband bundle check {folder}`")
