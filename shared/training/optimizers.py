"""Optimisers, their parameter groups and learning-rate schedules."""

from __future__ import annotations

import math

import crossband.shared.compat  # noqa: F401 - before timm

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from crossband.shared.config import OptimizerConfig, ScheduleConfig
from crossband.shared.errors import ConfigError


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict]:
    """Split trainable parameters by weight decay and, if asked, by depth.

    A network may have a method `no_weight_decay() -> set[str]` (timm's convention): the parameters
    that it names, such as tables of positions, get a weight decay of 0.

    Layer-wise learning-rate decay (BEiT, MAE fine-tuning): a parameter of layer `k` out of `n`
    gets `lr * layer_decay ** (n - k)`. The network says which layer a parameter belongs to by a
    method `layer_index(name) -> int`, 0 for the embeddings; the head has the largest index.

    Raises:
        ConfigError: layer decay asked of a network that does not tell its layers.
    """
    layered = config.layer_decay != 1.0
    if layered and not hasattr(model, "layer_index"):
        raise ConfigError(
            f"{type(model).__name__} does not tell its layers, so --optimizer.layer_decay "
            f"{config.layer_decay} cannot be applied: leave it at 1."
        )
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    layers = {name: model.layer_index(name) if layered else 0 for name, _ in trainable}
    last = max(layers.values(), default=0)
    spared = set() if config.decay_positions else getattr(model, "no_weight_decay", set)()
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in trainable:
        exempt = name in spared or (parameter.ndim <= 1 and not config.decay_norm_and_bias)
        decay = 0.0 if exempt else config.weight_decay
        scale = config.layer_decay ** (last - layers[name])
        group = groups.setdefault(
            (decay, scale),
            {"params": [], "weight_decay": decay, "lr": config.lr * scale, "lr_scale": scale},
        )
        group["params"].append(parameter)
    return list(groups.values())


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Build the optimiser that `config` names over the model's parameter groups."""
    groups = parameter_groups(model, config)
    if len(config.betas) != 2:
        raise ConfigError(f"--optimizer.betas {config.betas}: give two numbers.")
    betas = (config.betas[0], config.betas[1])
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=betas)
    if config.name == "adam":
        return torch.optim.Adam(groups, lr=config.lr, betas=betas)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)
    from timm.optim import create_optimizer_v2

    return create_optimizer_v2(groups, opt=config.name, lr=config.lr)


def build_schedule(
    optimizer: Optimizer, config: ScheduleConfig, lr: float, epochs: int, steps_per_epoch: int
) -> LRScheduler:
    """Build a schedule that is stepped once per optimiser step.

    `onecycle` is PyTorch's with `final_div_factor=1e4` as OpenSTL runs it. `cosine` falls from
    `lr` to `min_lr` after a linear warm-up; with `interval="epoch"` it moves once per epoch, as
    timm's CosineLRScheduler does for OpenSTL (SPEC of PredFormer, section 5). `poly` is mmseg's
    of power 1: `1 - t / T`, times a linear warm-up from 1e-6. With `warmup_from_zero` the cosine
    is MAE's (`mae_rate`). Groups keep their share of the rate, `min_lr` included.

    Raises:
        ConfigError: `warmup_from_zero` with anything but a cosine that moves at each step.
    """
    if config.warmup_from_zero and (config.name, config.interval) != ("cosine", "step"):
        raise ConfigError(
            f"--schedule.warmup_from_zero goes with a cosine per step, not with {config.name} per "
            f"{config.interval}: leave it out."
        )
    total = max(1, epochs * steps_per_epoch)
    if config.name == "onecycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, max_lr=rates, total_steps=total, final_div_factor=1e4)
    warmup = int(config.warmup_fraction * total)
    if config.name == "poly":
        return LambdaLR(optimizer, lambda step: poly_factor(step, total, warmup))
    floor = config.min_lr / lr if config.name == "cosine" else 1.0

    def factor(step: int) -> float:
        if config.warmup_from_zero:
            epoch, warmup_epochs = step / steps_per_epoch, config.warmup_fraction * epochs
            return mae_rate(epoch, lr=1, min_lr=floor, warmup_epochs=warmup_epochs, epochs=epochs)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if config.interval == "epoch":
            progress = (step // steps_per_epoch) / epochs
        else:
            progress = (step - warmup) / max(1, total - warmup)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor)


def mae_rate(
    epoch: float, *, lr: float, min_lr: float, warmup_epochs: float, epochs: float
) -> float:
    """Return MAE's learning rate at a fractional epoch (He et al. 2022, appendix A.1).

    Its warm-up starts at zero; that of `build_schedule` otherwise does not: step n of w takes
    (n + 1) / (w + 1) of the rate, so that the first step is not lost.

    Args:
        epoch: From 0.
        lr: The peak.
        min_lr: At the end.
        warmup_epochs: Of the linear rise.
        epochs: Of the run.
    """
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    progress = min(1.0, (epoch - warmup_epochs) / (epochs - warmup_epochs))
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def poly_factor(step: int, total: int, warmup: int) -> float:
    """Return mmseg's factor of the learning rate: power 1 to zero, warm-up from 1e-6.

    Args:
        step: From 0.
        total: Steps of the run.
        warmup: Steps of the warm-up.
    """
    start = 1e-6
    rise = 1.0 if step >= warmup else 1 - (1 - step / warmup) * (1 - start)
    return max(0.0, 1 - step / total) * rise
