"""Options of `crossband medical pretrain`. Torch-free: `--help` reads this and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from crossband.medical.config import Axis, Layout, ReadingConfig
from crossband.shared.config import (
    LoaderConfig,
    OptimizerConfig,
    RunOptions,
    ScheduleConfig,
    TrainerConfig,
    option,
)

Method = Literal["mae", "cnn-mae", "lvm-med", "simclr", "byol", "vicreg", "dino", "barlow-twins"]
MASKED_METHODS = ("mae", "cnn-mae")  # all others compare views


@dataclass(kw_only=True)
class MultiCropConfig:
    """Views of one image that a network learns to match (LVM-Med; after SwAV and VICRegL)."""

    sizes: list[int] = option(
        factory=lambda: [224, 96],
        help="sides of large and of small crops, pixels; --size holds for the large ones",
        advanced=True,
    )
    counts: list[int] = option(
        factory=lambda: [2, 2],
        help="large crops (two or more) and small crops of an image",
        advanced=True,
    )
    large: list[float] = option(
        factory=lambda: [0.4, 1.0], help="area of large crops, as parts of the image", advanced=True
    )
    small: list[float] = option(
        factory=lambda: [0.08, 0.4], help="area of small crops", advanced=True
    )
    flip: float = option(0.5, "probability of a mirrored crop", advanced=True)
    jitter: list[float] = option(
        factory=lambda: [0.8, 0.8, 0.8, 0.2],
        help="largest change of brightness, contrast, saturation (as factors) and hue (of a turn)",
        advanced=True,
    )
    jitter_chance: float = option(0.8, "probability of such changes", advanced=True)
    grey_chance: float = option(0.2, "probability of a crop without colours", advanced=True)
    blur: list[float] = option(
        factory=lambda: [0.1, 2.0], help="radius of the blur, pixels", advanced=True
    )
    blur_chance: float = option(0.5, "probability of a blur", advanced=True)
    colours: bool = option(
        False, "keep colours; the authors make every crop grey at the end", advanced=True
    )
    stride: int = option(
        32, "pixels per cell of the grids of locations; they are fitted to the maps", advanced=True
    )
    no_flip_grid: bool = option(
        False, "do not mirror the grids of mirrored crops, as in the authors' draft", advanced=True
    )


@dataclass(kw_only=True)
class MatchingConfig:
    """How the views of a batch are matched (LVM-Med)."""

    order: int = option(2, "2: nodes and edges; 1: nodes alone, by assignment", advanced=True)
    variant: Literal["paper", "draft"] = option(
        "paper", "costs of the paper, or of the authors' draft", advanced=True
    )
    gradient: Literal["imle", "blackbox"] = option(
        "imle", "through the solver: with Gumbel noise, or without any", advanced=True
    )
    noise: float = option(
        1.0, "imle: factor of the noise; less teaches faster in short runs", advanced=True
    )
    graph_size: int = option(16, "images of a graph", advanced=True)
    k: int = option(5, "neighbours of an image in its graph", advanced=True)
    alpha: float = option(
        0.8, "weight of the global similarity against the local one", advanced=True
    )
    lam: float = option(80.0, "lambda, the step of the gradient", advanced=True)
    gamma: list[int] = option(
        factory=lambda: [20, 4],
        help="pairs of places that count, of large and of small crops",
        advanced=True,
    )
    local: bool = option(True, "compare maps too", advanced=True)
    message_passing: bool = option(True, "let neighbours exchange features", advanced=True)
    projector: str = option("", "widths, as 512-128; default: the variant's", advanced=True)
    solver: str = option("auto", "auto, search, exact, pylibmgm; lap is for order 1", advanced=True)
    workers: int = option(0, "processes that solve, for pylibmgm; 0: none", advanced=True)


@dataclass(kw_only=True)
class PretrainSource(ReadingConfig):
    """What to pre-train on."""

    root: list[str] = option(
        factory=list, help="data sets or folders of images; labels are not looked at (repeatable)"
    )
    layout: Layout = option("auto", "layout of the folders; auto looks", advanced=True)
    table: str | None = option(None, "csv of the layout `csv`", advanced=True)
    columns: dict[str, str] = option(
        factory=dict, help="csv columns that hold image, patient, split, view", advanced=True
    )
    views: list[str] = option(
        factory=list, help="views to take: PA AP LATERAL ...; default: frontal ones", advanced=True
    )
    splits: list[str] = option(
        factory=lambda: ["train"],
        help="splits to learn from, where a set has them; never learn from what is tested on",
        advanced=True,
    )
    val_fraction: float = option(0.02, "part of the patients held back to validate", advanced=True)
    smallest: float = option(0.5, "smallest crop, as part of an image's area", advanced=True)
    largest: float = option(1.0, "largest crop, as part of an image's area", advanced=True)
    axis: Axis = option(
        "auto", "volumes: across which axis to slice; auto: as acquired", advanced=True
    )
    windows: dict[str, Any] = option(
        factory=dict,
        help="volumes: centre and width of the values, by modality: ct=[40,400]",
        advanced=True,
    )
    copies: int = option(
        10, "most times that an image of a small modality is shown per epoch", advanced=True
    )
    unpack: str | None = option(
        None, "volumes: folder to decode slices into, for fast reading", advanced=True
    )


@dataclass(kw_only=True)
class PretrainConfig(RunOptions):
    """Options of `pretrain`."""

    method: Method = option(
        "mae", "masked images (ViT; CNN in a U-Net), or views of unlabelled scans of any kind"
    )
    model: str | None = option(
        None, "vit_small, ... for mae; densenet121, resnet50, timm:NAME, sam_vit_b, ... for others"
    )
    arguments: dict[str, Any] = option(
        factory=dict, help="arguments of the network: embed_dim=192 depth=6", advanced=True
    )
    size: int = option(224, "side of the images (of large crops), pixels")
    weights: str | None = option(None, "start from this file: of the same method, or a backbone's")
    mask_ratio: float = option(
        0.0, "mae: part of the patches that is hidden; 0: 0.9, and 0.75 for cnn-mae"
    )
    crops: MultiCropConfig = option(factory=MultiCropConfig)
    matching: MatchingConfig = option(factory=MatchingConfig)
    heads: dict[str, Any] = option(
        factory=dict,
        help="arguments of heads and loss of simclr, byol, ...: hidden=512 out=128",
        advanced=True,
    )
    statistics: list[float] = option(
        factory=list,
        help="mean and deviation of the pixels in 0..1; default: by data set, as the paper",
        advanced=True,
    )
    data: PretrainSource = option(factory=PretrainSource)
    loader: LoaderConfig = option(factory=LoaderConfig)
    optimizer: OptimizerConfig = option(factory=OptimizerConfig)
    schedule: ScheduleConfig = option(factory=ScheduleConfig)
    trainer: TrainerConfig = option(factory=lambda: TrainerConfig(select="last"))
    out: str | None = option(None, "run folder; default runs/<method>-<time>")
    resume: str | None = option(None, "run folder of a stopped run to go on with")
    dry_run: bool = option(False, "check options, data and one batch, then stop")
