"""Options of the spatiotemporal commands. Torch-free: `--help` reads this and nothing else."""

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


@dataclass(kw_only=True)
class SourceConfig:
    """Where the fields are."""

    root: list[str] = option(
        factory=list, help="NetCDF files, folders of them, or Zarr stores (repeatable)"
    )
    mask: str | None = option(
        None, "variable that is above zero where the field is observed", advanced=True
    )
    cache_gb: float = option(
        2.0, "keep the fields in memory if they are smaller than this, in GB", advanced=True
    )


@dataclass(kw_only=True)
class DataConfig(SourceConfig):
    """Variables, windows and splits."""

    variables: list[str] = option(
        factory=list, help="variables to read, name or name@level; default: all on the grid"
    )
    step: int = option(1, "take every step-th time", advanced=True)
    fit: Literal["error", "crop", "pad"] = option(
        "error", "what to do with a grid that the patch size does not divide"
    )
    history: int = option(12, "frames that the network sees")
    horizon: int = option(12, "frames that it forecasts")
    split: list[float] = option(
        factory=lambda: [0.7, 0.15, 0.15],
        help="parts of the time axis for train, val, test, in this order",
    )
    train: list[str] = option(
        factory=list, help="first and last date for training, e.g. 2010 2015; overrides split"
    )
    val: list[str] = option(factory=list, help="first and last date for validation")
    test: list[str] = option(factory=list, help="first and last date for testing")


@dataclass(kw_only=True)
class CheckConfig(OutputOptions):
    """Options of `data check`."""

    data: DataConfig = option(factory=DataConfig)
    out: str | None = option(None, "write a picture of the fields to this PNG file")


@dataclass(kw_only=True)
class MakeConfig(OutputOptions):
    """Options of `data make`."""

    out: str = option("synthetic-weather", "folder to write")
    hours: int = option(720, "length in hours")
    height: int = option(16, "grid rows")
    width: int = option(32, "grid columns")
    variables: list[str] = option(factory=lambda: ["t2m"], help="variables to make")
    seed: int = option(0, "seed of the simulation")


@dataclass(kw_only=True)
class TrainConfig(RunOptions):
    """Options of `train`."""

    model: str = option("predformer", "network, see `crossband models list`")
    arguments: dict[str, Any] = option(
        factory=dict, help="arguments of the network, e.g. dim=128 depth=2"
    )
    background: bool = option(
        False, "show the network the hour-of-day climatology of the training part"
    )
    linear_skip: bool = option(False, "fit a ridge regression first; the network learns the rest")
    daily_cycle_spread: float = option(
        0.0,
        "spread (log) of a random factor on the daily cycle in training; needs --background",
        advanced=True,
    )
    data: DataConfig = option(factory=DataConfig)
    loader: LoaderConfig = option(factory=LoaderConfig)
    optimizer: OptimizerConfig = option(factory=OptimizerConfig)
    schedule: ScheduleConfig = option(factory=ScheduleConfig)
    trainer: TrainerConfig = option(factory=TrainerConfig)
    weights: str | None = option(None, "start from these weights", advanced=True)
    out: str | None = option(None, "run folder; default runs/<model>-<time>")
    resume: str | None = option(None, "run folder of a stopped run to go on with")
    dry_run: bool = option(False, "check options, data and one batch, then stop")


@dataclass(kw_only=True)
class EvaluateConfig(RunOptions):
    """Options of `evaluate`."""

    weights: str = option(help="checkpoint of `train`, or its exported file")
    data: SourceConfig = option(factory=SourceConfig)
    part: Literal["test", "val", "train", "all"] = option(
        "test", "which part of the time axis, by the checkpoint's dates"
    )
    between: list[str] = option(factory=list, help="first and last date to score instead of a part")
    baselines: list[Literal["persistence", "climatology", "ridge"]] = option(
        factory=lambda: ["persistence", "climatology", "ridge"],
        help="rivals in the same table; the last two are fitted on the training dates",
    )
    horizon: int = option(0, "frames to forecast by roll-out; 0: as trained", advanced=True)
    resamples: int = option(1000, "bootstrap resamples of the intervals", advanced=True)
    block: int = option(0, "windows per bootstrap block; 0: one day", advanced=True)
    loader: LoaderConfig = option(factory=LoaderConfig)
    out: str | None = option(
        None, "folder for metrics.json and report.html; default evaluation/ beside the weights"
    )


@dataclass(kw_only=True)
class PredictConfig(RunOptions):
    """Options of `predict`."""

    inputs: list[str] = option(factory=list, help="NetCDF files, Zarr stores or folders")
    weights: str = option(help="checkpoint of `train`, or its exported file")
    out: str = option("forecasts", "NetCDF file for one input, folder for several")
    origins: list[str] = option(
        factory=lambda: ["last"],
        help="times of the last observed frame: last, all, or dates like 2019-03-25T12",
    )
    horizon: int = option(0, "frames to forecast, by roll-out beyond those trained; 0: as trained")
    combine: bool = option(False, "read all inputs together as one data set", advanced=True)
    plot: str | None = option(None, "map animation (.gif) or map of all leads (.png)")
    error_plot: str | None = option(
        None, "error by lead (.png), where the inputs hold the truth after the origin"
    )
    batch_size: int = option(8, "windows per pass", advanced=True)


@dataclass(kw_only=True)
class ExportConfig(OutputOptions):
    """Options of `export`."""

    weights: str = option(help="checkpoint of `train`")
    format: Literal["onnx", "pt2"] = option("onnx", "ONNX, or torch.export's .pt2")
    out: str | None = option(None, "file to write; default beside the weights")
    horizon: int = option(0, "frames to forecast; 0: as trained")
