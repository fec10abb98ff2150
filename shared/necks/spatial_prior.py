"""Convolutions beside a plain ViT, for what is smaller than a patch (ViT-Adapter, ICLR 2023).

ViT-Adapter feeds such a branch into the blocks; here it is added to the two finest maps alone,
which keeps the ViT as it was pre-trained.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from crossband.shared.heads.base import ConvNormAct


class SpatialPrior(nn.Module):
    """Maps of strides 4 and 8 of the image, added to the first two maps of a pyramid.

    Args:
        in_chans: Channels of the image.
        width: Channels of the convolutions.
        channels: Of the maps that are added to.
    """

    def __init__(self, in_chans: int, width: int, channels: int) -> None:
        """Build the layers; what is added starts at zero."""
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, width, 3, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            ConvNormAct(width, width, 3),
        )
        self.downs = nn.ModuleList()
        self.projections = nn.ModuleList()
        for _ in range(2):
            self.downs.append(
                nn.Sequential(
                    nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
                    nn.BatchNorm2d(2 * width),
                    nn.ReLU(inplace=True),
                    ConvNormAct(2 * width, 2 * width, 3),
                )
            )
            self.projections.append(nn.Conv2d(2 * width, channels, 1))
            width *= 2
        for projection in self.projections:
            nn.init.zeros_(projection.bias)

    def forward(self, image: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
        """Add to maps (B, channels, H / 4, W / 4) and (B, channels, H / 8, W / 8)."""
        maps = list(maps)
        x = self.stem(image)
        for level, (down, projection) in enumerate(zip(self.downs, self.projections, strict=True)):
            x = down(x)
            maps[level] = maps[level] + projection(x)
        return maps
