"""SCI (Ma et al. 2022): estimate the illumination with 258 parameters and divide by it."""

from __future__ import annotations

from torch import Tensor, nn


class SCI(nn.Module):
    """The enhancing network that is left for inference.

    Args:
        layers: Residual blocks; they share their weights.
        channels: Hidden channels.
    """

    def __init__(self, layers: int = 1, channels: int = 3) -> None:
        """Build the layers under the authors' names."""
        super().__init__()
        self.reach = 2 + layers
        self.in_conv = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU())
        block = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.blocks = nn.ModuleList([block] * layers)
        self.out_conv = nn.Sequential(nn.Conv2d(channels, 3, 3, padding=1), nn.Sigmoid())

    def forward(self, image: Tensor) -> Tensor:
        """Map RGB (B, 3, H, W) in [0, 1] to the brightened image."""
        x = self.in_conv(image)
        for block in self.blocks:
            x = x + block(x)
        illumination = (self.out_conv(x) + image).clamp(1e-4, 1)
        return (image / illumination).clamp(0, 1)
