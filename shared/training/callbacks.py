"""Lightning callbacks that make a run exact to resume, and keep its books."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import crossband.shared.compat  # noqa: F401 - before lightning

import torch
from lightning import Callback, LightningModule, Trainer

from crossband.shared.errors import EXIT_INTERRUPTED, CrossbandError
from crossband.shared.training.ema import WeightAverage
from crossband.shared.training.run_folder import RunFolder


class TrainingInterrupted(CrossbandError):
    """Ctrl-C or a termination signal; the state was saved."""

    exit_code = EXIT_INTERRUPTED


class ReseedEachStep(Callback):
    """Seeds every random draw of a training step from (seed, epoch, batch, rank).

    Dropout, drop path and augmentation of a step are then the same whether the run came here in
    one piece or was resumed.
    """

    def __init__(self, seed: int) -> None:
        """Keep the run's seed."""
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the generators of all devices."""
        step = trainer.current_epoch * 1_000_003 + batch_idx
        torch.manual_seed((self.seed * 7_919 + step) * 1_009 + trainer.global_rank)


class ResumableCheckpoint(Callback):
    """Writes `last.ckpt` within and after epochs, and on Ctrl-C or a termination signal.

    The file is written under another name and renamed, so a kill at any moment leaves the
    previous one. A signal lets the current step end, saves, and raises `TrainingInterrupted`.
    """

    def __init__(self, folder: RunFolder, every_n_steps: int) -> None:
        """Say where and how often to save."""
        self.folder = folder
        self.every_n_steps = every_n_steps
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over SIGINT and SIGTERM (main thread only)."""
        if threading.current_thread() is threading.main_thread() and not self._previous:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._remember)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back when training fails."""
        self.teardown(trainer, pl_module, "fit")

    def _remember(self, number: int, frame: Any) -> None:
        if self._signal is not None:  # asked twice: stop now
            raise KeyboardInterrupt
        self._signal = number

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within the epoch; its last batch is saved after validation instead."""
        done = batch_idx + 1
        if done >= trainer.num_training_batches or done % trainer.accumulate_grad_batches:
            return
        if self._signal is not None or done % self.every_n_steps == 0:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after the epoch and its validation."""
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write the state; stop if a signal asked for it."""
        self.folder.save_state(trainer)
        for book in trainer.callbacks:
            if isinstance(book, RunBook):
                book.start_waiting()  # writing the state is not the loader's fault
        if self._signal is not None:
            raise TrainingInterrupted(
                f"Stopped at epoch {trainer.current_epoch + 1}, step {trainer.global_step}; "
                f"nothing is lost: the same command with --resume {self.folder.run.path} goes on."
            )


