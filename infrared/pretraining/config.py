"""Options of `pretrain` and `compress`. Torch-free: `--help` reads this and no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from crossband.infrared.config import FramesConfig
from crossband.shared.config import (
    LoaderConfig,
    OptimizerConfig,
    RunOptions,
    ScheduleConfig,
    TrainerConfig,
    option,
)

Method = Literal["unip", "mae", "g2sd", "self-distill", "multimae"]


@dataclass(kw_only=True)
class PoolConfig(FramesConfig):
    """What to pre-train on."""

    val_fraction: float = option(0.02, "part of the images held back to validate", advanced=True)
    smallest: float = option(0.2, "smallest crop, as part of an image's area", advanced=True)
    largest: float = option(1.0, "largest crop, as part of an image's area", advanced=True)
    modalities: dict[str, str] = option(
        factory=dict, help="multimae: folder of each modality, as rgb=vi thermal=ir"
    )


@dataclass(kw_only=True)
class PretrainConfig(RunOptions):
    """Options of `pretrain`."""

    method: Method = option("unip", "how to learn without labels")
    model: str | None = option(
        None, "network; default unip_small, mae_vit_small_dec512d2b, ... by method"
    )
    arguments: dict[str, Any] = option(
        factory=dict, help="arguments of the network: embed_dim=192 depth=6", advanced=True
    )
    size: int = option(224, "side of the images, pixels")
    weights: str | None = option(None, "start from this file (self-distill needs it)")
    teacher: str | None = option(
        None, "unip, g2sd: file of the teacher; `random` only to try things out"
    )
    teacher_model: str | None = option(
        None, "size of the teacher, as vit_large; default: as the file's shapes say", advanced=True
    )
    teacher_layer: int = option(
        0, "unip: layer of the teacher, counted from 1; 0: chosen by NMI on the images"
    )
    nmi_target: float = option(0.09, "unip: NMI that the chosen layer comes nearest", advanced=True)
    nmi_images: int = option(64, "unip: images that the layer is chosen on", advanced=True)
    supervised_blocks: int = option(
        4, "g2sd: decoder blocks of the teacher before the student's target", advanced=True
    )
    encoder_weight: float = option(0.0, "g2sd: weight of the encoder's loss", advanced=True)
    rounds: int = option(1, "self-distill: rounds", advanced=True)
    distill_weight: float = option(1.0, "self-distill: weight of the distillation", advanced=True)
    visible: int = option(
        0, "multimae: tokens that the encoder sees, of all kinds; 0: a sixth", advanced=True
    )
    data: PoolConfig = option(factory=PoolConfig)
    loader: LoaderConfig = option(factory=LoaderConfig)
    optimizer: OptimizerConfig = option(factory=OptimizerConfig)
    schedule: ScheduleConfig = option(factory=ScheduleConfig)
    trainer: TrainerConfig = option(factory=lambda: TrainerConfig(select="last"))
    out: str | None = option(None, "run folder; default runs/<method>-<time>")
    resume: str | None = option(None, "run folder of a stopped run to go on with")
    dry_run: bool = option(False, "check options, data and one batch, then stop")


@dataclass(kw_only=True)
class CompressConfig(RunOptions):
    """Options of `compress`."""

    weights: str = option(help="file of a pre-trained ViT")
    model: str | None = option(None, "its size, as vit_small; default: as the file's shapes say")
    ratio: float = option(2.0, "each layer gets so many times fewer parameters")
    rank: int = option(0, "rank of every layer, instead of the ratio; 0: by the ratio")
    targets: list[str] = option(
        factory=list, help="layers, with wildcards; default: every linear one", advanced=True
    )
    data: FramesConfig = option(factory=FramesConfig)
    size: int = option(224, "side that images are resized to, pixels")
    images: int = option(32, "images to compare the features on", advanced=True)
    steps: int = option(0, "steps of feature distillation on the images; 0: none")
    batch_size: int = option(16, "images per step", advanced=True)
    lr: float = option(1e-4, "learning rate of these steps", advanced=True)
    merge: bool = option(
        False, "write plain layers, of the old size, which every loader takes", advanced=True
    )
    out: str = option("compressed.safetensors", "checkpoint to write")
