"""Options of `crossband models ...` and `crossband env`. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from crossband.shared.config import OutputOptions, option


@dataclass(kw_only=True)
class ListConfig(OutputOptions):
    """Options of `models list`."""

    json: bool = option(False, "print the result as JSON")
    pattern: str = option("*", 'names to show, with wildcards: "predformer*"')


@dataclass(kw_only=True)
class InfoConfig(OutputOptions):
    """Options of `models info`."""

    json: bool = option(False, "print the result as JSON")
    name: str = option(help="name of a model, or a checkpoint file")
    arguments: dict[str, Any] = option(
        factory=dict, help="constructor arguments, for models of any size: dim=64 height=32"
    )


@dataclass(kw_only=True)
class ConvertConfig(OutputOptions):
    """Options of `models convert`."""

    json: bool = option(False, "print the report as JSON")
    source: str = option(help="file of weights to read (.pth, .pt, .ckpt, .safetensors)")
    out: str = option(help="file to write; .safetensors holds weights and configuration")
    model: str = option("", "name of the model (a crossband checkpoint knows its own)")
    arguments: dict[str, Any] = option(
        factory=dict, help="constructor arguments, for models of any size: dim=64 height=32"
    )
    to: Literal["crossband", "official"] = option("crossband", "whose key names to write")


@dataclass(kw_only=True)
class VerifyConfig(OutputOptions):
    """Options of `models verify`."""

    json: bool = option(False, "print the result as JSON")
    fixtures: list[str] = option(help="golden files (.safetensors) or folders of them")


@dataclass(kw_only=True)
class BenchConfig(OutputOptions):
    """Options of `models bench`."""

    json: bool = option(False, "print the result as JSON")
    names: list[str] = option(help="names of models, with wildcards; timm:NAME for one of timm")
    batch: list[int] = option(factory=lambda: [1], help="batch sizes")
    size: list[int] = option(factory=list, help="sides of square images, if not the model's")
    shape: list[int] = option(factory=list, help="input shape without the batch, instead of size")
    arguments: dict[str, Any] = option(
        factory=dict, help="constructor arguments, for models of any size: dim=64 height=32"
    )
    training: bool = option(True, "time a training step too (forward and backward)")
    repeats: int = option(10, "timed rounds; the median is shown")
    seconds: float = option(60.0, "start no further round after this (inference, then training)")
    threads: int = option(0, "CPU threads; 0: PyTorch's choice")
    compile: bool = option(False, "torch.compile the networks (needs a C++ compiler)")
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "where to compute")


@dataclass(kw_only=True)
class EnvConfig(OutputOptions):
    """Options of `env`."""

    json: bool = option(False, "print the result as JSON")
