"""Restoration: from a spoilt image to the image as it should be."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from crossband.shared.tasks.base import Task


class RestorationTask(Task):
    """Trains a network by smooth L1 (beta 1, mean over all values) between images.

    Batches hold `image` and `target`, both (B, C, H, W) in the network's own units.
    """

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch."""
        return F.smooth_l1_loss(self(batch["image"]).float(), batch["target"])
