"""A network with what a forecast needs around it: background, linear skip, roll-out.

Everything is in normalised units, `(value - mean) / std` per variable. The background is the
hour-of-day climatology of the training part in the same units: what is normal at that place and
hour. The linear skip is a ridge regression over time, the same for all cells, fitted in closed
form on the training part; the network then learns what a linear map cannot say.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from crossband.shared.errors import ConfigError

# Ridge strength per sample, in units of the normalised variance.
SKIP_STRENGTH = 1e-3


class LinearSkip(nn.Module):
    """Linear map from the last T departures to the next L, per variable.

    A departure is the difference from the background, or from the mean where there is none. The
    last field's mean over the grid is a further feature.

    Args:
        history: T.
        leads: L.
        channels: Variables.
    """

    def __init__(self, history: int, leads: int, channels: int) -> None:
        """Make a map to zero."""
        super().__init__()
        self.register_buffer("weight", torch.zeros(channels, leads, history))
        self.register_buffer("mean_weight", torch.zeros(channels, leads))
        self.register_buffer("bias", torch.zeros(channels, leads))
        self.register_buffer("error", torch.ones(leads, channels))  # root mean square, fitted

    def forward(self, departures: Tensor) -> Tensor:
        """Map (B, T, C, H, W) to (B, L, C, H, W)."""
        local = torch.einsum("clt,btchw->blchw", self.weight, departures)
        mean = departures[:, -1].mean(dim=(-2, -1))  # (B, C)
        field = torch.einsum("cl,bc->blc", self.mean_weight, mean) + self.bias.T
        return local + field[..., None, None]

    def fit(self, windows: Dataset, batch_size: int = 16) -> None:
        """Solve the ridge regression over all windows and cells, accumulated in float64."""
        channels, leads, history = self.weight.shape
        size = history + 2
        gram = torch.zeros(channels, size, size, dtype=torch.float64)
        moment = torch.zeros(channels, size, leads, dtype=torch.float64)
        square = torch.zeros(channels, leads, dtype=torch.float64)
        count = 0
        for batch in DataLoader(windows, batch_size=batch_size):
            frames, target = batch["image"].double(), batch["target"][:, :leads].double()
            if "background" in batch:
                background = batch["background"].double()
                frames = frames - background[:, :history]
                target = target - background[:, history : history + leads]
            mean = frames[:, -1:].mean(dim=(-2, -1), keepdim=True).expand_as(frames[:, -1:])
            features = torch.cat([frames, mean, torch.ones_like(mean)], dim=1)
            seen = batch["mask"][:, :leads].all(dim=1, keepdim=True)
            features, target = features * seen, target * seen
            gram += torch.einsum("bichw,bjchw->cij", features, features)
            moment += torch.einsum("bichw,bjchw->cij", features, target)
            square += target.square().sum(dim=(0, 3, 4)).T
            count += int(seen.sum()) // channels
        penalty = SKIP_STRENGTH * count * torch.eye(size, dtype=torch.float64)
        penalty[-1, -1] = 0.0  # the bias is free
        found = torch.linalg.solve(gram + penalty, moment)  # (C, T + 2, L)
        explained = (found * (2 * moment - gram @ found)).sum(dim=1)
        self.error.copy_(((square - explained) / count).clamp(min=1e-12).sqrt().T)
        solution = found.transpose(1, 2)
        self.weight.copy_(solution[..., :history])
        self.mean_weight.copy_(solution[..., history])
        self.bias.copy_(solution[..., history + 1])


class ForecastNetwork(nn.Module):
    """Network, background and skip as one module; forecasts any number of frames.

    Args:
        network: Maps (B, T, C_in, H, W) to (B, T, C, H, W); C_in is 3 C with a background.
        history: T, the frames it sees and emits.
        horizon: Frames to forecast.
        leads: Frames of a pass that are used, at most T: those that training compared. A longer
            horizon feeds forecasts back, so many at a time; with all T this is OpenSTL's way.
        climatology: Background fields per phase of the day, (P, C, H, W) in physical units on
            the data's own grid. The network then sees departures from the background instead of
            the frames, and as 2 C further channels the background at the input frames and at
            the frames to be forecast. None: no background.
        skip: Linear skip added to the network's output. The network then starts at zero and
            speaks in units of the skip's error, which grows with the lead time.
    """

    def __init__(
        self,
        network: nn.Module,
        history: int,
        horizon: int,
        *,
        leads: int | None = None,
        climatology: Tensor | None = None,
        skip: LinearSkip | None = None,
    ) -> None:
        """Keep the parts."""
        super().__init__()
        self.network = network
        self.history = history
        self.horizon = horizon
        self.leads = leads or min(history, horizon)
        self.skip = skip
        self.register_buffer("climatology", climatology)
        if skip is not None:
            head = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
            nn.init.zeros_(head.weight)
            if head.bias is not None:
                nn.init.zeros_(head.bias)

    @property
    def frames_ahead(self) -> int:
        """Future frames of background that a call takes."""
        return frames_ahead(self.history, self.leads, self.horizon)

    @property
    def error_scale(self) -> Tensor | None:
        """Error to expect by lead (T', C, 1, 1), by which the loss is scaled; None: equal."""
        if self.skip is None:
            return None
        error = self.skip.error
        later = error[-1:].expand(max(0, self.horizon - len(error)), -1)
        return torch.cat([error, later])[: self.horizon, :, None, None]

    def forward(self, frames: Tensor, background: Tensor | None = None) -> Tensor:
        """Forecast.

        Args:
            frames: (B, T, C, H, W).
            background: Climatology at the observed times and at the times ahead,
                (B, T + frames_ahead, C, H, W); only with a climatology.

        Returns:
            (B, horizon, C, H, W).

        Raises:
            ConfigError: the background is missing.
        """
        if self.climatology is not None and background is None:
            raise ConfigError("This network needs the climatology of the times as background.")
        length, leads = self.history, self.leads
        forecasts = []
        for start in range(0, self.horizon, leads):
            inputs, departures = frames, frames
            if background is not None:
                now = background[:, start : start + length]
                ahead = background[:, start + length : start + 2 * length]
                departures = frames - now
                inputs = torch.cat([departures, now, ahead], dim=2)
            forecast = self.network(inputs)[:, :leads]
            if self.skip is not None:
                forecast = forecast * self.skip.error[..., None, None] + self.skip(departures)
                if background is not None:
                    forecast = forecast + ahead[:, :leads]
            forecasts.append(forecast)
            frames = torch.cat([frames, forecast], dim=1)[:, -length:]
        return torch.cat(forecasts, dim=1)[:, : self.horizon]


def frames_ahead(history: int, leads: int, horizon: int) -> int:
    """Return how many future frames of background the passes for a horizon take together."""
    passes = -(-horizon // leads)
    return (passes - 1) * leads + history
