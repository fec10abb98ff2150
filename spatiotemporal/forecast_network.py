"""A network with what a forecast needs around it: background, linear skip, roll-out.

Everything is in normalised units, `(value - mean) / std` per variable. The background is the
hour-of-day climatology of the training part in the same units: what is normal at that place and
hour. The linear skip is a ridge regression over time, the same for all cells, fitted in closed
form on the training part; the network then learns what a linear map cannot say.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crossband.shared.errors import ConfigError


class LinearSkip(nn.Module):
    """Linear map from the last T departures from the background to the next T', per variable.

    Args:
        history: T.
        horizon: T'.
        channels: Variables.
    """

    def __init__(self, history: int, horizon: int, channels: int) -> None:
        """Make a map to zero."""
        super().__init__()
        self.register_buffer("weight", torch.zeros(channels, horizon, history))
        self.register_buffer("mean_weight", torch.zeros(channels, horizon))
        self.register_buffer("bias", torch.zeros(channels, horizon))

    def forward(self, frames: Tensor) -> Tensor:
        """Map (B, T, C, H, W) to (B, T', C, H, W)."""
        local = torch.einsum("clt,btchw->blchw", self.weight, frames)
        mean = frames[:, -1].mean(dim=(-2, -1))  # (B, C)
        field = torch.einsum("cl,bc->blc", self.mean_weight, mean) + self.bias.T
        return local + field[..., None, None]


class ForecastNetwork(nn.Module):
    """Network, background and skip as one module; forecasts any number of frames.

    Args:
        network: Maps (B, T, C_in, H, W) to (B, T, C, H, W); C_in is 3 C with a background.
        history: T, the frames it sees.
        horizon: Frames that one call forecasts; beyond T by roll-out.
        background: Whether the network is shown the climatology (at the input frames and at the
            frames to be forecast, as 2 C further channels).
        skip: Linear skip added to the network's output, over departures from the background.
    """

    def __init__(
        self,
        network: nn.Module,
        history: int,
        horizon: int,
        *,
        background: bool = False,
        skip: LinearSkip | None = None,
    ) -> None:
        """Keep the parts."""
        super().__init__()
        self.network = network
        self.history = history
        self.horizon = horizon
        self.background = background
        self.skip = skip

    def forward(self, frames: Tensor, background: Tensor | None = None) -> Tensor:
        """Forecast.

        Args:
            frames: (B, T, C, H, W).
            background: Climatology at the T observed times and at the times to be forecast,
                rounded up to whole passes: (B, T + ceil(horizon / T) T, C, H, W). Only with
                `background=True`.

        Returns:
            (B, horizon, C, H, W).
        """
        passes = -(-self.horizon // self.history)
        if self.background and background is None:
            raise ConfigError("this network needs the climatology of the times as background.")
        forecasts = []
        for index in range(passes):
            if self.background:
                start = index * self.history
                now = background[:, start : start + self.history]
                ahead = background[:, start + self.history : start + 2 * self.history]
                forecast = self.network(torch.cat([frames, now, ahead], dim=2))
            else:
                now = ahead = None
                forecast = self.network(frames)
            if self.skip is not None:
                departure = frames - now if now is not None else frames
                linear = self.skip(departure)
                forecast = forecast + (linear + ahead if ahead is not None else linear)
            forecasts.append(forecast)
            frames = forecast
        return torch.cat(forecasts, dim=1)[:, : self.horizon]
