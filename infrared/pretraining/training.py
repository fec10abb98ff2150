"""Pre-training without labels: `crossband infrared pretrain`."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import default_collate

from crossband.infrared.pretraining.config import PretrainConfig
from crossband.infrared.pretraining.material import Material, gather_material
from crossband.infrared.pretraining.methods import Plan, build, stages_of, usable_encoders
from crossband.infrared.pretraining.report import write_report
from crossband.shared.checkpoints import load_checkpoint, read_config, save_checkpoint
from crossband.shared.cli.parser import dump_config
from crossband.shared.environment import machine
from crossband.shared.errors import ConfigError
from crossband.shared.training.loop import Data, fit
from crossband.shared.training.resume import stored_options
from crossband.shared.training.run_folder import RunFolder


def pretrain(config: PretrainConfig) -> None:
    """Pre-train a network; leave a checkpoint that ViT loaders take, and a report."""
    config = replace(config, quiet=config.quiet or config.json)
    if config.resume:
        folder = RunFolder(config.resume)
        if not folder.config.is_file():
            raise ConfigError(
                f"--resume {config.resume}: there is no run there; start one without --resume."
            )
        from crossband.infrared.cli import DOMAIN

        config = stored_options(DOMAIN.verbs["pretrain"], folder, config)
    else:
        folder = RunFolder.create(config.out, config.method)
        # Other processes of the run start when the first has written its options already.
        if folder.config.exists() and "LOCAL_RANK" not in os.environ:
            raise ConfigError(
                f"{folder.path} already holds a run: choose another --out, or go on with it by "
                f"--resume {folder.path}."
            )
    material = gather_material(config)
    stages = stages_of(config)
    parts = [folder if len(stages) == 1 else folder.stage(stage) for stage in stages]
    histories: dict[str, list[dict[str, float]]] = {}
    for number, (stage, part) in enumerate(zip(stages, parts, strict=True)):
        stored = read_config(part.best) if part.best.is_file() else {}
        earlier = parts[number - 1].best if number else None
        plan = build(config, material.probe, stored, earlier)
        description = _description(config, plan, material)
        if not config.quiet:
            print(_summary(config, folder, plan, material, stage), flush=True)
        if config.dry_run or not config.trainer.compile:  # compiling for two images takes minutes
            _try_one_batch(plan, material)
        if config.dry_run:
            print("dry run: options, data and one batch are in order; nothing was written.")
            return
        if not config.resume and number == 0:
            folder.save_config_text(dump_config(config))
        histories[stage] = _train(config, plan, material, part, description)
    trained = load_checkpoint(parts[-1].best)
    if parts[-1] is not folder:
        save_checkpoint(folder.best, trained.state_dict, trained.config)
    plan.task.model.load_state_dict(trained.state_dict)
    for name, (state, facts) in usable_encoders(plan, material.normalisation).items():
        save_checkpoint(folder.path / f"{name}.safetensors", state, description | facts)
    write_report(config, folder, plan, material, histories, description)


def _train(
    config: PretrainConfig,
    plan: Plan,
    material: Material,
    folder: RunFolder,
    description: dict[str, Any],
) -> list[dict[str, float]]:
    """Train a stage, or what is left of it; return its history."""
    if folder.results.is_file():  # written when a stage has ended
        return json.loads(folder.results.read_text(encoding="utf-8"))["history"]
    book = fit(
        plan.task,
        Data(material.train, material.val, config.loader, config.seed),
        folder,
        config.trainer,
        config,
        describe=lambda: description,
        resume=folder.last.is_file(),
    )
    folder.write_results({"best": book.best, "history": book.history})
    return book.history


def _try_one_batch(plan: Plan, material: Material) -> None:
    count = min(2, len(material.train))  # type: ignore[arg-type]
    batch = default_collate([material.train[index] for index in range(count)])
    with torch.no_grad():
        plan.task.eval().loss(batch)
    plan.task.train()


def _description(config: PretrainConfig, plan: Plan, material: Material) -> dict[str, Any]:
    return {
        "task": "pre-training",
        "method": config.method,
        "model": {"name": plan.name, "arguments": plan.arguments},
        "normalisation": material.normalisation,
        **plan.facts,
        "protocol": {
            "images": material.counts,
            "data_sets": material.data_sets,
            "files_sha256": material.fingerprint,
            "size": config.size,
            "batch_size": config.loader.batch_size * config.trainer.accumulate_grad_batches,
            "teacher": "random weights" if config.teacher == "random" else config.teacher,
            "seed": config.seed,
            "machine": machine(),
        },
    }


def _summary(
    config: PretrainConfig, folder: RunFolder, plan: Plan, material: Material, stage: str
) -> str:
    trained = sum(p.numel() for p in plan.task.model.parameters() if p.requires_grad)
    counts = material.counts
    lines = [
        f"{stage}: {plan.name}, {trained / 1e6:.2f} M trained parameters, "
        f"{config.size} x {config.size}, seed {config.seed}",
        f"images: {counts['train']} to train on, {counts['val']} to validate on",
        *material.note_lines(),
        *plan.lines,
        f"run folder: {folder.path}",
    ]
    return "\n".join(lines)
