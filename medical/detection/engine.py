"""From the options of `train` to a stock config of mmdet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossband.medical.config import TrainConfig
from crossband.medical.data.transforms import Normalisation
from crossband.medical.detection.model import mmdet_model
from crossband.shared.cli.parser import dump_config
from crossband.shared.devices import select_device
from crossband.shared.errors import ConfigError

CONFIG_FILE = "detector.py"
IMPORTS = ["crossband.shared.plugins.openmmlab", "crossband.medical.detection.openmmlab"]
_OPTIMISERS = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD"}
_NUMBERS = {"bf16": "bfloat16", "16": "float16"}
_META = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "broken")
_FLIPS = ("flip", "flip_direction")


def refuse(config: TrainConfig) -> None:
    """Refuse options that detection has not.

    Raises:
        ConfigError: there is one, or a number that cannot be.
    """
    blank = TrainConfig()
    other = {
        "tuning": (config.tuning, blank.tuning),
        "sliding": (config.sliding, False),
        "monitor": (config.monitor, "auto"),
        "select_on": (config.select_on, "val"),
        "data.shrink": (config.data.shrink, 0),
        "optimizer.layer_decay": (config.optimizer.layer_decay, 1.0),
        "schedule.warmup_from_zero": (config.schedule.warmup_from_zero, False),
        "schedule.interval": (config.schedule.interval, "step"),
        **{f"loss.{n}": (v, getattr(blank.loss, n)) for n, v in vars(config.loss).items()},
        **{
            f"trainer.{name}": (getattr(config.trainer, name), getattr(blank.trainer, name))
            for name in ("limit_train_batches", "ema_decay", "compile")
        },
    }
    for name, (value, usual) in other.items():
        if value != usual:
            raise ConfigError(
                f"--{name} {value} is not for --task detection: leave it at its default"
                + (f", {usual}." if usual else ".")
            )
    trainer = config.trainer
    if (trainer.devices, trainer.num_nodes, trainer.strategy) != (1, 1, "auto"):
        raise ConfigError(
            f"--task detection trains on one device here: start mmdet's own dist_train.sh on the "
            f"{CONFIG_FILE} of a run folder for several."
        )
    if config.optimizer.name not in _OPTIMISERS:
        raise ConfigError(
            f"--optimizer.name {config.optimizer.name} is not for --task detection: take "
            f"{', '.join(_OPTIMISERS)}."
        )
    least = {
        "size": (config.size, 32),
        "loader.batch_size": (config.loader.batch_size, 1),
        "loader.num_workers": (config.loader.num_workers, 0),
        "trainer.max_epochs": (trainer.max_epochs, 1),
        "trainer.accumulate_grad_batches": (trainer.accumulate_grad_batches, 1),
        "trainer.check_val_every_n_epoch": (trainer.check_val_every_n_epoch, 1),
    }
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise ConfigError(f"--{name} {value} must be at least {smallest}.")
    for name in ("flip", "vertical_flip"):
        part = getattr(config.augment, name)
        if not 0 <= part <= 1:
            raise ConfigError(f"--augment.{name} {part:g} is a probability: give 0 to 1.")
    if config.precision != "32" and select_device(config.device).type != "cuda":
        raise ConfigError(
            f"--precision {config.precision} needs a GPU for --task detection: take 32 here."
        )


def engine_config(
    config: TrainConfig,
    description: Mapping[str, Any],
    normalisation: Normalisation,
    facts: Mapping[str, Any],
    folder: Path,
    annotations: Path,
    images: int,
) -> dict[str, Any]:
    """Return a config for mmengine's Runner that mmdet's own `train.py` takes as well.

    Args:
        config: Options.
        description: Of the detector, by `model.describe`.
        normalisation: Of pixels in 0..1.
        facts: What the checkpoint says beside the weights.
        folder: Run folder.
        annotations: Folder of train.json and val.json.
        images: Number of images to train on.
    """
    batch = config.loader.batch_size
    steps = -(-images // batch)
    weights = str(Path(config.weights).resolve()) if config.weights else None
    classes = tuple(facts["classes"])
    trainer = config.trainer
    hooks: list[dict[str, Any]] = [
        {
            "type": "crossband.DetectionRunHook",
            "options": dump_config(config),
            "facts": dict(facts),
            "max_minutes": trainer.max_minutes,
            "keep": trainer.select,
            "quiet": config.quiet or config.json,
        },
        {"type": "crossband.LastStateHook"},
        {"type": "crossband.ReseedHook"},
    ]
    if trainer.patience:
        rule = {"monitor": "ap50", "rule": "greater", "patience": trainer.patience}
        hooks.append({"type": "EarlyStoppingHook", **rule})
    val = _loader(config, annotations / "val.json", classes, training=False)
    return {
        "custom_imports": {"imports": IMPORTS, "allow_failed_imports": False},
        "default_scope": "mmdet",
        "work_dir": str(folder.resolve()),
        "model": mmdet_model(description, normalisation, weights),
        "train_dataloader": _loader(config, annotations / "train.json", classes, training=True),
        "val_dataloader": val,
        "val_evaluator": {"type": "crossband.BoxMetric"},
        "train_cfg": {
            "type": "EpochBasedTrainLoop",
            "max_epochs": trainer.max_epochs,
            "val_interval": trainer.check_val_every_n_epoch,
        },
        "val_cfg": {"type": "ValLoop"},
        "optim_wrapper": _optimiser(config),
        "param_scheduler": _schedule(config, trainer.max_epochs * steps),
        "default_hooks": {"checkpoint": None},
        "custom_hooks": hooks,
        "visualizer": {"type": "Visualizer", "vis_backends": []},
        "randomness": {"seed": config.seed, "deterministic": config.deterministic},
        "env_cfg": {"cudnn_benchmark": False, "dist_cfg": {"backend": "nccl"}},
        "log_level": "INFO",
        "load_from": None,
        "resume": False,
    }


def _loader(
    config: TrainConfig, annotations: Path, classes: tuple[str, ...], *, training: bool
) -> dict[str, Any]:
    size = {"type": "Resize", "scale": (config.size, config.size), "keep_ratio": True}
    read = {
        "type": "crossband.LoadPicture",
        "window": list(config.data.window),
        "colours": config.data.colours,
        "keep_ids": config.keep_ids,
        "cache_gb": config.data.cache_gb / 2,  # two loaders
        "training": training,
    }
    draw = {"type": "LoadAnnotations", "with_bbox": True}
    if training:
        flips = [
            {"type": "RandomFlip", "prob": part, "direction": direction}
            for part, direction in (
                (config.augment.flip, "horizontal"),
                (config.augment.vertical_flip, "vertical"),
            )
            if part
        ]
        pack = {"type": "PackDetInputs", "meta_keys": (*_META, *_FLIPS)}
        pipeline = [read, draw, size, *flips, pack]
    else:
        # Boxes are read after resizing, so that they keep the image's own size.
        pipeline = [read, size, draw, {"type": "PackDetInputs", "meta_keys": _META}]
    workers = config.loader.num_workers
    return {
        "batch_size": config.loader.batch_size if training else 1,
        "num_workers": workers,
        "persistent_workers": bool(workers),
        "sampler": {"type": "DefaultSampler", "shuffle": training},
        "dataset": {
            "type": "crossband.BoxDataset",
            "ann_file": str(annotations.resolve()),
            "metainfo": {"classes": classes},
            "data_prefix": {"img": ""},
            "test_mode": not training,
            "pipeline": pipeline,
        },
    }


def _optimiser(config: TrainConfig) -> dict[str, Any]:
    chosen = config.optimizer
    optimiser: dict[str, Any] = {
        "type": _OPTIMISERS[chosen.name],
        "lr": chosen.lr,
        "weight_decay": chosen.weight_decay,
    }
    optimiser |= {"momentum": 0.9} if chosen.name == "sgd" else {"betas": tuple(chosen.betas)}
    wrapper: dict[str, Any] = {
        "type": "OptimWrapper",
        "optimizer": optimiser,
        "accumulative_counts": config.trainer.accumulate_grad_batches,
    }
    if config.precision != "32":
        wrapper |= {"type": "AmpOptimWrapper", "dtype": _NUMBERS[config.precision]}
        wrapper |= {"loss_scale": "dynamic"} if config.precision == "16" else {}
    if config.trainer.gradient_clip_val:
        wrapper["clip_grad"] = {"max_norm": config.trainer.gradient_clip_val}
    if not chosen.decay_norm_and_bias:
        wrapper["paramwise_cfg"] = {"norm_decay_mult": 0.0, "bias_decay_mult": 0.0}
    return wrapper


def _schedule(config: TrainConfig, total: int) -> list[dict[str, Any]]:
    schedule, found = config.schedule, list[dict[str, Any]]()
    if schedule.name == "onecycle":
        rates = {"eta_max": config.optimizer.lr, "final_div_factor": 1e4}
        return [{"type": "OneCycleLR", **rates, "total_steps": total, "by_epoch": False}]
    warmup = int(schedule.warmup_fraction * total)
    if warmup:
        rise = {"start_factor": 1 / (warmup + 1), "begin": 0, "end": warmup}
        found.append({"type": "LinearLR", **rise, "by_epoch": False})
    span = {"begin": warmup, "end": total, "by_epoch": False}
    if schedule.name == "cosine":
        length = max(1, total - warmup)
        floor = {"eta_min": schedule.min_lr, "T_max": length}
        found.append({"type": "CosineAnnealingLR", **floor, **span})
    elif schedule.name == "poly":
        found.append({"type": "PolyLR", "power": 1.0, "eta_min": 0.0, **span})
    return found