class RunBook(Callback):
    """Averages weights, validates, keeps the best, stops early, writes metrics and progress.

    Args:
        folder: The run folder.
        describe: Returns the configuration to store with the best checkpoint.
        ema_decay: Decay of the weight average; 0 for none.
        select: `best` keeps the weights of the best validation (the task's `monitor`), `last` the
            newest.
        patience: Epochs without improvement before stopping; 0 never stops.
        max_minutes: Limit of the time spent in training, resumed parts included; 0 for none.
        progress: Prints one line; called once per epoch.

    Rows of the history hold `waiting`, the part of the training time (0 to 1) between the end of a
    step and the start of the next within an epoch: the loader's, but for writing the state.
    """

    def __init__(
        self,
        folder: RunFolder,
        describe: Callable[[], dict[str, Any]],
        *,
        ema_decay: float = 0.0,
        select: str = "best",
        patience: int = 0,
        max_minutes: float = 0.0,
        progress: Callable[[str], None] = print,
    ) -> None:
        """Keep the settings."""
        self.folder = folder
        self.describe = describe
        self.ema_decay = ema_decay
        self.select = select
        self.patience = patience
        self.max_seconds = 60 * max_minutes
        self.progress = progress
        self.average: WeightAverage | None = None
        self._restored_average: dict | None = None
        self._applied: Any = None
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] = {"epoch": -1}
        self.seconds = 0.0
        self._tick = 0.0
        # Since the last row: seconds of training, and those of them spent waiting for the loader
        # between two steps of an epoch.
        self._spent = self._waited = 0.0
        self._waiting_since = math.nan  # no step has ended yet
        self._losses: list[torch.Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {
            "history": self.history,
            "best": self.best,
            "seconds": self.seconds,
            "average": self.average.state_dict() if self.average else None,
            "losses": [float(loss) for loss in self._losses],
            "clock": [self._spent, self._waited],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of an earlier run."""
        self.history = list(state_dict["history"])
        self.best = dict(state_dict["best"])
        self.seconds = state_dict["seconds"]
        self._restored_average = state_dict["average"]
        self._losses = [torch.tensor(loss) for loss in state_dict["losses"]]
        self._spent, self._waited = state_dict["clock"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the weight average."""
        if self.ema_decay:
            self.average = WeightAverage(pl_module.model, self.ema_decay)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the average of the run that is resumed."""
        if self.average and self._restored_average:
            self.average.load_state_dict(self._restored_average)
        self._validate_the_end(trainer)  # an epoch that is gone on with does not start
        self._waiting_since = math.nan
        self._tick = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average the weights after each optimiser step; check the clock."""
        self._losses.append(outputs["loss"].detach())
        if self.average and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.average.update(pl_module.model)
        now = time.monotonic()
        elapsed, self._tick = now - self._tick, now
        self.seconds, self._spent = self.seconds + elapsed, self._spent + elapsed
        self.start_waiting()
        if self.max_seconds and self.seconds >= self.max_seconds:
            trainer.should_stop = True
            trainer.check_val_every_n_epoch = 1  # the end is always validated

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the time since the last step of the epoch ended."""
        if not math.isnan(self._waiting_since):
            self._waited += time.monotonic() - self._waiting_since

    def start_waiting(self) -> None:
        """Count from now until the next step begins."""
        self._waiting_since = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have the last epoch validated, whatever the interval."""
        self._waiting_since = math.nan
        self._validate_the_end(trainer)

    def _validate_the_end(self, trainer: Trainer) -> None:
        if trainer.current_epoch == trainer.max_epochs - 1:
            trainer.check_val_every_n_epoch = 1

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate with the averaged weights."""
        if self.average:
            self._applied = self.average.applied_to(pl_module.model)
            self._applied.__enter__()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the best weights, in the form in which they were validated."""
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val")}
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "minutes": round(self.seconds / 60, 3),
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "waiting": round(self._waited / self._spent, 4) if self._spent else math.nan,
            "train_loss": float(torch.stack(self._losses).mean()) if self._losses else math.nan,
            **metrics,
        }
        self.history.append(row)
        name, sign = pl_module.monitor
        value = metrics[name]
        improved = sign * value < sign * self.best.get(name, sign * math.inf)  # never by NaN
        if improved:
            self.best = {"epoch": row["epoch"], name: value}
        if trainer.is_global_zero:
            if improved or self.select == "last":
                self.folder.save_best(pl_module.model, {**self.describe(), "training": row})
            self.folder.write_history(self.history)
        if self._applied:
            self._applied.__exit__(None, None, None)
            self._applied = None
        if trainer.is_global_zero:
            self._report(trainer, row, name, improved)
        self._losses, self._spent, self._waited = [], 0.0, 0.0
        stale = row["epoch"] - self.best["epoch"]
        if self.patience and stale >= self.patience:
            trainer.should_stop = True
        self._tick = time.monotonic()

    def _report(self, trainer: Trainer, row: dict[str, float], name: str, improved: bool) -> None:
        left = self.seconds / row["epoch"] * (trainer.max_epochs - row["epoch"])
        if self.max_seconds:
            left = min(left, max(0.0, self.max_seconds - self.seconds))
        rate = row["step"] / self.seconds if self.seconds else 0.0
        self.progress(
            f"epoch {row['epoch']}/{trainer.max_epochs}  train {row['train_loss']:.4f}  "
            f"{name.replace('_', ' ').removesuffix(' loss')} {row[name]:.4f}"
            f"{' *' if improved else ''}  {rate:.2f} steps/s  "
            f"{_clock(left)} left"
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
