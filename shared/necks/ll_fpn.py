"""The pyramid of UNIP (ICLR 2025) and, with four different maps, of BEiT's segmentation models."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from crossband.shared.errors import ConfigError


class LLFPN(nn.Module):
    """Last-layer feature pyramid: four scales of one map, or of four maps of one stride.

    Keys are the authors' (`fpn1.0.weight`, ...).

    Args:
        channels: D, of every map.
        stride: Of the maps that come in.

    Attributes:
        out_channels: D four times.
        strides: A quarter of `stride`, a half, itself, twice.

    Raises:
        ConfigError: a stride that 4 does not divide.
    """

    def __init__(self, channels: int, stride: int = 16) -> None:
        """Build the transposed convolutions."""
        super().__init__()
        self.out_channels = [channels] * 4
        self.strides = pyramid_strides(stride)
        self.fpn1 = nn.Sequential(
            nn.ConvTranspose2d(channels, channels, 2, stride=2),
            nn.BatchNorm2d(channels),
            nn.GELU(),
            nn.ConvTranspose2d(channels, channels, 2, stride=2),
        )
        self.fpn2 = nn.Sequential(nn.ConvTranspose2d(channels, channels, 2, stride=2))
        self.fpn3 = nn.Identity()
        self.fpn4 = nn.MaxPool2d(2, stride=2)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map one or four (B, D, h, w) to (B, D, 4h, 4w), (2h, 2w), (h, w), (h // 2, w // 2).

        Where h or w is 1, the last map keeps its size.

        Raises:
            ConfigError: another number of maps.
        """
        if len(maps) not in (1, 4):
            raise ConfigError(f"LLFPN takes one map or four, not {len(maps)}.")
        each = list(maps) * (4 // len(maps))
        # A map of one row or column is too small to be halved.
        coarse = self.fpn4(each[3]) if min(each[3].shape[-2:]) > 1 else each[3]
        return [self.fpn1(each[0]), self.fpn2(each[1]), self.fpn3(each[2]), coarse]


def pyramid_strides(stride: int) -> list[int]:
    """Return a quarter of a stride, a half, itself and twice.

    Raises:
        ConfigError: a stride that 4 does not divide.
    """
    if stride % 4:
        raise ConfigError(
            f"Maps of stride {stride} make no pyramid from a quarter of it: take a patch size that "
            "4 divides, or the neck select_resize."
        )
    return [stride // 4, stride // 2, stride, 2 * stride]
