"""Trains the mask decoder on maps that are computed once."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from crossband.medical.prompted.maps import MapStore
from crossband.shared.tasks.base import Task


class PromptedTask(Task):
    """Trains SAM's mask decoder by MONAI's Dice and cross-entropy at the decoder's resolution.

    Batches are of `BoxItems`. Logged are `val_loss` and `val_dice`, the mean Dice of the items.
    Of Adam the AMSGrad variant is taken, as LVM-Med does.

    Args:
        settings: Of `Task`; the network is a `SAM`.
        maps: Gives the maps of the images by their numbers.
        monitor: What chooses the best weights.
        compile: Run the decoder through `torch.compile`.
    """

    def __init__(
        self,
        *settings: Any,
        maps: MapStore,
        monitor: Literal["dice", "loss"] = "dice",
        compile: bool = False,  # noqa: A002 - the option's name
    ) -> None:
        """Keep the parts."""
        from monai.losses import DiceCELoss

        super().__init__(*settings)
        self.maps = maps
        self.objective = DiceCELoss(sigmoid=True, squared_pred=True)
        self.monitor = ("val_loss", 1) if monitor == "loss" else ("val_dice", -1)
        self._decode = torch.compile(self.model.decode) if compile else self.model.decode

    def on_train_start(self) -> None:
        """Forget maps of the weights that there were before a resumed run's came."""
        self.maps.clear()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch."""
        logits, mask = self._masks(batch)
        return self.objective(logits, mask)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log loss and Dice."""
        logits, mask = self._masks(batch)
        found = logits > 0
        both = (found * mask).sum((1, 2, 3))
        dice = 2 * both / (found.sum((1, 2, 3)) + mask.sum((1, 2, 3)))
        values = {"val_loss": self.objective(logits, mask), "val_dice": dice.mean()}
        self.log_dict(values, batch_size=len(mask), sync_dist=True)

    def configure_optimizers(self) -> dict[str, Any]:
        """Build the optimiser and the schedule."""
        found = super().configure_optimizers()
        if self.optimizer_config.name == "adam":
            for group in found["optimizer"].param_groups:
                group["amsgrad"] = True
        return found

    def _masks(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits and masks (B, 1, low, low), float32, of the images that can be read."""
        maps, places = self.maps.maps(self.model, batch["image"].tolist())
        logits, _ = self._decode(maps, boxes=batch["box"][places])
        return logits.float(), batch["mask"][places].float()
