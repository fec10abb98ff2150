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
    the network takes as further inputs under the names in `inputs`. A network may have an
    `error_scale` (T', C, 1, 1): errors are then counted in its units, so that long lead times do
    not drown short ones.
    """

    inputs: tuple[str, ...] = ("image", "background")

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the masked mean squared error over all lead times."""
        forecast = self(*(batch[name] for name in self.inputs if name in batch))
        target = batch["target"]
        scale = getattr(self.model, "error_scale", None)
        if scale is not None:
            forecast, target = forecast / scale, target / scale
        return masked_mse(forecast, target, batch["mask"])
