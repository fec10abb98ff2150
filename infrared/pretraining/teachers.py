"""Teachers of the distillations: opening them, and choosing UNIP's layer by NMI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, Subset

from crossband.infrared.data.images import batches, spread
from crossband.infrared.pretraining.config import PretrainConfig
from crossband.infrared.unip.analysis import choose_layer, measure
from crossband.infrared.unip.vit_files import (
    OpenedViT,
    mae_arguments,
    model_arguments,
    open_vit,
    random_vit,
)
from crossband.shared.backbones.vit import ViTTrunk
from crossband.shared.cli.output import format_table
from crossband.shared.devices import select_device
from crossband.shared.errors import ConfigError
from crossband.shared.pretraining.g2sd import load_teacher
from crossband.shared.pretraining.mae import MAE

_BATCH = 8  # images at a time when the layers are measured


def unip_teacher(config: PretrainConfig) -> OpenedViT:
    """Open the teacher that the options name.

    Raises:
        ConfigError: none, or a random one without a size.
        CheckpointError: a file that is no plain ViT.
    """
    if not config.teacher:
        raise ConfigError(
            "--method unip needs a teacher: give --teacher FILE (MAE, iBOT, DINO, or a checkpoint "
            "of `pretrain --method mae`)."
        )
    if config.teacher != "random":
        return open_vit(config.teacher, config.teacher_model)
    if config.teacher_model is None:
        raise ConfigError("--teacher random needs a size: give --teacher_model vit_base.")
    return random_vit(config.teacher_model, config.size, config.seed)


def mae_teacher(path: str, size: str | None, blocks: int) -> tuple[MAE, dict[str, Any]]:
    """Read a whole masked autoencoder as G2SD's teacher.

    Args:
        path: File, ours or the authors'.
        size: Name of the model, as mae_vit_base_dec512d8b; None: what our checkpoint says, or what
            the shapes do.
        blocks: Decoder blocks to keep.

    Returns:
        The frozen network, and what it was built with.

    Raises:
        CheckpointError: not a masked autoencoder, or its decoder is missing.
    """
    arguments = model_arguments(size, {}) if size else mae_arguments(path)
    return load_teacher(MAE(**arguments), path, blocks), arguments


def distilled_layer(
    config: PretrainConfig, teacher: ViTTrunk, images: Dataset[dict[str, Tensor]]
) -> dict[str, Any]:
    """Return the layer to distil, counted from 1, and the NMI of all where that chose it.

    Args:
        config: Options: a layer, or target and number of images for the choice.
        teacher: A ViT.
        images: To choose on.

    Raises:
        ConfigError: a layer that the teacher does not have.
    """
    if config.teacher_layer:
        if not 1 <= config.teacher_layer <= len(teacher.blocks):
            raise ConfigError(
                f"--teacher_layer {config.teacher_layer}: the teacher has layers 1 to "
                f"{len(teacher.blocks)}; leave it out to choose by NMI."
            )
        return {"layer": config.teacher_layer}
    if config.nmi_images < 1:
        raise ConfigError(f"--nmi_images {config.nmi_images} must be at least 1.")
    device = select_device(config.device)
    indices = spread(range(len(images)), config.nmi_images)  # type: ignore[arg-type]
    layers, _ = measure(teacher.to(device), batches(Subset(images, indices), _BATCH, device))
    curve = [layer.nmi for layer in layers]
    return {
        "layer": choose_layer(curve, config.nmi_target),
        "nmi": curve,
        "nmi_images": len(indices),
        "nmi_target": config.nmi_target,
    }


def nmi_table(curve: Sequence[float], layer: int, target: float) -> str:
    """Return the NMI of a teacher's layers as text, the chosen one marked."""
    rows = [
        (number, value, f"nearest {target:g}" if number == layer else "")
        for number, value in enumerate(curve, start=1)
    ]
    return format_table(("layer", "NMI", "chosen"), rows)
