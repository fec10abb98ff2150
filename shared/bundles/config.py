"""Options of `crossband bundle ...`. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from crossband.shared.config import OutputOptions, option

Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(kw_only=True)
class BundleOptions(OutputOptions):
    """Options of every command on a bundle."""

    bundle: str = option(help="folder of the bundle, or a zip archive of it")


@dataclass(kw_only=True)
class InfoConfig(BundleOptions):
    """Options of `bundle info`."""


@dataclass(kw_only=True)
class CheckConfig(BundleOptions):
    """Options of `bundle check`."""

    trust: bool = option(False, "build the network though the configuration is not all allowed")


@dataclass(kw_only=True)
class WriteConfig(OutputOptions):
    """Options of `bundle write`."""

    weights: str = option(help="checkpoint of crossband (segmentation or classification)")
    out: str = option(help="folder to write")
    authors: str = option("unknown", "who made it, for the metadata")
    copyright: str = option("unknown", "for the metadata")
    data_licence: str = option("", "text of docs/data_license.txt")


@dataclass(kw_only=True)
class RunConfig(BundleOptions):
    """Options of `bundle run`."""

    inputs: list[str] = option(factory=list, help="images, or folders of them (all levels)")
    out: str = option("out", "folder to write")
    device: Device = option("auto", "where to compute")
    set: dict[str, Any] = option(
        factory=dict, help="settings of the bundle to change: output_ext=.nii.gz"
    )
    trust: bool = option(False, "run whatever the bundle's configuration says")


@dataclass(kw_only=True)
class FinetuneConfig(BundleOptions):
    """Options of `bundle finetune`."""

    data: str = option(
        help="folder with dataset.json, or images/ and labels/, or labels.csv and images"
    )
    out: str = option(help="folder of the new bundle")
    epochs: int = option(10, "passes over the data")
    learning_rate: float = option(1e-4, "learning rate, if the bundle's train.json has that id")
    batch_size: int = option(4, "images per step, if the bundle's train.json has that id")
    val_fraction: float = option(
        0.2, "part held back to validate, where the data do not say: of images or patients"
    )
    seed: int = option(0, "seed of that choice")
    device: Device = option("auto", "where to compute")
    set: dict[str, Any] = option(factory=dict, help="further settings of the bundle to change")
    trust: bool = option(False, "run whatever the bundle's configuration says")
