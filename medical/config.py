"""Options of the medical commands. Torch-free: `--help` reads this and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from crossband.shared.config import (
    LoaderConfig,
    OptimizerConfig,
    OutputOptions,
    RunOptions,
    ScheduleConfig,
    TrainerConfig,
    option,
)

Layout = Literal["auto", "nih", "chexpert", "mimic", "covidx", "csv", "images"]
Uncertain = Literal["ones", "zeros", "ignore", "paper"]
TaskName = Literal["classification", "segmentation"]
Method = Literal["mae", "cnn-mae", "lvm-med", "simclr", "byol", "vicreg", "dino", "barlow-twins"]
MASKED_METHODS = ("mae", "cnn-mae")  # all others compare views


@dataclass(kw_only=True)
class ReadingConfig:
    """How files become pixels."""

    window: list[float] = option(
        factory=list,
        help="DICOM: centre and width of the grey values; default: the file's own",
        advanced=True,
    )
    cache_gb: float = option(2.0, "memory for decoded images, in GB", advanced=True)
    shrink: int = option(
        0,
        "keep images in memory with a shorter side of so many pixels; 0: as they are",
        advanced=True,
    )


@dataclass(kw_only=True)
class SourceConfig(ReadingConfig):
    """Where images lie, and what is known of them."""

    root: list[str] = option(
        factory=list,
        help="NIH ChestX-ray14, CheXpert, MIMIC-CXR-JPG, COVIDx, or images and a csv (repeatable)",
    )
    layout: Layout = option("auto", "layout of the folders; auto looks", advanced=True)
    table: str | None = option(
        None, "csv of the layout `csv`; default: the only one there", advanced=True
    )
    columns: dict[str, str] = option(
        factory=dict,
        help="csv columns that hold image, patient, split, view, sex, age, mask: age=Years",
        advanced=True,
    )
    labels: list[str] = option(
        factory=list, help="findings to take, in this order; default: all", advanced=True
    )
    target: str | None = option(None, "csv column of one class per image (as view), for findings")
    views: list[str] = option(
        factory=list, help="views to take: PA AP LATERAL ...; default: frontal ones", advanced=True
    )
    uncertain: Uncertain = option(
        "paper",
        "labels of -1: present, absent, left out, or by finding as the paper",
        advanced=True,
    )
    seed: int = option(0, "of the split by patients, where a set has none", advanced=True)
    val_fraction: float = option(
        0.1, "part of the patients held back to validate, where there is no split", advanced=True
    )
    test_fraction: float = option(
        0.2, "part of the patients held back to test, where there is no split", advanced=True
    )
    folds: int = option(0, "cut the patients into so many folds; 0: no", advanced=True)
    fold: int = option(0, "fold to validate on, from 0; train: -1 is each in turn", advanced=True)


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
    axis: Literal["auto", "axial", "coronal", "sagittal"] = option(
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


@dataclass(kw_only=True)
class TuningConfig:
    """Numbers of the tunings that leave most of the network as it is."""

    rank: int = option(8, "of lora, or of dvpt's projections (the paper: 20)", advanced=True)
    prompts: int = option(50, "of dvpt", advanced=True)
    share: int = option(3, "dvpt: neighbouring blocks that share a projection", advanced=True)
    cross_attention: Literal["paper", "released"] = option(
        "paper", "dvpt: prompts attend to the image, or not, as in the released code", advanced=True
    )


@dataclass(kw_only=True)
class NetworkConfig:
    """The network."""

    pool: Literal["avg", "token"] = option(
        "avg", "classification: mean of the patches, or the class token", advanced=True
    )
    drop_path: float = option(0.2, "probability of leaving out a branch", advanced=True)
    decoder: Literal["unet", "upernet"] = option(
        "unet",
        "segmentation: a U-Net with the ViT as its deepest level, or LL-FPN and UPerHead",
        advanced=True,
    )
    channels: int = option(64, "upernet: channels of the head", advanced=True)
    detail: int = option(
        32,
        "upernet: channels of convolutions at full resolution beside the ViT; 0: none",
        advanced=True,
    )
    arguments: dict[str, Any] = option(
        factory=dict, help="further arguments of the network: embed_dim=192", advanced=True
    )


@dataclass(kw_only=True)
class LossConfig:
    """What is minimised."""

    name: Literal["auto", "bce", "ce", "focal", "asymmetric", "ce_dice"] = option(
        "auto", "auto: bce for findings, ce for classes, ce_dice for masks"
    )
    pos_weight: list[float] = option(
        factory=list, help="of the present findings, one per finding", advanced=True
    )
    class_weights: list[float] = option(
        factory=list, help="of classes, one per class", advanced=True
    )
    balance: float = option(
        0.0,
        "weigh rare findings or classes by their share to minus this power; 0: no",
        advanced=True,
    )
    label_smoothing: float = option(0.0, "of the labels", advanced=True)
    sampling: Literal["images", "balanced"] = option(
        "images",
        "classification: each image once per epoch, or drawn so that rare findings come as often",
        advanced=True,
    )


@dataclass(kw_only=True)
class AugmentConfig:
    """How training images are changed, and how the others are cut out."""

    crop_min: float = option(
        0.08, "classification: smallest crop, as part of an image's area", advanced=True
    )
    crop_max: float = option(1.0, "classification: largest crop", advanced=True)
    flip: float = option(0.5, "probability of a mirrored image", advanced=True)
    auto_augment: str = option(
        "rand-m6-mstd0.5-inc1", "classification: timm's policy; '' for none", advanced=True
    )
    resize: int = option(
        0, "shorter side before the middle is cut out; 0: 256 for a size of 224", advanced=True
    )
    rotate: float = option(15.0, "segmentation: largest turn, in degrees", advanced=True)
    scale: float = option(0.2, "segmentation: largest change of size, as a part", advanced=True)
    shift: float = option(0.05, "segmentation: largest shift, as a part of the side", advanced=True)
    contrast: float = option(
        0.25, "segmentation: largest change of brightness, contrast and gamma", advanced=True
    )


@dataclass(kw_only=True)
class TrainConfig(RunOptions):
    """Options of `train`."""

    task: TaskName = option("classification", "findings of an image, or classes of its pixels")
    model: str = option(
        "chest_mae_vit_small",
        "chest_mae_vit_*, densenet121, resnet50, convnext_tiny, unet, statistics, timm:NAME, ...",
    )
    weights: str | None = option(None, "pre-trained weights: of `pretrain`, the authors', or ours")
    tuning: Literal["full", "linear", "lora", "dvpt"] = option(
        "full", "train all, the head alone, or few parameters beside the frozen network"
    )
    tuner: TuningConfig = option(factory=TuningConfig)
    network: NetworkConfig = option(factory=NetworkConfig)
    size: int = option(224, "side of the network's input, pixels")
    statistics: list[float] = option(
        factory=list,
        help="mean and deviation of the pixels in 0..1; default: the weights' own, or NIH's",
        advanced=True,
    )
    loss: LossConfig = option(factory=LossConfig)
    data: SourceConfig = option(factory=SourceConfig)
    augment: AugmentConfig = option(factory=AugmentConfig)
    loader: LoaderConfig = option(factory=LoaderConfig)
    optimizer: OptimizerConfig = option(factory=OptimizerConfig)
    schedule: ScheduleConfig = option(factory=ScheduleConfig)
    trainer: TrainerConfig = option(factory=TrainerConfig)
    monitor: Literal["auto", "auroc", "accuracy", "loss", "dice"] = option(
        "auto",
        "what chooses the best weights; auto: mean AUROC, or Dice of all pixels together",
        advanced=True,
    )
    select_on: Literal["val", "test"] = option(
        "val",
        "test: choose the best weights on the test images, as the paper does; scores on them are "
        "then too good, and marked so",
        advanced=True,
    )
    calibrate: bool = option(
        True, "fit a temperature on the validation images (20 or more) and store it", advanced=True
    )
    keep_ids: bool = option(False, "show file names in messages and the report", advanced=True)
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
    batch_size: int = option(32, "images at a time", advanced=True)
    bootstrap: int = option(1000, "resamples of the patients for intervals", advanced=True)
    heatmaps: int = option(6, "images shown with heatmaps in the report; 0: none", advanced=True)
    keep_ids: bool = option(False, "show file names and patients in the results")
    out: str | None = option(
        None, "folder for metrics.json, predictions.csv, report.html; default beside the weights"
    )


@dataclass(kw_only=True)
class PredictConfig(RunOptions):
    """Options of `predict`."""

    inputs: list[str] = option(factory=list, help="images, DICOM files, or folders of them")
    weights: str = option(help="checkpoint of `train`, or its export")
    out: str = option("findings.csv", "csv to write (findings), or folder (masks)")
    window: list[float] = option(
        factory=list, help="DICOM: centre and width of the grey values", advanced=True
    )
    heatmaps: bool = option(False, "write overlays of where each finding was seen")
    heatmap_method: Literal["gradient", "rollout"] = option(
        "gradient", "gradients of a finding, or attention followed back (ViT)", advanced=True
    )
    threshold: Literal["validation", "half"] = option(
        "validation", "when a finding counts as present: as chosen in training, or 0.5"
    )
    keep_ids: bool = option(False, "name images by their files, which may hold identifiers")


@dataclass(kw_only=True)
class ExportConfig(OutputOptions):
    """Options of `export`."""

    weights: str = option(help="checkpoint of `train`")
    format: Literal["onnx", "pt2", "monai-bundle"] = option(
        "onnx", "ONNX, torch.export's .pt2, or a MONAI bundle"
    )
    out: str | None = option(None, "file or folder to write; default beside the weights")
    authors: str = option("unknown", "monai-bundle: for its metadata", advanced=True)
    data_licence: str = option("", "monai-bundle: licence of the training data", advanced=True)


@dataclass(kw_only=True)
class CheckConfig(OutputOptions):
    """Options of `data check`."""

    data: SourceConfig = option(factory=SourceConfig)
    keep_ids: bool = option(False, "show file names and patient identifiers")
    out: str | None = option(None, "picture to write: a contact sheet of images (.png)")


@dataclass(kw_only=True)
class MakeConfig(OutputOptions):
    """Options of `data make`."""

    out: str = option("synthetic-xrays", "folder to write")
    layout: Literal["nih", "csv"] = option("nih", "files as NIH has them, or images and a csv")
    format: Literal["png", "dicom"] = option("png", "of the images; dicom with layout csv")
    count: int = option(120, "number of images, of about half as many patients")
    size: int = option(256, "side of an image, in pixels")
    seed: int = option(0, "seed of the phantoms")
