"""The template of every task: a network, its loss, its optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import crossband.shared.compat  # noqa: F401 - before lightning

import torch
from lightning import LightningModule
from torch import Tensor, nn

from crossband.shared.config import OptimizerConfig, ScheduleConfig
from crossband.shared.errors import CrossbandError
from crossband.shared.training.optimizers import build_optimizer, build_schedule


class Task(LightningModule):
    """One kind of task. A subclass gives `loss(batch)`; batches are dicts.

    Args:
        model: The network, a plain `nn.Module`.
        optimizer: Optimiser and parameter groups.
        schedule: Learning-rate schedule.
        compile: Run the network through `torch.compile`.
        augment: Changes a training batch; draws from the global generators, which are seeded for
            each step.

    Attributes:
        monitor: Validation metric that chooses the best weights, and 1 if lower is better, else -1.
    """

    monitor: tuple[str, int] = ("val_loss", 1)

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        *,
        compile: bool = False,  # noqa: A002 - the option's name
        augment: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> None:
        """Keep the parts."""
        super().__init__()
        self.model = model
        self.augment = augment
        self.optimizer_config = optimizer
        self.schedule_config = schedule
        # Held in a tuple so that the compiled wrapper is not registered as a second module.
        self._forward = (torch.compile(model) if compile else model,)

    def forward(self, *inputs: Tensor) -> Any:
        """Run the network, compiled if asked."""
        return self._forward[0](*inputs)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch, a scalar."""
        raise NotImplementedError

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the training loss; a loss that is not finite ends the run.

        Raises:
            CrossbandError: NaN or infinite loss.
        """
        loss = self.loss(self.augment(batch) if self.augment else batch)
        if not torch.isfinite(loss):
            raise CrossbandError(
                f"The training loss became {loss.item()} at epoch {self.current_epoch + 1}, step "
                f"{self.global_step}: lower --optimizer.lr, set --trainer.gradient_clip_val 1, or "
                "look for bad values with `data check`; the last good state is in the run folder."
            )
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log `val_loss`, averaged over items and over processes."""
        self.log(
            "val_loss",
            self.loss(batch),
            batch_size=len(next(iter(batch.values()))),
            sync_dist=True,
        )

    def configure_optimizers(self) -> dict[str, Any]:
        """Build optimiser and schedule for the trainer's length."""
        optimizer = build_optimizer(self.model, self.optimizer_config)
        trainer = self.trainer
        steps = max(1, trainer.estimated_stepping_batches // trainer.max_epochs)
        schedule = build_schedule(
            optimizer, self.schedule_config, self.optimizer_config.lr, trainer.max_epochs, steps
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
