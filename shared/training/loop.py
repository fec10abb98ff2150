"""Runs a task with Lightning, the same way for every domain."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

import crossband.shared.compat  # noqa: F401 - before lightning

import torch
from lightning import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader, Dataset

from crossband.shared.config import LoaderConfig, RunOptions, TrainerConfig
from crossband.shared.devices import select_device
from crossband.shared.errors import CheckpointError, ConfigError, CrossbandError
from crossband.shared.tasks.base import Task
from crossband.shared.training.callbacks import ReseedEachStep, ResumableCheckpoint, RunBook
from crossband.shared.training.run_folder import RunFolder
from crossband.shared.training.sampler import EpochBatchSampler

_PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


class Data(LightningDataModule):
    """Training and validation loaders whose order can be resumed.

    Args:
        train: Training items.
        val: Validation items.
        loader: Batch size (per device) and loader processes.
        seed: Of the order.
        val_batch_size: Of validation, where it differs (images of several sizes: 1).
        smallest_batch: Leave out a last training batch of fewer items.
    """

    def __init__(
        self,
        train: Dataset,
        val: Dataset,
        loader: LoaderConfig,
        seed: int,
        val_batch_size: int | None = None,
        smallest_batch: int = 1,
    ) -> None:
        """Keep the data sets and the settings."""
        super().__init__()
        self.train, self.val, self.loader, self.seed = train, val, loader, seed
        self.val_batch_size, self.smallest_batch = val_batch_size, smallest_batch
        self.epoch = self.skip = 0

    def start_at(self, epoch: int, skip: int) -> None:
        """Begin with batch `skip` of an epoch."""
        self.epoch, self.skip = epoch, skip

    def train_dataloader(self) -> DataLoader:
        """Return shuffled batches."""
        order = self._order(self.train, shuffle=True)
        # Lightning sets the epoch too, but loader processes may have begun before it does.
        order.set_epoch(self.epoch)
        order.skip = self.skip
        return self._loader(self.train, order)

    def val_dataloader(self) -> DataLoader:
        """Return batches in the order of the data."""
        return self._loader(self.val, self._order(self.val, shuffle=False))

    def _order(self, items: Dataset, *, shuffle: bool) -> EpochBatchSampler:
        return EpochBatchSampler(
            len(items),
            self.loader.batch_size if shuffle else self.val_batch_size or self.loader.batch_size,
            seed=self.seed,
            shuffle=shuffle,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            smallest=self.smallest_batch if shuffle else 1,
        )

    def _loader(self, items: Dataset, order: EpochBatchSampler) -> DataLoader:
        workers = self.loader.num_workers
        return DataLoader(
            items, batch_sampler=order, num_workers=workers, persistent_workers=workers > 0
        )


def fit(
    task: Task,
    data: Data,
    folder: RunFolder,
    trainer_config: TrainerConfig,
    options: RunOptions,
    *,
    describe: Callable[[], dict[str, Any]],
    resume: bool = False,
) -> RunBook:
    """Train, validate every epoch, keep the best; go on where a stopped run was if `resume`.

    Args:
        task: What to train.
        data: What to train on.
        folder: Where everything goes.
        trainer_config: Length and hardware.
        options: Seed, device, precision.
        describe: Returns the configuration to store with the best checkpoint.
        resume: Go on from `folder.last`.

    Returns:
        The run's books: history, best epoch, seconds.

    Raises:
        CrossbandError: options that cannot work, a loss that is not finite, a stop by signal
            (after saving), a checkpoint that does not fit.
    """
    for name in (
        *("max_epochs", "accumulate_grad_batches", "save_every_n_steps", "devices"),
        "check_val_every_n_epoch",
    ):
        if getattr(trainer_config, name) < 1:
            raise ConfigError(
                f"--trainer.{name} {getattr(trainer_config, name)} must be at least 1."
            )
    quiet_lightning()
    seed_everything(options.seed, verbose=False)
    bar = sys.stderr.isatty() and not options.quiet
    book = RunBook(
        folder,
        describe,
        ema_decay=trainer_config.ema_decay,
        select=trainer_config.select,
        patience=trainer_config.patience,
        max_minutes=trainer_config.max_minutes,
        progress=(lambda line: None) if options.quiet else lambda line: print(line, flush=True),
    )
    saver = ResumableCheckpoint(folder, trainer_config.save_every_n_steps)
    trainer = Trainer(
        accelerator={"cuda": "gpu"}.get(kind := select_device(options.device).type, kind),
        devices=trainer_config.devices,
        num_nodes=trainer_config.num_nodes,
        strategy=trainer_config.strategy,
        precision=_PRECISION[options.precision],
        max_epochs=trainer_config.max_epochs,
        limit_train_batches=trainer_config.limit_train_batches or 1.0,
        check_val_every_n_epoch=trainer_config.check_val_every_n_epoch,
        accumulate_grad_batches=trainer_config.accumulate_grad_batches,
        gradient_clip_val=trainer_config.gradient_clip_val or None,
        deterministic=options.deterministic,
        use_distributed_sampler=False,  # Lightning's would shuffle by itself; ours is strided
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=bar,
        num_sanity_val_steps=0,
        default_root_dir=str(folder.path),
        callbacks=[ReseedEachStep(options.seed), book, saver],
    )
    if resume:
        data.start_at(*_position(folder))
    start = str(folder.last) if resume else None
    try:
        trainer.fit(task, data, ckpt_path=start, weights_only=True)
    except CrossbandError as error:
        raise _from_worker(error) from error
    except SystemExit as stop:  # Lightning's answer to a second Ctrl-C
        raise KeyboardInterrupt(
            f"Stopped at once; --resume {folder.run.path} goes on from the last saved state."
        ) from stop
    return book


def is_main_process() -> bool:
    """Whether this process prints, and writes what a distributed run leaves."""
    return rank_zero_only.rank == 0


def _from_worker(error: CrossbandError) -> CrossbandError:
    """Return an error of a loader process as it was raised there, without its traceback."""
    text = str(error)
    if not text.startswith("Caught "):
        return error
    last = text.strip().splitlines()[-1]
    return type(error)(last.partition(": ")[2] or last)


def quiet_lightning() -> None:
    """Silence Lightning's advertising and the hints that do not apply to our loaders."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for pattern in (
        ".*does not have many workers.*",
        ".*is not resumable.*",
        ".*LeafSpec.*",
        ".*tensorboard.*",
        ".*lr_scheduler.step.*before.*optimizer.step.*",
        ".*`_DataLoaderIter`.*",
    ):
        warnings.filterwarnings("ignore", message=pattern)


def _position(folder: RunFolder) -> tuple[int, int]:
    """Return the epoch to go on with, and how many of its batches the saved run had begun."""
    try:
        state = torch.load(folder.last, map_location="cpu", weights_only=True)
        loop = state["loops"]["fit_loop"]
        batches, epochs = loop["epoch_loop.batch_progress"], loop["epoch_progress"]["current"]
        skip = 0 if batches["is_last_batch"] else batches["current"]["ready"]
        return epochs["processed"], skip
    except Exception as error:
        raise CheckpointError(
            f"{folder.last} cannot be read ({type(error).__name__}): it is damaged, so the run "
            "cannot go on; start again without --resume."
        ) from error
