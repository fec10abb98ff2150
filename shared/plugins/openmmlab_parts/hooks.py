"""Hooks for configs of OpenMMLab: the run folder, and runs that are exact to resume."""

from __future__ import annotations

import csv
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from crossband.shared.environment import machine, versions
from crossband.shared.errors import ConfigError, did_you_mean
from crossband.shared.plugins.openmmlab import HOOKS
from crossband.shared.plugins.openmmlab_parts.data import EpochSampler
from crossband.shared.training.run_folder import RunFolder


@HOOKS.register_module()
class RunFolderHook(Hook):
    """Writes crossband's run folder: config.yaml, metrics.csv, metrics.json, best weights, report.

    One row per validation, as in every run of crossband; a resumed run goes on with the rows up
    to where it resumes. `best.safetensors` can be given to `load_from` and `init_cfg`; to resume,
    OpenMMLab's own checkpoint is needed.

    Args:
        out: Folder; default: the run's work_dir.
        select: Validation metric by which the best weights are chosen; default: the first.
        larger_is_better: Its direction.
    """

    priority = "LOW"

    def __init__(
        self, out: str | None = None, select: str | None = None, larger_is_better: bool = True
    ) -> None:
        """Keep the settings."""
        self.out = out
        self.select = select
        self.sign = 1.0 if larger_is_better else -1.0
        self.rows: list[dict[str, float]] = []
        self._losses: list[Tensor] = []
        self._seconds = 0.0
        self._tick = 0.0

    def before_train(self, runner: Runner) -> None:
        """Write the options; take over the rows of the run that is resumed."""
        self._folder = RunFolder(self.out or runner.work_dir)
        self.rows = [row for row in _read_rows(self._folder.history) if row["step"] <= runner.iter]
        if not runner.iter:
            self.rows = []
        self._seconds = 60 * self.rows[-1]["minutes"] if self.rows else 0.0
        self._tick = time.monotonic()
        if get_rank() == 0:
            self._folder.save_config_text(_yaml(runner))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Remember the loss."""
        if outputs and "loss" in outputs:
            self._losses.append(outputs["loss"].detach())

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Add a row; keep the best weights."""
        if not hasattr(self, "_folder") or not metrics:  # validation outside of training
            return
        scores = {name: float(value) for name, value in metrics.items() if _number(value)}
        now = time.monotonic()
        self._seconds, self._tick = self._seconds + now - self._tick, now
        row = {
            "epoch": max(1, runner.epoch),  # counted before validation; loops of steps count none
            "step": runner.iter,
            "minutes": round(self._seconds / 60, 3),
            "lr": float(next(iter(runner.optim_wrapper.get_lr().values()))[0]),
            "train_loss": float(torch.stack(self._losses).mean()) if self._losses else math.nan,
            **{f"val_{name}": value for name, value in scores.items()},
        }
        self._check_selection(scores)
        first = not self.rows
        improved = first or self._worth(row) > max(map(self._worth, self.rows))
        self.rows.append(row)
        self._losses = []
        if get_rank() == 0:
            names = dict.fromkeys(name for row in self.rows for name in row)
            self._folder.write_history([{n: row.get(n) for n in names} for row in self.rows])
            if improved:
                self._save_best(runner, row)

    def after_train(self, runner: Runner) -> None:
        """Write the results and the report."""
        if get_rank() != 0:
            return
        outcome: dict[str, Any] = {"protocol": self._protocol(runner), "history": self.rows}
        if self.rows:
            best = max(self.rows, key=self._worth)
            outcome["best"] = {"metric": self._key(best), **best}
        self._folder.write_results(outcome)
        self._report(outcome)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the scores of a test run beside what training wrote there."""
        if get_rank() != 0 or not metrics:
            return
        folder = RunFolder(self.out or runner.work_dir)
        found = {}
        if folder.results.is_file():
            found = json.loads(folder.results.read_text(encoding="utf-8"))
        scores = {name: float(value) for name, value in metrics.items() if _number(value)}
        protocol = self._protocol(runner) | {"weights": str(runner.cfg.get("load_from"))}
        folder.write_results({**found, "test_protocol": protocol, "test": scores})

    def _key(self, row: dict[str, float]) -> str:
        first = next(name for name in row if name.startswith("val_"))
        return f"val_{self.select}" if self.select else first

    def _worth(self, row: dict[str, float]) -> float:
        value = row.get(self._key(row), math.nan)
        return -math.inf if math.isnan(value) else self.sign * value

    def _check_selection(self, scores: dict[str, float]) -> None:
        if self.select and self.select not in scores:
            hint = did_you_mean(self.select, scores) or f" There are: {', '.join(scores)}."
            raise ConfigError(f"RunFolderHook: select {self.select!r} is no metric here.{hint}")

    def _save_best(self, runner: Runner, row: dict[str, float]) -> None:
        model = getattr(runner.model, "module", runner.model)
        meta = getattr(runner.train_dataloader.dataset, "metainfo", {})
        description = {
            "model": {"name": f"openmmlab:{type(model).__name__}"},
            "classes": list(meta.get("classes", ())),
            "training": row,
            "engine_config": runner.cfg.pretty_text,
        }
        self._folder.save_best(model, description)

    def _protocol(self, runner: Runner) -> dict[str, Any]:
        return {
            "engine": "mmengine",
            "experiment": runner.experiment_name,
            "seed": runner.seed,
            "machine": machine(),
            "versions": versions(),
        }

    def _report(self, outcome: dict[str, Any]) -> None:
        from crossband.shared.reports.html import Report

        protocol = outcome["protocol"]
        report = Report(
            f"Training: {protocol['experiment']}",
            f"mmengine, seed {protocol['seed']}, {protocol['machine']}",
        )
        if self.rows:
            report.heading("Curves")
            report.figure(_curves(self.rows), f"best by {outcome['best']['metric']}")
            report.heading("Validations")
            report.table(self.rows)
        report.write(self._folder.report)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number))


def _read_rows(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return [row | {"epoch": int(row["epoch"]), "step": int(row["step"])} for row in rows]


def _yaml(runner: Runner) -> str:
    import yaml

    return yaml.safe_dump(_plain(runner.cfg.to_dict()), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, type):  # configs in pure Python hold classes
        return f"{value.__module__}.{value.__qualname__}"
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _curves(rows: list[dict[str, float]]) -> Any:
    from matplotlib.figure import Figure

    names = ["train_loss", *(name for name in rows[0] if name.startswith("val_"))]
    figure = Figure(figsize=(9, 2.4 * -(-len(names) // 3)))
    for index, name in enumerate(names):
        axes = figure.add_subplot(-(-len(names) // 3), 3, index + 1)
        axes.plot([row["step"] for row in rows], [row.get(name) for row in rows], marker=".")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
    figure.tight_layout()
    return figure


@HOOKS.register_module()
class ReseedHook(Hook):
    """Makes a resumed run equal to an unbroken one, and independent of the loader's processes.

    Every item of the training data is loaded with generators seeded by (seed, epoch, position in
    the epoch, rank), every step runs with generators seeded by (seed, step, rank): what a step
    draws no longer depends on what happened before it.

    The run needs a seed (`randomness=dict(seed=...)`) and a checkpoint at the end of a step
    (iteration-based loops) or epoch (epoch-based loops); then on a CPU the weights are bitwise
    the same. Not covered: optimisers and hooks with a state that mmengine does not store, and
    accelerator kernels that add in any order.
    """

    priority = "VERY_LOW"  # after the hooks that count epochs

    def before_train(self, runner: Runner) -> None:
        """Put the seeding loader in the place of the run's own."""
        loop = runner.train_loop
        old = loop.dataloader
        batches = _NumberedBatches(old.batch_sampler, runner, get_rank())
        if isinstance(loop, IterBasedTrainLoop) and hasattr(loop, "fast_forward_on_resume"):
            # Passed-over batches are skipped here, where they are numbered.
            batches.skip, loop.fast_forward_on_resume = runner.iter, True
        parallel = {}
        if old.num_workers:
            parallel = {
                "prefetch_factor": old.prefetch_factor,
                "persistent_workers": old.persistent_workers,
                "multiprocessing_context": old.multiprocessing_context,
            }
        loop.dataloader = DataLoader(
            _SeededItems(old.dataset),
            batch_sampler=batches,
            num_workers=old.num_workers,
            collate_fn=old.collate_fn,
            pin_memory=old.pin_memory,
            timeout=old.timeout,
            worker_init_fn=old.worker_init_fn,
            **parallel,
        )
        if isinstance(loop, IterBasedTrainLoop):
            loop.dataloader_iterator = type(loop.dataloader_iterator)(loop.dataloader)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed what the step draws: dropout, drop path, sampling of boxes."""
        _seed_all(runner.seed, 1, runner.iter, get_rank())


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seeds every training step as `crossband ... train` does, from (seed, epoch, batch, rank).

    Dropout and drop path then draw the same on both roads, and in a run that was resumed. The
    data have to be ordered by `crossband.EpochSampler`, and not to draw from global generators
    (else take `crossband.ReseedHook`). The run needs a seed (`randomness=dict(seed=...)`).
    """

    def before_train(self, runner: Runner) -> None:
        """Go on at the right batch where an iteration-based run is resumed.

        Raises:
            ConfigError: another sampler.
        """
        loop, sampler = runner.train_loop, runner.train_dataloader.sampler
        if not isinstance(sampler, EpochSampler):
            raise ConfigError(
                f"StepSeedHook: the data are ordered by {type(sampler).__name__}; give "
                'sampler=dict(type="crossband.EpochSampler"), or take ReseedHook.'
            )
        if runner.iter and isinstance(loop, IterBasedTrainLoop):
            epoch, batch = divmod(runner.iter, len(loop.dataloader))
            sampler.start_at(epoch, batch * loop.dataloader.batch_size)
            loop.fast_forward_on_resume = True  # the sampler is at its place already
            loop.dataloader_iterator = type(loop.dataloader_iterator)(loop.dataloader)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the generators of all devices."""
        from crossband.shared.training.callbacks import ReseedEachStep  # imports lightning

        epoch, batch = divmod(runner.iter, len(runner.train_dataloader))
        position: Any = SimpleNamespace(current_epoch=epoch, global_rank=get_rank())
        ReseedEachStep(runner.seed).on_train_batch_start(position, None, None, batch)


class _Place(int):
    """An index that knows which draw of the run it is; to data sets a plain number."""

    key: tuple[int, ...]

    def __new__(cls, index: int, key: tuple[int, ...]) -> _Place:
        self = super().__new__(cls, index)
        self.key = key
        return self

    def __getnewargs__(self) -> tuple[int, tuple[int, ...]]:
        return int(self), self.key


class _NumberedBatches:
    """A batch sampler whose indices carry their place in the run."""

    def __init__(self, batches: Any, runner: Runner, rank: int) -> None:
        self.batches = batches
        self.sampler = batches.sampler  # where mmengine looks for set_epoch
        self.batch_size = batches.batch_size  # mmengine asks for it too
        self.runner = runner
        self.rank = rank
        self.skip = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[_Place]]:
        epoch, seed = self.runner.epoch, self.runner.seed
        start, self.skip = self.skip, 0
        for number, batch in enumerate(self.batches):
            if number >= start:
                yield [
                    _Place(index, (seed, 0, epoch, number, place, self.rank))
                    for place, index in enumerate(batch)
                ]


class _SeededItems(Dataset):
    """A data set whose items are drawn with generators seeded by their place.

    Everything else is the data set's own; hooks that change its pipeline reach it too.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "dataset":
            object.__setattr__(self, name, value)
        else:
            setattr(self.dataset, name, value)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: _Place) -> Any:
        _seed_all(*place.key)
        return self.dataset[int(place)]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet while unpickling
            raise AttributeError(name)
        return getattr(self.dataset, name)


def _seed_all(*key: int) -> None:
    """Seed Python's, NumPy's and torch's generators by numbers."""
    words = np.random.SeedSequence([int(part) % 2**32 for part in key]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]))
