"""Changes of training windows, for records too short to hold many kinds of weather."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from crossband.shared.errors import ConfigError
from crossband.spatiotemporal.config import AugmentConfig
from crossband.spatiotemporal.data.normalisation import phase_of
from crossband.spatiotemporal.data.windows import GridWindows

# Mixing reaches a little beyond the two windows, so that departures grow as well as shrink.
MIX_LOW, MIX_HIGH = -0.3, 1.3


class Augmentation:
    """Applies what the options ask for to a batch of windows.

    `daily_cycle`: the window's daily cycle (the climatology's departure from its daily mean) is
    multiplied by a random factor in the fields while the background stays, as on clearer or
    cloudier days than usual. `mix`: linear combination with another training window of the same
    hour of the day, backgrounds included.

    Raises:
        ConfigError: `daily_cycle` without a background.
    """

    def __init__(self, config: AugmentConfig, windows: GridWindows) -> None:
        """Keep the options, the daily mean of the climatology, and the windows to mix with."""
        self.config = config
        self.windows = windows
        self.daily_mean: Tensor | None = None
        if config.daily_cycle:
            if windows.climatology is None:
                raise ConfigError("--augment.daily_cycle needs --background: add it.")
            mean = windows.fit.apply(windows.climatology.fields().mean(axis=0))
            self.daily_mean = torch.from_numpy(windows.normalisation.apply(mean))
        phases = phase_of(windows.origins, windows.grid.spacing)
        self._same_hour = [np.flatnonzero(phases == phase) for phase in phases]

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a changed batch (B, T, C, H, W); masks stay true only where both windows are."""
        if self.daily_mean is not None:
            batch = self._scale_daily_cycle(batch)
        if self.config.mix:
            batch = self._mix(batch)
        return batch

    def _scale_daily_cycle(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        image, target, background = batch["image"], batch["target"], batch["background"]
        history, horizon = image.shape[1], target.shape[1]
        cycle = background - self.daily_mean.to(image.device)
        spread = self.config.daily_cycle * torch.randn(len(image), 1, 1, 1, 1, device=image.device)
        change = (spread.exp() - 1) * cycle
        return {
            **batch,
            "image": image + change[:, :history],
            "target": target + change[:, history : history + horizon],
        }

    def _mix(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        image = batch["image"]
        count, device = len(image), image.device
        share = torch.rand(count, 1, 1, 1, 1, device=device) * (MIX_HIGH - MIX_LOW) + MIX_LOW
        mixed = torch.rand(count, 1, 1, 1, 1, device=device) < self.config.mix
        share = torch.where(mixed, share, 1.0)
        partners = []
        for index, draw in zip(batch["index"].tolist(), torch.rand(count).tolist(), strict=True):
            candidates = self._same_hour[index]
            partners.append(self.windows[int(candidates[int(draw * len(candidates))])])
        other = {name: value.to(device) for name, value in default_collate(partners).items()}
        result = dict(batch)
        for name in ("image", "target", "background"):
            if name in batch:
                result[name] = share * batch[name] + (1 - share) * other[name]
        result["mask"] = batch["mask"] & (other["mask"] | ~mixed)
        return result
