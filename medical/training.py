"""`crossband medical train`: findings, masks or boxes; whole networks or few parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import default_collate

from crossband.medical import classification, networks, segmentation
from crossband.medical.config import TrainConfig
from crossband.medical.jobs import NOT_A_DEVICE, Job
from crossband.shared.checkpoints import load_checkpoint, save_checkpoint
from crossband.shared.cli.output import format_table
from crossband.shared.cli.parser import dump_config
from crossband.shared.errors import ConfigError
from crossband.shared.files import file_digest, json_text, write_text
from crossband.shared.training.loop import Data, fit, is_main_process
from crossband.shared.training.resume import stored_options
from crossband.shared.training.run_folder import RunFolder
from crossband.shared.tuning.lora import tuned_state

EVERY_FOLD = -1
TUNED = "tuned.safetensors"


def train(config: TrainConfig) -> None:
    """Train a network; leave the best weights and a report."""
    if config.task != "detection" and config.data.folds and config.data.fold == EVERY_FOLD:
        _every_fold(config)
        return
    if config.resume:
        from crossband.medical.cli import DOMAIN

        folder = RunFolder.existing(config.resume)
        config = stored_options(DOMAIN.verbs["train"], folder, config)
    if config.task == "detection":
        from crossband.medical.detection import training as detection

        detection.train(config)
        return
    if not config.resume:
        folder = RunFolder.create(config.out, config.model)
    if config.task == "classification" and config.model == networks.STATISTICS:
        classification.fit_statistics(config, folder)
        return
    kind = _kind(config)
    job = kind.prepare(config)
    description = kind.describe(config, len(job.classes))
    torch.manual_seed(config.seed)
    model = networks.build(description).to(memory_format=torch.channels_last)
    loaded = "none, from scratch"
    if config.weights:  # a resumed run has taken them over already
        told = f"as the run began: {config.weights}"
        loaded = told if config.resume else kind.load(model, config)
    elif config.tuning != "full":
        raise ConfigError(
            f"--tuning {config.tuning} leaves the network as it is, and without --weights it is "
            "random: give pre-trained weights."
        )
    kind.tune(model, description)
    task = job.task(model)
    if is_main_process() and not config.quiet and not config.json:
        print(_summary(config, folder, job, model, loaded), flush=True)
    batch = default_collate([job.train[i] for i in range(min(2, len(job.train)))])  # type: ignore
    with torch.no_grad():
        task.eval().loss(batch)
    task.train()
    _ = job.val[0]  # what cannot be cut out is better known now
    if config.dry_run:
        print("dry run: options, data and one batch are in order; nothing was written.")
        return
    if not config.resume:
        folder.save_config_text(dump_config(config))
    facts = {"model": description, **job.facts}
    data = Data(
        job.train,
        job.val,
        config.loader,
        config.seed,
        smallest_batch=2 if _has_batch_norm(model) else 1,
    )
    book = fit(
        task,
        data,
        folder,
        config.trainer,
        replace(config, quiet=config.quiet or config.json),
        describe=lambda: facts,
        resume=bool(config.resume),
    )
    if not is_main_process():
        return
    job.finish(folder, book)
    if config.tuning != "full":
        _save_tuned(config, folder)
    if not config.quiet and not config.json:
        print(NOT_A_DEVICE)


@dataclass(frozen=True)
class _Kind:
    """How a kind of task is prepared, and how its network is described, loaded and tuned."""

    prepare: Callable[[TrainConfig], Job]
    describe: Callable[[TrainConfig, int], dict[str, Any]] = networks.describe
    load: Callable[[nn.Module, TrainConfig], str] = networks.load_weights
    tune: Callable[[nn.Module, dict[str, Any]], None] = networks.tune


def _kind(config: TrainConfig) -> _Kind:
    if config.task == "classification":
        return _Kind(classification.prepare)
    if not config.model.endswith("_prompted"):
        return _Kind(segmentation.prepare)
    from crossband.medical.prompted import training as prompted
    from crossband.medical.prompted import weights

    return _Kind(
        prompted.prepare, weights.describe, weights.load, lambda model, _: weights.freeze(model)
    )


def _save_tuned(config: TrainConfig, folder: RunFolder) -> None:
    """Write beside the whole weights the few that were trained; they need the base file again."""
    checkpoint = load_checkpoint(folder.best)
    model = networks.build(checkpoint.config["model"])
    networks.tune(model, checkpoint.config["model"])
    model.load_state_dict(checkpoint.state_dict)
    path = folder.path / TUNED
    base = {"path": config.weights, "sha256": file_digest(str(config.weights))}
    save_checkpoint(path, tuned_state(model), checkpoint.config | {"base": base})
    if not config.quiet and not config.json:
        small, whole = (p.stat().st_size / 2**20 for p in (path, folder.best))
        print(f"trained part alone: {path} ({small:.2f} MB of {whole:.1f} MB)")


def _every_fold(config: TrainConfig) -> None:
    """Train on each fold in turn; say what the scores are and how far they differ."""
    import json

    if config.json:
        raise ConfigError(
            "--json prints one run: train folds one by one with --data.fold 0, 1, ..."
        )
    root = Path(config.resume or config.out or "")
    if not (config.resume or config.out):
        raise ConfigError("--data.fold -1 trains every fold: give --out for their folders.")
    rows: list[dict[str, float]] = []
    for fold in range(config.data.folds):
        folder = RunFolder(root / f"fold-{fold}")
        own = replace(config, data=replace(config.data, fold=fold), out=str(folder.path))
        own = replace(own, resume=str(folder.path) if folder.last.is_file() else None)
        if not folder.results.is_file():
            train(own)
        if config.dry_run:
            return
        stored = json.loads(folder.results.read_text(encoding="utf-8"))
        rows.append({"fold": fold, **stored["headline"]})
    names = [name for name in rows[0] if name != "fold"]
    values = {name: np.array([row[name] for row in rows], float) for name in names}
    summary = {
        name: {"mean": float(v.mean()), "std": float(v.std(ddof=1))} for name, v in values.items()
    }
    write_text(root / "folds.json", json_text({"folds": rows, "summary": summary}) + "\n")
    print(format_table(list(rows[0]), [tuple(row.values()) for row in rows]))
    for name, value in summary.items():
        print(f"{name}: {value['mean']:.4f}, standard deviation over folds {value['std']:.4f}")


def _has_batch_norm(model: nn.Module) -> bool:
    kinds = nn.modules.batchnorm._BatchNorm
    return any(isinstance(m, kinds) and m.training for m in model.modules())


def _summary(
    config: TrainConfig, folder: RunFolder, job: Job, model: nn.Module, loaded: str
) -> str:
    count = sum(p.numel() for p in model.parameters())
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = "" if learned == count else f", {learned:,} trained ({100 * learned / count:.2f} %)"
    gathered, chosen = job.gathered, job.val_records
    lines = [
        f"{config.model}: {count:,} parameters{frozen}, seed {config.seed}",
        f"{len(job.classes)} outputs: {', '.join(job.classes)}",
        f"images: {len(gathered.train)} to train on, {len(chosen)} to choose the weights on"
        + (" (of the TEST split)" if config.select_on == "test" else ""),
        f"weights: {loaded}",
        *(f"note: {note}" for note in gathered.notes[:8]),
        f"run folder: {folder.path}",
    ]
    return "\n".join(lines)
