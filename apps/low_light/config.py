"""Options of the low-light commands. Torch-free: `--help` reads this and nothing else."""

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

Metric = Literal["psnr", "ssim", "niqe", "lpips"]


@dataclass(kw_only=True)
class DataConfig:
    """What to train on."""

    root: list[str] = option(
        factory=list, help="photographs taken in good light: files or folders (repeatable)"
    )
    paired: list[str] = option(
        factory=list, help="data sets of dark/well-lit pairs (LOL, LSRW, SICE layouts; repeatable)"
    )
    val: list[str] = option(
        factory=list, help="photographs to validate on; default: a part of root"
    )
    val_fraction: float = option(
        0.1, "part of the photographs or pairs held back to validate", advanced=True
    )
    repeats: int = option(1, "crops per photograph and epoch")
    smallest: float = option(0.25, "smallest crop, as part of a photograph's area", advanced=True)
    recolour: bool = option(
        False, "vary saturation and swap colour channels, for few photographs", advanced=True
    )
    longest: int = option(
        0, "reduce photographs to this longest side when reading; 0: no", advanced=True
    )
    cache_gb: float = option(2.0, "memory for decoded photographs, in GB", advanced=True)


@dataclass(kw_only=True)
class MakeConfig(OutputOptions):
    """Options of `data make`."""

    out: str = option("synthetic-pairs", "folder to write: low/ and high/, as LOL")
    root: list[str] = option(
        factory=list, help="well-lit photographs; default: those that scikit-image brings"
    )
    camera: str = option("training", "camera that dims them: training, phone, night, lamp")
    longest: int = option(640, "longest side in pixels; 0 keeps the size")
    seed: int = option(0, "seed of the camera's draws")


@dataclass(kw_only=True)
class CheckConfig(OutputOptions):
    """Options of `data check`."""

    root: list[str] = option(help="data sets of pairs, or folders of photographs")
    against: list[str] = option(
        factory=list, help="further data sets: scenes that lie in both are listed"
    )


@dataclass(kw_only=True)
class TrainConfig(RunOptions):
    """Options of `train`."""

    model: Literal["ugdc"] = option("ugdc", "network of all stages", advanced=True)
    stage: Literal["all", "troublemaker", "predictor", "enhancer"] = option(
        "all", "what to train; later stages need the earlier ones' weights"
    )
    size: list[int] = option(
        factory=lambda: [400, 640], help="height and width to train at, multiples of 80"
    )
    stem: int = option(64, "channels of the predicting network at full resolution")
    enhancer_stem: int = option(32, "channels of the enhancing network", advanced=True)
    troublemaker_stem: int = option(64, "channels of the troublemaker", advanced=True)
    drop_path: float = option(0.2, "probability of leaving out a GDC block", advanced=True)
    resize_patch_grid: bool = option(
        False, "let the network take whole images of any size, not only the trained one"
    )
    dimming: Literal["troublemaker", "camera", "both"] = option(
        "troublemaker", "what darkens photographs: the network of stage 1, or a camera model"
    )
    camera: str = option("training", "camera model: training, phone, night, lamp", advanced=True)
    troublemaker: str | None = option(None, "weights of stage 1", advanced=True)
    predictor: str | None = option(None, "weights of stage 2", advanced=True)
    stages: dict[str, dict[str, Any]] = option(
        factory=dict,
        help="settings of trainer per stage, as {predictor: {max_epochs: 50}}",
        advanced=True,
    )
    data: DataConfig = option(factory=DataConfig)
    loader: LoaderConfig = option(factory=LoaderConfig)
    optimizer: OptimizerConfig = option(factory=OptimizerConfig)
    schedule: ScheduleConfig = option(factory=ScheduleConfig)
    trainer: TrainerConfig = option(factory=TrainerConfig)
    out: str | None = option(None, "run folder; default runs/ugdc-<time>")
    resume: str | None = option(None, "run folder of a stopped run to go on with")
    dry_run: bool = option(False, "check options, data and one batch, then stop")


