"""The simple feature pyramid of ViTDet (Li et al. 2022, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from crossband.shared.layers.layer_norm import LayerNorm2d
from crossband.shared.necks.ll_fpn import pyramid_strides


class SimpleFeaturePyramid(nn.Module):
    """Four scales of the last map, each finished by a 1x1 and a 3x3 convolution.

    Args:
        channels: Of the map that comes in.
        out_channels: Of every map that goes out.
        stride: Of the map that comes in.

    Attributes:
        out_channels: Four times the same.
        strides: A quarter of `stride`, a half, itself, twice.

    Raises:
        ConfigError: a stride that 4 does not divide.
    """

    def __init__(self, channels: int, out_channels: int = 256, stride: int = 16) -> None:
        """Build the four branches."""
        super().__init__()
        half, quarter = channels // 2, channels // 4
        scales: list[tuple[list[nn.Module], int]] = [
            (
                [
                    nn.ConvTranspose2d(channels, half, 2, stride=2),
                    LayerNorm2d(half),
                    nn.GELU(),
                    nn.ConvTranspose2d(half, quarter, 2, stride=2),
                ],
                quarter,
            ),
            ([nn.ConvTranspose2d(channels, half, 2, stride=2)], half),
            ([], channels),
            ([nn.MaxPool2d(2, stride=2)], channels),
        ]
        self.levels = nn.ModuleList(
            nn.Sequential(
                *layers,
                nn.Conv2d(width, out_channels, 1, bias=False),
                LayerNorm2d(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels),
            )
            for layers, width in scales
        )
        self.out_channels = [out_channels] * 4
        self.strides = pyramid_strides(stride)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map the last (B, D, h, w) to (B, C, 4h, 4w), (2h, 2w), (h, w), (h // 2, w // 2)."""
        return [level(maps[-1]) for level in self.levels]
