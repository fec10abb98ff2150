"""The two roads to a UNIP segmentation network, made small: the shipped config and the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from crossband.infrared import networks
from crossband.infrared.cli import DOMAIN
from crossband.infrared.config import TrainConfig
from crossband.infrared.training import build_task, checkpoint_facts, data_sets, gather
from crossband.shared.checkpoints import save_checkpoint
from crossband.shared.cli.parser import parse
from crossband.shared.training.loop import Data, fit
from crossband.shared.training.run_folder import RunFolder

RECIPES = Path(networks.__file__).parent / "unip" / "recipes"
STEPS, WARMUP, BATCH = 8, 2, 4
LR = 1e-3
TINY: dict[str, Any] = {
    "embed_dim": 24, "depth": 3, "num_heads": 3, "img_size": 64, "drop_path_rate": 0.3,
}  # fmt: skip


def our_config(root: Path, *flags: str) -> TrainConfig:
    """Return the recipe `sirst_512` for small images of another layout."""
    return parse(DOMAIN.verbs["train"], [
        "--recipe", "sirst_512", "--data.root", str(root), "--data.layout", "folder",
        "--data.crop", "64", "--data.scale.short_side", "80", "--loader.batch_size", str(BATCH),
        "--optimizer.lr", str(LR), "--schedule.warmup_fraction", str(WARMUP / STEPS),
        "--trainer.max_epochs", "2", "--window.stride", "43", "--quiet",
        "--trainer.check_val_every_n_epoch", "1", *flags,
    ])  # fmt: skip


def our_network(classes: int) -> tuple[nn.Module, dict[str, Any]]:
    """Return a small network and its description."""
    arguments = {"num_classes": classes, "auxiliary_channels": 16, "channels": 24, **TINY}
    description = {"name": "unip_small_upernet", "arguments": arguments}
    torch.manual_seed(0)
    model = networks.build(description)
    with torch.no_grad():  # norms that differ from each other
        for name, value in model.named_buffers():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
    return model, description


def train_ours(config: TrainConfig, model: nn.Module, out: Path) -> tuple[list[float], list[float]]:
    """Train; return loss and rate of every step."""
    material = gather(config.data, config.seed)
    task = build_task(model, config, material)
    losses, rates, loss_of = [], [], task.loss

    def record(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        losses.append(loss_of(batch))
        rates.append(max(g["lr"] for g in task.trainer.optimizers[0].param_groups))
        return losses[-1]

    task.loss = record  # type: ignore[method-assign]
    data = Data(*data_sets(config, material), config.loader, config.seed, val_batch_size=1)
    fit(task, data, RunFolder(out), config.trainer, config, describe=dict)
    return [loss.item() for loss in losses], rates


def save(config: TrainConfig, model: nn.Module, description: dict[str, Any], path: Path) -> Path:
    """Write a checkpoint as `train` does."""
    facts = checkpoint_facts(config, gather(config.data, config.seed), description)
    return save_checkpoint(path, model.state_dict(), facts)


def their_options(classes: int) -> dict[str, Any]:
    """Return what makes the shipped config as small as `our_config`, as `--cfg-options`."""
    width, crop = TINY["embed_dim"], (64, 64)
    small = {f"model.backbone.{name}": value for name, value in TINY.items()}
    data = {
        f"{part}_dataloader.dataset.{name}": value
        for part in ("train", "val", "test")
        for name, value in {
            "layout": "folder", "scale.short_side": 80, "scale.long_side": 2048,
        }.items()
    }  # fmt: skip
    loaders = {f"{part}_dataloader.num_workers": 0 for part in ("train", "val", "test")}
    loaders |= {f"{part}_dataloader.persistent_workers": False for part in ("train", "val")}
    return small | data | loaders | {
        "model.backbone.out_indices": (2,),
        "model.data_preprocessor.size": crop,
        "model.data_preprocessor.test_cfg.size": crop,
        "model.neck.channels": width,
        "model.decode_head.in_channels": [width] * 4,
        "model.decode_head.channels": width,
        "model.decode_head.num_classes": classes,
        "model.auxiliary_head.in_channels": width,
        "model.auxiliary_head.channels": 16,
        "model.auxiliary_head.num_classes": classes,
        "model.test_cfg.crop_size": crop,
        "model.test_cfg.stride": (43, 43),
        "train_dataloader.batch_size": BATCH,
        "train_dataloader.dataset.crop": 64,
        "optim_wrapper.optimizer.lr": LR,
        "train_cfg.max_iters": STEPS,
        "train_cfg.val_interval": STEPS // 2,
        "default_hooks.checkpoint.interval": 3,
        "param_scheduler.0.end": WARMUP + 1,
        "param_scheduler.1.end": STEPS + 1,
    }  # fmt: skip
