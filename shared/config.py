"""Typed options shared by all domains. Torch-free, so that `--help` answers at once."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import Any, Literal


def option(
    default: Any = MISSING,
    help: str = "",  # noqa: A002 - the word that command lines use
    *,
    advanced: bool = False,
    factory: Any = MISSING,
) -> Any:
    """Declare a dataclass field that is an option of a command.

    Args:
        default: Value when the option is not given; `MISSING` makes it required.
        help: One line for `--help`, with the unit where there is one.
        advanced: Shown only by `--help-all`.
        factory: Makes a mutable default, as `field(default_factory=...)`.
    """
    metadata = {"help": help, "advanced": advanced}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class OutputOptions:
    """Options of every command."""

    quiet: bool = option(False, "print results and errors only", advanced=True)
    json: bool = option(False, "print the result as one JSON object", advanced=True)
    debug: bool = option(False, "show the traceback of an error", advanced=True)


@dataclass(kw_only=True)
class RunOptions(OutputOptions):
    """Options of every command that runs a network."""

    seed: int = option(0, "seed of everything random", advanced=True)
    deterministic: bool = option(
        False, "only deterministic operations (slower on GPUs)", advanced=True
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "where to compute")
    precision: Literal["32", "bf16", "16"] = option(
        "32", "number format of the arithmetic (mixed precision below 32)", advanced=True
    )


@dataclass(kw_only=True)
class OptimizerConfig:
    """Optimiser and its parameter groups."""

    name: Literal["adamw", "adam", "sgd", "lion", "lamb"] = option(
        "adamw", "optimiser (lion and lamb from timm)"
    )
    lr: float = option(5e-4, "peak learning rate")
    weight_decay: float = option(1e-2, "weight decay")
    betas: list[float] = option(
        factory=lambda: [0.9, 0.999], help="decay of Adam's averages", advanced=True
    )
    decay_norm_and_bias: bool = option(
        True, "apply weight decay to biases and norms too", advanced=True
    )
    decay_positions: bool = option(
        False,
        "apply weight decay to what networks spare by name too (position tables, class tokens)",
        advanced=True,
    )
    layer_decay: float = option(
        1.0, "learning-rate factor per layer from the head down; 1 switches it off", advanced=True
    )


@dataclass(kw_only=True)
class ScheduleConfig:
    """Learning-rate schedule."""

    name: Literal["cosine", "onecycle", "constant", "poly"] = option(
        "cosine", "its shape; poly: mmseg's"
    )
    warmup_fraction: float = option(0.0, "part of the steps for linear warm-up", advanced=True)
    warmup_from_zero: bool = option(
        False, "warm up as MAE does, from a learning rate of 0 (cosine per step)", advanced=True
    )
    min_lr: float = option(1e-6, "learning rate at the end of the cosine", advanced=True)
    interval: Literal["step", "epoch"] = option("step", "when the cosine moves on", advanced=True)


@dataclass(kw_only=True)
class TrainerConfig:
    """Length, hardware and bookkeeping of a training run (Lightning's names)."""

    max_epochs: int = option(50, "passes over the training data")
    max_minutes: float = option(0.0, "stop after so many minutes of training; 0: no limit")
    limit_train_batches: int = option(0, "batches per epoch; 0: all", advanced=True)
    accumulate_grad_batches: int = option(1, "batches per optimiser step", advanced=True)
    gradient_clip_val: float = option(0.0, "largest gradient norm; 0: no clipping", advanced=True)
    ema_decay: float = option(0.0, "decay of the weight average; 0: none")
    select: Literal["best", "last"] = option(
        "best", "weights to keep: lowest validation loss, or the end of the schedule", advanced=True
    )
    patience: int = option(0, "stop after so many epochs without improvement; 0: never")
    check_val_every_n_epoch: int = option(
        1, "epochs from one validation to the next", advanced=True
    )
    save_every_n_steps: int = option(
        200, "steps between resumable checkpoints within an epoch", advanced=True
    )
    compile: bool = option(False, "torch.compile the network (needs a C++ compiler)")
    devices: int = option(1, "devices per node", advanced=True)
    num_nodes: int = option(1, "nodes", advanced=True)
    strategy: str = option("auto", "Lightning strategy: auto, ddp, fsdp, ...", advanced=True)


@dataclass(kw_only=True)
class LoaderConfig:
    """How batches are made."""

    batch_size: int = option(16, "windows or images per step")
    num_workers: int = option(0, "loader processes; 0 loads in the main one")