@dataclass(kw_only=True)
class SizeConfig:
    """How images of any size go through a network of one size."""

    fit: Literal["auto", "whole", "tile", "resize", "native"] = option(
        "auto",
        "whole: patch grids are resized; tile: overlapping tiles; resize: to the network's size "
        "and back; native: left there (the authors' script)",
    )
    tile: list[int] = option(
        factory=list, help="height and width of tiles; default: the network's", advanced=True
    )
    overlap: int | None = option(
        None, "pixels by which tiles overlap; default: an eighth of a tile", advanced=True
    )
    global_tone: bool = option(
        True,
        "take everything coarse from one pass over the whole image at the network's size",
        advanced=True,
    )
    lift: bool = option(
        True, "multiply photographs darker than any in training, in linear light", advanced=True
    )
    max_megapixels: float = option(200.0, "refuse larger images", advanced=True)


@dataclass(kw_only=True)
class MethodConfig(RunOptions):
    """Which method to run."""

    weights: str | None = option(None, "checkpoint of `train` or `pack`, its export, or a rival's")
    model: Literal["tml", "zero_dce", "sci", "clahe", "gamma", "auto_gamma"] = option(
        "tml", "tml, or a rival (zero_dce and sci need --weights)"
    )
    size: SizeConfig = option(factory=SizeConfig)


@dataclass(kw_only=True)
class EvaluateSource:
    """What to score on."""

    root: list[str] = option(factory=list, help="data set of pairs, or dark photographs alone")
    low: str | None = option(None, "folder of dark photographs, if the layout is another")
    high: str | None = option(None, "folder of their well-lit partners")


@dataclass(kw_only=True)
class EvaluateConfig(MethodConfig):
    """Options of `evaluate`."""

    data: EvaluateSource = option(factory=EvaluateSource)
    metrics: list[Metric] = option(
        factory=list, help="psnr ssim niqe lpips; default: all that can be had"
    )
    rivals: list[str] = option(
        factory=list, help="more rows: input gamma auto_gamma clahe zero_dce=FILE sci=FILE"
    )
    gt_mean: bool = option(
        False, "first give results the truth's mean brightness; lifts scores, stated in the result"
    )
    niqe_variant: list[Literal["basicsr", "matlab"]] = option(
        factory=lambda: ["basicsr", "matlab"], help="implementations of NIQE", advanced=True
    )
    niqe_params: str | None = option(
        None, "niqe_pris_params.npz; default: $CROSSBAND_NIQE_PARAMS, or found beside the data"
    )
    lpips_weights: str | None = option(None, "torchvision's AlexNet file", advanced=True)
    sheets: int = option(8, "images shown in the report", advanced=True)
    out: str | None = option(
        None, "folder for metrics.json and report.html; default: evaluation beside the weights"
    )


@dataclass(kw_only=True)
class PredictConfig(MethodConfig):
    """Options of `predict`."""

    inputs: list[str] = option(factory=list, help="photographs, or folders of them (all levels)")
    out: str = option("bright", "folder to write; names are kept")
    compare: bool = option(False, "write before/after sheets too, into compare/")


@dataclass(kw_only=True)
class PackConfig(OutputOptions):
    """Options of `pack`."""

    predictor: str = option(help="weights of PM (the authors' Pred.pth.tar, or ours)")
    enhancer: str | None = option(None, "weights of EM (the authors' Enhance.pth.tar, or ours)")
    out: str = option("tml.safetensors", "checkpoint to write")
    size: list[int] = option(factory=lambda: [400, 640], help="height and width of the networks")
    resize_patch_grid: bool = option(False, "let the pair take images of any size")


@dataclass(kw_only=True)
class ExportConfig(OutputOptions):
    """Options of `export`."""

    weights: str = option(help="checkpoint of `train` or `pack`")
    format: Literal["onnx", "pt2"] = option("onnx", "ONNX, or torch.export's .pt2")
    out: str | None = option(None, "file to write; default beside the weights")
    size: list[int] = option(
        factory=list, help="height and width of the exported network; default: as trained"
    )
