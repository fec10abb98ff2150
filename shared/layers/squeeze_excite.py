"""Squeeze and excitation."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class SqueezeExcite(nn.Module):
    """Scales channels by a gate made of their means over the map (Hu et al. 2018).

    Args:
        channels: C.
        hidden: Channels between the two 1x1 convolutions `down` and `up`.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        """Build the two convolutions."""
        super().__init__()
        self.down = nn.Conv2d(channels, hidden, 1)
        self.up = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        gate = self.up(F.relu(self.down(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()
