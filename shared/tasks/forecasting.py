"""Forecasting: from the last T frames to the next T' frames."""

from __future__ import annotations

import torch
from torch import Tensor

from crossband.shared.tasks.base import Task


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the observed values; 0 where nothing was observed.

    With everything observed this is `torch.nn.functional.mse_loss`.

    Args:
        prediction: (B, T, C, H, W).
        target: Same shape; finite everywhere (fill values where not observed).
        mask: Same shape, bool, true where observed.
    """
    error = torch.where(mask, prediction.float() - target, 0.0)
    return error.square().sum() / mask.sum().clamp(min=1)


class ForecastingTask(Task):
    """Trains a network to forecast; the loss is the mean squared error in normalised units.

    Batches hold `image` (B, T, C, H, W), `target` and `mask` (B, T', C, H, W), and whatever else
    the network takes as further inputs under the names in `inputs`.
    """

    inputs: tuple[str, ...] = ("image", "background")

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the masked mean squared error over all lead times."""
        forecast = self(*(batch[name] for name in self.inputs if name in batch))
        return masked_mse(forecast, batch["target"], batch["mask"])
