"""Pre-training of LVM-Med on Lightning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from crossband.medical.lvm_med.model import LVMMed
from crossband.medical.lvm_med.objective import ObjectiveOutput
from crossband.shared.errors import ConfigError
from crossband.shared.matching import SolverPool
from crossband.shared.tasks.base import Task


class LVMMedTask(Task):
    """Trains a backbone by graph matching.

    Batches are what `default_collate` makes of items with these keys:

    - `views`: two or more large crops of an image, a list of (B, 3, S, S) float32, normalised;
    - `grids`: a list of as many (B, R, R', 2) float32: row and column of the centre of every cell
      of a regular grid on the crop, in pixels of the original image; mirrored where the crop is.
      Any R, R' of at least 2 does, also one that is not the network's: grids are fitted to the
      maps. Both views must speak of one original; its size is not needed. Left out where maps do
      not count (`local` False, or alpha 1);
    - `small`: small crops, a list of (B, 3, s, s), or left out;
    - `small_grids`: their grids, likewise.

    In one batch all images have the same number of views. Every process of a distributed run
    matches its own batch. The noise of IMLE comes from the global generator; in validation there is
    none, so that its numbers say what the network can do.

    Logged: `train_matched` and `train_energy` per step, and `val_loss`, `val_matched`,
    `val_energy` and `val_gap` per epoch: the share of images that found their other view, cost, and
    its distance to a lower bound.

    Args:
        model: Backbone and objective.
        settings: Of `Task`: optimiser and schedule.
        compile: Run the backbone through `torch.compile`.
        workers: Processes that solve the matchings, for solvers of the CPU that use one core
            (`pylibmgm`); 0: this one does.

    Raises:
        ConfigError: fewer than no processes.
    """

    model: LVMMed

    def __init__(
        self,
        model: LVMMed,
        *settings: Any,
        compile: bool = False,  # noqa: A002 - the option's name
        workers: int = 0,
    ) -> None:
        """Compile the backbone only: solvers decide by values."""
        if workers < 0:
            raise ConfigError(f"{workers} processes cannot be: give 0 or more.")
        if compile:
            model.feature_map = torch.compile(model.feature_map)
        super().__init__(model, *settings)
        self.workers = workers

    def setup(self, stage: str) -> None:
        """Start the processes."""
        own = self.model.objective
        if self.workers and own.pool is None:
            own.pool = SolverPool(self.workers, solver=own.solver, **own.solver_options)

    def teardown(self, stage: str) -> None:
        """End the processes."""
        if self.model.objective.pool is not None:
            self.model.objective.pool.close()
            self.model.objective.pool = None

    def output(self, batch: Mapping[str, Any]) -> ObjectiveOutput:
        """Return loss and statistics of a batch."""
        return self(batch)

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss of a batch, and log the statistics of training."""
        found = self.output(batch)
        if self.training and self._trainer is not None:
            self.log_dict({f"train_{name}": value for name, value in found.statistics.items()})
        return found.loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log loss and statistics, averaged over images and over processes."""
        found = self.output(batch)
        values = {"val_loss": found.loss, **{f"val_{k}": v for k, v in found.statistics.items()}}
        self.log_dict(values, batch_size=len(batch["views"][0]), sync_dist=True)
