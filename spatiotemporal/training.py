"""`crossband spatiotemporal train`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from crossband.shared.checkpoints import load_state
from crossband.shared.cli.parser import dump_config
from crossband.shared.environment import machine
from crossband.shared.errors import ConfigError
from crossband.shared.registry import get_entry, read_weights
from crossband.shared.tasks.forecasting import ForecastingTask
from crossband.shared.training.loop import Data, fit, is_main_process
from crossband.shared.training.resume import stored_options
from crossband.shared.training.run_folder import RunFolder
from crossband.spatiotemporal.augmentation import DailyCycle
from crossband.spatiotemporal.config import EvaluateConfig, TrainConfig
from crossband.spatiotemporal.evaluation import evaluate_checkpoint, write_evaluation
from crossband.spatiotemporal.forecast_network import ForecastNetwork
from crossband.spatiotemporal.scheme import (
    build_network,
    data_digest,
    make_scheme,
    model_arguments,
    open_source,
    split,
)


def train(config: TrainConfig) -> None:
    """Train, keep the best by validation loss, score it on the test part, write the report."""
    if config.resume:
        folder = RunFolder.existing(config.resume)
        from crossband.spatiotemporal.cli import DOMAIN

        config = stored_options(DOMAIN.verbs["train"], folder, config)
    else:
        folder = RunFolder.create(config.out, config.model.replace(":", "-"))
    grid = open_source(config.data, config.data.variables, config.data.step)
    parts = split(grid, config.data)
    scheme = make_scheme(grid, parts["train"], config)
    arguments = model_arguments(scheme, config.arguments)
    horizon = scheme.horizon
    windows = {
        name: scheme.windows(grid, part, horizon, training=name == "train")
        for name, part in parts.items()
    }
    torch.manual_seed(config.seed)
    network = build_network(config.model, arguments, scheme, linear_skip=config.linear_skip)
    if config.weights:
        state = read_weights(config.weights, get_entry(config.model).official)
        inner = {
            k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")
        }
        load_state(network.network, inner or state, config.weights)  # of a run, or bare
    task = ForecastingTask(
        network,
        config.optimizer,
        config.schedule,
        compile=config.trainer.compile,
        augment=DailyCycle(config.daily_cycle_spread, windows["train"])
        if config.daily_cycle_spread
        else None,
    )
    _check_first_batch(task, windows["train"])
    if is_main_process() and not config.quiet:
        print(_summary(config, folder, network, windows), flush=True)
    if config.dry_run:
        print("dry run: options, data and one batch are in order; nothing was written.")
        return
    if network.skip is not None and not config.resume:
        network.skip.fit(windows["train"])

    def describe() -> dict[str, Any]:
        return {
            "task": "forecasting",
            "model": {"name": config.model, "arguments": arguments},
            "linear_skip": config.linear_skip,
            "scheme": scheme.to_dict(),
            "protocol": {
                "parts": {name: [p.first, p.last] for name, p in parts.items()},
                "windows": {name: len(w) for name, w in windows.items()},
                "step": config.data.step,
                "fit": config.data.fit,
                "mask": config.data.mask,
                "latitude": None if grid.latitude is None else grid.latitude.tolist(),
                "longitude": None if grid.longitude is None else grid.longitude.tolist(),
                "data_sha256": data_digest(grid),
                "selection": {"best": "lowest validation loss", "last": "end of schedule"}[
                    config.trainer.select
                ],
                "seed": config.seed,
                "machine": machine(),
            },
        }

    if not config.resume:
        folder.save_config_text(dump_config(config))
    data = Data(windows["train"], windows["val"], config.loader, config.seed)
    book = fit(
        task,
        data,
        folder,
        config.trainer,
        config,
        describe=describe,
        resume=bool(config.resume),
    )
    options = EvaluateConfig(
        weights=str(folder.best),
        data=config.data,
        device=config.device,
        quiet=config.quiet,
        json=config.json,
        loader=replace(config.loader, num_workers=0),
        seed=config.seed,
        out=str(folder.path),
    )
    evaluation = evaluate_checkpoint(options, grid)
    write_evaluation(evaluation, folder, options, history=book.history)


def _check_first_batch(task: ForecastingTask, windows: torch.utils.data.Dataset) -> None:
    """Run one window forward, so that misfits show before training starts."""
    item = windows[0]
    batch = {name: value[None] for name, value in item.items()}
    with torch.no_grad():
        forecast = task.model(*(batch[n] for n in task.inputs if n in batch))
    if forecast.shape != batch["target"].shape:
        raise ConfigError(
            f"The network forecasts {tuple(forecast.shape[1:])}, the data ask for "
            f"{tuple(batch['target'].shape[1:])}: choose another --model or its arguments."
        )


def _summary(
    config: TrainConfig, folder: RunFolder, network: ForecastNetwork, windows: dict[str, Any]
) -> str:
    count = sum(p.numel() for p in network.parameters())
    grid = windows["train"].grid
    lines = [
        f"{config.model}: {count:,} parameters, seed {config.seed}",
        f"data: {', '.join(grid.variables)} on {grid.shape[1]} x {grid.shape[2]}, "
        f"{config.data.history} frames to {config.data.horizon}",
    ]
    for name, part in windows.items():
        lost = f" ({part.lost} lost to gaps)" if part.lost else ""
        lines.append(
            f"  {name:5s} {part.part.first} to {part.part.last}: {len(part)} windows{lost}"
        )
    lines += [f"note: {note}" for note in grid.notes]
    lines.append(f"run folder: {Path(folder.path)}")
    return "\n".join(lines)
