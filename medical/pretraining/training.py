"""`crossband medical pretrain`."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch
from torch.utils.data import default_collate

from crossband.medical.pretraining.config import MASKED_METHODS, PretrainConfig
from crossband.medical.pretraining.plan import Plan
from crossband.shared.checkpoints import load_checkpoint
from crossband.shared.cli.parser import dump_config
from crossband.shared.errors import ConfigError
from crossband.shared.training.loop import Data, fit, is_main_process
from crossband.shared.training.resume import stored_options
from crossband.shared.training.run_folder import RunFolder

# Options of one kind of method: given to another, they would do nothing.
_OF_MASKED = (
    *("mask_ratio", "data.layout", "data.table", "data.columns", "data.views", "data.splits"),
    *("data.smallest", "data.largest", "data.window", "data.shrink"),
)
_OF_VIEWS = (
    *("crops", "matching", "heads", "data.axis", "data.windows", "data.copies", "data.unpack"),
)


def pretrain(config: PretrainConfig) -> None:
    """Pre-train a network; leave a checkpoint that `train --weights` takes, and a report.

    Raises:
        CrossbandError: options, data or weights that cannot work, or a stop by signal.
    """
    if config.resume:
        from crossband.medical.cli import DOMAIN

        folder = RunFolder.existing(config.resume)
        config = stored_options(DOMAIN.verbs["pretrain"], folder, config)
    else:
        folder = RunFolder.create(config.out, config.method)
    plan = _prepare(config)
    if is_main_process() and not config.quiet and not config.json:
        print(_summary(config, folder, plan), flush=True)
    if config.dry_run or not config.trainer.compile:  # compiling for two images takes minutes
        _try_one_batch(plan)
    if config.dry_run:
        print("dry run: options, data and one batch are in order; nothing was written.")
        return
    if not config.resume:
        folder.save_config_text(dump_config(config))
    book = fit(
        plan.task,
        Data(plan.train, plan.val, config.loader, config.seed, smallest_batch=plan.smallest_batch),
        folder,
        config.trainer,
        replace(config, quiet=config.quiet or config.json),
        describe=lambda: plan.description,
        resume=bool(config.resume),
    )
    if not is_main_process():
        return
    plan.task.model.load_state_dict(load_checkpoint(folder.best).state_dict)
    plan.finish(folder, book)


def _prepare(config: PretrainConfig) -> Plan:
    if config.method in MASKED_METHODS:
        from crossband.medical.pretraining.masked import prepare

        _refuse(config, _OF_VIEWS, "for methods that compare views, as lvm-med")
    else:
        from crossband.medical.pretraining.views import prepare

        _refuse(config, _OF_MASKED, "for mae and cnn-mae")
    return prepare(config)


def _refuse(config: PretrainConfig, options: tuple[str, ...], whose: str) -> None:
    """Refuse options of other methods.

    Raises:
        ConfigError: one has another value than its default.
    """
    given, default = (_flat(asdict(c)) for c in (config, PretrainConfig()))
    for name in given:
        of_another = any(name == option or name.startswith(f"{option}.") for option in options)
        if of_another and given[name] != default[name]:
            raise ConfigError(
                f"--{name} is {whose}, and would do nothing with --method {config.method}: leave "
                "it out."
            )


def _flat(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the groups that methods differ in, as `group.name`."""
    groups = ("data", "crops", "matching")
    inner = {f"{group}.{k}": v for group in groups for k, v in options[group].items()}
    return {name: value for name, value in options.items() if name not in groups} | inner


def _try_one_batch(plan: Plan) -> None:
    count = min(2, len(plan.train))  # type: ignore[arg-type]
    batch = default_collate([plan.train[index] for index in range(count)])
    with torch.no_grad():
        plan.task.eval().loss(batch)
    plan.task.train()


def _summary(config: PretrainConfig, folder: RunFolder, plan: Plan) -> str:
    trained = sum(p.numel() for p in plan.task.model.parameters() if p.requires_grad)
    sets = ", ".join(f"{name} {count}" for name, count in plan.data_sets.items())
    counts, left = plan.description["protocol"]["images"], len(plan.notes) - 8
    lines = [
        f"{config.method}: {plan.name}, {trained / 1e6:.2f} M trained parameters, "
        f"{config.size} x {config.size}, seed {config.seed}",
        f"images: {counts['train']} to train on, {counts['val']} to validate on ({sets})",
        *(f"note: {note}" for note in plan.notes[:8]),
        *([f"note: {left} more"] if left > 0 else []),
        f"run folder: {folder.path}",
    ]
    return "\n".join(lines)
