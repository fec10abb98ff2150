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
        0, "keep images in memory with a shorter side of so many pixels; 0: as they are"
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
    target: str | None = option(
        None, "csv column that names one class per image (as view), instead of findings"
    )
    views: list[str] = option(
        factory=list, help="views to take: PA AP LATERAL ...; default: frontal ones", advanced=True
    )
    uncertain: Uncertain = option(
        "paper", "labels of -1: present, absent, left out, or by finding as the paper", advanced=True
    )
    seed: int = option(0, "of the split by patients, where a set has none", advanced=True)
    val_fraction: float = option(
        0.1, "part of the patients held back to validate, where there is no split", advanced=True
    )
    test_fraction: float = option(
        0.2, "part of the patients held back to test, where there is no split", advanced=True
    )
    folds: int = option(0, "cut the patients into so many folds; 0: no", advanced=True)
    fold: int = option(0, "fold to validate on, from 0", advanced=True)


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
