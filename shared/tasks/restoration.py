"""Restoration: from a spoilt image to the image as it should be."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from crossband.shared.tasks.base import Task


class RestorationTask(Task):
    """Trains a network by smooth L1 (beta 1, mean over all values) between images.

    Batches hold `image` and `target`, both (B, C, H, W) in the network's own units.

    Args:
        settings: Of `Task`.
        residual: The network gives what is to be subtracted from `image`, not the image itself.
        options: Of `Task`.
    """

    def __init__(self, *settings: Any, residual: bool = False, **options: Any) -> None:
        """Keep the parts."""
        super().__init__(*settings, **options)
        self.residual = residual

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch."""
        found = self(batch["image"]).float()
        restored = batch["image"] - found if self.residual else found
        return F.smooth_l1_loss(restored, batch["target"])
