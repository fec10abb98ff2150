"""Changes of training windows, for records too short to hold many kinds of weather."""

from __future__ import annotations

import torch
from torch import Tensor

from crossband.shared.errors import ConfigError
from crossband.spatiotemporal.data.windows import GridWindows


class DailyCycle:
    """Multiplies the daily cycle of a training window by a random factor.

    The daily cycle is the climatology's departure from its daily mean. It is scaled in the fields
    while the background stays, as on clearer or cloudier days than usual: from a few weeks of
    data the network can so learn to tell from the observed frames what kind of day it is.

    Args:
        spread: Standard deviation of the factor's logarithm.
        windows: Training windows with a background.

    Raises:
        ConfigError: windows without a background.
    """

    def __init__(self, spread: float, windows: GridWindows) -> None:
        """Keep the daily mean of the climatology."""
        if windows.climatology is None:
            raise ConfigError("--daily_cycle_spread needs --background: add it.")
        self.spread = spread
        mean = windows.fit.apply(windows.climatology.fields().mean(axis=0))
        self.daily_mean = torch.from_numpy(windows.normalisation.apply(mean))

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a changed batch (B, T, C, H, W)."""
        image, target, background = batch["image"], batch["target"], batch["background"]
        history, horizon = image.shape[1], target.shape[1]
        cycle = background - self.daily_mean.to(image.device)
        factor = (self.spread * torch.randn(len(image), 1, 1, 1, 1, device=image.device)).exp()
        change = (factor - 1) * cycle
        return {
            **batch,
            "image": image + change[:, :history],
            "target": target + change[:, history : history + horizon],
        }
