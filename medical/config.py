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

Layout = Literal[
    "auto",
    "nih",
    "chexpert",
    "mimic",
    "covidx",
    "csv",
    "images",
    "pairs",
    "class-folders",
    "volumes",
    "vindr",
    "coco",
]
Uncertain = Literal["ones", "zeros", "ignore", "paper"]
TaskName = Literal["classification", "segmentation", "detection"]
Axis = Literal["auto", "axial", "coronal", "sagittal"]


@dataclass(kw_only=True)
class ReadingConfig:
    """How files become pixels."""

    window: list[float] = option(
        factory=list,
        help="DICOM and volumes: centre and width of the values; default: the file's own, or "
        "nearly all values of a volume",
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
        help="a data set of a known layout, images and a csv or masks, volumes (repeatable)",
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
    colours: bool = option(False, "keep colours; else images become grey")
    classes: list[str] = option(
        factory=list,
        help="masks: names of the classes, the background first; default: the set's own, or two",
        advanced=True,
    )
    mask_values: list[int] = option(
        factory=list,
        help="masks: value of each class; default 0, 1, 2, ...; of two classes all but 0 is one",
        advanced=True,
    )
    lists: str | None = option(
        None, "json file with the file names of train, val (or valid) and test", advanced=True
    )
    sequences: list[str] = option(
        factory=list,
        help="volumes: up to three sequences as channels, by parts of file names: flair t1ce t2",
        advanced=True,
    )
    axis: Axis = option(
        "auto", "volumes: across which axis to slice; auto: as acquired", advanced=True
    )
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
        "segmentation: a U-Net (a ViT is its deepest level), or of a plain ViT LL-FPN and UPerHead",
        advanced=True,
    )
    head: list[int] = option(
        factory=list,
        help="classification: hidden widths of an MLP instead of one layer: 512 256",
        advanced=True,
    )
    encoder: str | None = option(
        None, "prompted segmentation: file of another image encoder: lvmmed_vit.pth", advanced=True
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

    name: Literal[
        "auto", "bce", "ce", "focal", "asymmetric", "ce_dice", "ce_dice_all", "dice_ce"
    ] = option(
        "auto",
        "auto: bce for findings, ce for classes, ce_dice for masks; ce_dice_all counts the "
        "background too (LVM-Med), dice_ce is MONAI's",
        advanced=True,
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
        "each image once per epoch, or drawn so that rare findings (slices with labels) come as "
        "often",
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
    vertical_flip: float = option(
        0.0, "segmentation: probability of an image upside down", advanced=True
    )
    colour: float = option(
        0.0, "images in colours: largest change of saturation and of each channel", advanced=True
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

    task: TaskName = option("classification", "findings, masks or boxes")
    model: str = option(
        "chest_mae_vit_small",
        "chest_mae_vit_*, resnet50, sam_vit_b[_prompted], unet, statistics, timm:..., monai:...",
    )
    weights: str | None = option(None, "pre-trained weights: of `pretrain`, the authors', or ours")
    tuning: Literal["full", "linear", "lora", "dvpt"] = option(
        "full", "train all, the head alone, or few parameters beside the frozen network"
    )
    tuner: TuningConfig = option(factory=TuningConfig)
    network: NetworkConfig = option(factory=NetworkConfig)
    size: int = option(224, "side of the network's input, pixels")
    sliding: bool = option(
        False,
        "segmentation: learn crops at the images' own resolution, predict by sliding windows",
        advanced=True,
    )
    statistics: list[float] = option(
        factory=list,
        help="mean and deviation of the pixels in 0..1; default: the weights' own, or those of NIH "
        "(findings and grey masks) or ImageNet (colours)",
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
    distances: bool = option(
        True, "masks: Hausdorff distance (95 %) and surface Dice, in mm where known", advanced=True
    )
    tolerance: float = option(
        2.0, "surface Dice: distance that counts as right, in mm, or pixels", advanced=True
    )
    boxes: str | None = option(
        None, "prompted segmentation: csv of boxes; default: those of the masks", advanced=True
    )
    bootstrap: int = option(1000, "resamples of the patients for intervals", advanced=True)
    heatmaps: int = option(6, "images shown with heatmaps in the report; 0: none", advanced=True)
    keep_ids: bool = option(False, "show file names and patients in the results")
    out: str | None = option(
        None, "folder for metrics.json, predictions.csv, report.html; default beside the weights"
    )


@dataclass(kw_only=True)
class PredictConfig(RunOptions):
    """Options of `predict`."""

    inputs: list[str] = option(
        factory=list, help="images, DICOM files, volumes, or folders of them"
    )
    weights: str = option(help="checkpoint of `train`, or its export")
    out: str = option("findings.csv", "csv to write (findings), or folder (masks, boxes)")
    window: list[float] = option(
        factory=list, help="DICOM and volumes: centre and width of the values", advanced=True
    )
    boxes: str | None = option(
        None, "prompted segmentation: csv with the columns image, x0, y0, x1, y1 (pixels)"
    )
    score: float = option(0.3, "detection: least score of a box that is shown", advanced=True)
    batch_size: int = option(8, "slices of a volume at a time", advanced=True)
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


@dataclass(kw_only=True)
class ContaminationConfig(OutputOptions):
    """Options of `data contamination`."""

    tested: list[str] = option(
        factory=list, help="what is tested on: lists of file names, images, or folders of them"
    )
    against: list[str] = option(
        factory=list, help="what was learnt from: lists of file names, or folders (repeatable)"
    )
    near: bool = option(
        True, "look for nearly equal images too, where both sides are images", advanced=True
    )
    distance: int = option(
        12, "bits of 256 by which fingerprints of nearly equal images may differ", advanced=True
    )
    out: str | None = option(None, "csv to write: every pair that was found")
    keep_ids: bool = option(False, "show file names", advanced=True)
