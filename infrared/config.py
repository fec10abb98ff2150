"""Options of the infrared commands. Torch-free: `--help` reads this and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crossband.shared.config import (
    LoaderConfig,
    OptimizerConfig,
    OutputOptions,
    RunOptions,
    ScheduleConfig,
    TrainerConfig,
    option,
)

Layout = Literal["auto", "folder", "sirst", "soda", "mfnet", "scut", "msrs", "pst900"]
ChannelName = Literal["grey", "thermal", "rgb"]


@dataclass(kw_only=True)
class SourceConfig:
    """Where labelled images lie."""

    root: list[str] = option(
        factory=list, help="SODA, MFNet, SCUT-Seg, MSRS, PST900, SIRST or plain folders"
    )
    layout: Layout = option("auto", "layout of the folders; auto looks", advanced=True)
    value_range: list[float] = option(
        factory=list,
        help="counts that become black and white; default: each deep image's own range",
        advanced=True,
    )
    stretch: bool = option(False, "stretch 8-bit images to their own range too", advanced=True)


@dataclass(kw_only=True)
class FramesConfig:
    """Where images without masks lie, and how they are read."""

    root: list[str] = option(
        factory=list, help="folders of images: infpre/, in1k/, coco/, InfMix, any (repeatable)"
    )
    datasets: list[str] = option(
        factory=list, help="data sets of the folders to take; default: all", advanced=True
    )
    exclude: list[str] = option(
        factory=list,
        help="names or patterns of files to leave out, or .txt files that list them",
        advanced=True,
    )
    per_class: int = option(
        0, "first files of each ImageNet class; 0: all (InfMix: 200)", advanced=True
    )
    ratio: float = option(1.0, "part of the files: every int(1 / ratio)-th", advanced=True)
    channel: Literal["grey", "thermal"] = option(
        "grey", "grey of colours, or the fourth channel where there are four", advanced=True
    )
    value_range: list[float] = option(
        factory=list,
        help="counts of 16-bit files that become black and white; default: percentiles",
        advanced=True,
    )
    cache_gb: float = option(2.0, "memory for decoded images, in GB", advanced=True)


@dataclass(kw_only=True)
class ReadConfig(SourceConfig):
    """Where labelled images lie and what is read of them."""

    channel: ChannelName = option("thermal", "thermal: grey files or the 4th channel")


@dataclass(kw_only=True)
class ScaleConfig:
    """The size at which images go through the network."""

    short_side: int = option(512, "bring the shorter side to so many pixels; 0: no")
    long_side: int = option(2048, "but the longer to no more than these", advanced=True)
    factor: float = option(1.0, "enlarge further by this (small targets)")


@dataclass(kw_only=True)
class DataConfig(ReadConfig):
    """What to train on."""

    train: str = option("train", "split to train on", advanced=True)
    val: str = option("val", "split to validate on; SODA has test only", advanced=True)
    val_fraction: float = option(
        0.1, "part of train held back where there is no split val", advanced=True
    )
    scale: ScaleConfig = option(factory=ScaleConfig)
    crop: int = option(512, "side of the crops, in pixels of the network")
    ratio: list[float] = option(
        factory=lambda: [0.5, 2.0], help="random resizing of training images", advanced=True
    )
    cat_max_ratio: float = option(
        0.75, "draw a crop again if one class fills more of it; 1: never", advanced=True
    )
    on_target: float = option(
        0.0, "share of crops that hold a pixel of a class other than 0", advanced=True
    )
    flips: Literal["none", "horizontal", "all"] = option(
        "horizontal", "all: vertical and quarter turns too", advanced=True
    )
    photometric: bool = option(True, "random brightness and contrast", advanced=True)
    repeats: int = option(1, "crops per image and epoch", advanced=True)
    augment: bool = option(True, "random crops; off: whole images of one size", advanced=True)


@dataclass(kw_only=True)
class NetworkConfig:
    """The segmentation network."""

    tuning: Literal["full", "linear", "layerwise"] = option(
        "full", "train all, or probe four blocks or one"
    )
    blocks: list[int] = option(
        factory=list,
        help="blocks to take maps from, counted from 1; default: the last (LL-FPN)",
        advanced=True,
    )
    channels: int = option(0, "channels of the head; 0: the backbone's")
    auxiliary: bool = option(True, "train an auxiliary head too", advanced=True)
    last_heads: int = option(
        0, "heads of the last block; 0: as the others, as the authors fine-tune", advanced=True
    )
    detail: int = option(0, "channels of convolutions at full resolution beside the ViT; 0: none")
    img_size: int = option(512, "side that the table of positions is made for", advanced=True)
    drop_path: float = option(0.1, "probability of leaving out a branch", advanced=True)
    dropout: float = option(0.1, "of the heads' features", advanced=True)
    encoder: str = option(
        "tu-resnet18", "encoder of unet and upernet (timm by tu-NAME)", advanced=True
    )


@dataclass(kw_only=True)
class LossConfig:
    """What is minimised."""

    name: Literal["ce", "ce_dice", "soft_iou", "ce_soft_iou"] = option("ce", "what is minimised")
    class_weights: list[float] = option(
        factory=list, help="of cross-entropy, one per class", advanced=True
    )
    balance: float = option(
        0.0,
        "weigh classes by their pixels to minus this power (1: an equal say each); 0: no",
        advanced=True,
    )
    avg_non_ignore: bool = option(
        False, "average over labelled pixels; mmseg's default divides by all", advanced=True
    )
    auxiliary_weight: float = option(0.4, "of the auxiliary head's loss", advanced=True)


@dataclass(kw_only=True)
class WindowConfig:
    """How large images go through the network."""

    mode: Literal["slide", "whole"] = option(
        "slide", "overlapping windows, or the whole image", advanced=True
    )
    size: int = option(0, "side of a window in the network's pixels; 0: as trained", advanced=True)
    stride: int = option(0, "step between windows; 0: two thirds of the size", advanced=True)
    batch: int = option(4, "windows at a time", advanced=True)


@dataclass(kw_only=True)
class TrainConfig(RunOptions):
    """Options of `train`."""

    model: str = option(
        "unip_small",
        "unip_tiny|small|base|large, or a rival: unet, upernet, segformer_b0, deeplabv3plus_r18",
    )
    weights: str | None = option(None, "pre-trained backbone (UNIP, MAE, DINO, iBOT files or ours)")
    network: NetworkConfig = option(factory=NetworkConfig)
    loss: LossConfig = option(factory=LossConfig)
    data: DataConfig = option(factory=DataConfig)
    window: WindowConfig = option(factory=WindowConfig)
    loader: LoaderConfig = option(factory=LoaderConfig)
    optimizer: OptimizerConfig = option(factory=OptimizerConfig)
    schedule: ScheduleConfig = option(factory=ScheduleConfig)
    trainer: TrainerConfig = option(factory=TrainerConfig)
    monitor: Literal["miou", "iou", "loss"] = option(
        "miou",
        "what chooses the best weights: mean IoU, IoU of the last class, or loss",
        advanced=True,
    )
    threshold: Literal["half", "validation"] = option(
        "half",
        "two classes: a probability of one half, or what gives the best IoU in validation",
        advanced=True,
    )
    out: str | None = option(None, "run folder; default runs/<model>-<time>")
    resume: str | None = option(None, "run folder of a stopped run to go on with")
    dry_run: bool = option(False, "check options, data and one batch, then stop")


@dataclass(kw_only=True)
class EvaluateSource(SourceConfig):
    """What to score on."""

    split: str = option("test", "split to score on")


@dataclass(kw_only=True)
class EvaluateConfig(RunOptions):
    """Options of `evaluate`."""

    weights: str = option(help="checkpoint of `train`, or its export")
    data: EvaluateSource = option(factory=EvaluateSource)
    window: WindowConfig = option(factory=WindowConfig)
    small_targets: Literal["auto", "yes", "no"] = option(
        "auto", "nIoU, Pd and Fa of the class 1 too; auto: with two classes"
    )
    worst: int = option(8, "worst images shown in the report", advanced=True)
    out: str | None = option(
        None,
        "folder for metrics.json and report.html; default: evaluation (evaluation-SPLIT, if not "
        "test) beside the weights",
    )


@dataclass(kw_only=True)
class PredictConfig(RunOptions):
    """Options of `predict`."""

    inputs: list[str] = option(factory=list, help="images, videos, TIFFs or folders of them")
    weights: str = option(help="checkpoint of `train`, or its export")
    out: str = option("masks", "folder to write; names are kept")
    channel: Literal["trained", "grey", "thermal", "rgb"] = option(
        "trained", "what to read; trained: as in training", advanced=True
    )
    value_range: list[float] = option(
        factory=list,
        help="counts that become black and white; default: as in training",
        advanced=True,
    )
    window: WindowConfig = option(factory=WindowConfig)
    colour: bool = option(True, "write colour masks (NAME_colour.png) beside the class ids")
    overlay: bool = option(True, "write the image under its mask (NAME_overlay.jpg)")


@dataclass(kw_only=True)
class ExportConfig(OutputOptions):
    """Options of `export`."""

    weights: str = option(help="checkpoint of `train`")
    format: Literal["onnx", "pt2"] = option("onnx", "ONNX, or torch.export's .pt2")
    out: str | None = option(None, "file to write; default beside the weights")
    size: int = option(0, "side of the exported network's input; 0: as trained")


@dataclass(kw_only=True)
class CheckConfig(OutputOptions):
    """Options of `data check`."""

    data: ReadConfig = option(factory=ReadConfig)
    out: str | None = option(None, "picture to write: a contact sheet of images and masks (.png)")


@dataclass(kw_only=True)
class MakeConfig(OutputOptions):
    """Options of `data make`."""

    out: str = option("synthetic-thermal", "folder to write: images/, masks/, classes.txt, lists")
    count: int = option(60, "number of scenes")
    height: int = option(160, "rows of a scene")
    width: int = option(192, "columns of a scene")
    bits: Literal["8", "16"] = option("8", "depth of the images; 16 holds camera counts")
    kind: Literal["street", "targets"] = option(
        "street", "street: road, cars, people; targets: tiny ones before clouds"
    )
    seed: int = option(0, "seed of the scenes")
