"""The head of UPerNet (Xiao et al. 2018): pyramid pooling, a feature pyramid, one bottleneck.

Layers have mmseg's names, so weights of its `UPerHead` load.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.heads.base import ConvNormAct, SegmentationHead
from crossband.shared.kernels.dispatch import exporting
from crossband.shared.kernels.upsampled_conv import upsampled_conv3x3
from crossband.shared.layers.resize import resize


class UPerHead(SegmentationHead):
    """Joins maps of four scales.

    Args:
        in_channels: Of the maps, finest first.
        num_classes: K.
        channels: Of all inner maps; UNIP takes the backbone's width.
        pool_scales: Sides of the pooled maps.
        dropout: Probability of leaving out a channel.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        """Build the layers."""
        super().__init__(channels, num_classes, dropout)
        last = in_channels[-1]
        # The pooling sits at place 0 of each, where mmseg has it.
        self.psp_modules = nn.ModuleList(
            nn.Sequential(AveragePool(side), ConvNormAct(last, channels, 1)) for side in pool_scales
        )
        self.bottleneck = ConvNormAct(last + len(pool_scales) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(
            ConvNormAct(width, channels, 1) for width in in_channels[:-1]
        )
        self.fpn_convs = nn.ModuleList(ConvNormAct(channels, channels, 3) for _ in in_channels[:-1])
        self.fpn_bottleneck = ConvNormAct(len(in_channels) * channels, channels, 3)

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """Map (B, C_i, h_i, w_i) to features of the first one's size."""
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=False)]
        laterals.append(self._pooled(maps[-1]))
        for level in range(len(laterals) - 1, 0, -1):
            size = laterals[level - 1].shape[-2:]
            laterals[level - 1] = laterals[level - 1] + resize(laterals[level], size)
        outs = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=False)]
        outs.append(laterals[-1])
        joined = upsampled_conv3x3(outs, self.fpn_bottleneck.conv.weight)
        return self.fpn_bottleneck.finish(joined)

    def _pooled(self, x: Tensor) -> Tensor:
        pooled = [resize(branch(x), x.shape[-2:]) for branch in self.psp_modules]
        return self.bottleneck(torch.cat([x, *pooled], dim=1))


class AveragePool(nn.Module):
    """Adaptive average pooling to a square map."""

    def __init__(self, side: int) -> None:
        """Keep the side."""
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, side, side)."""
        if not exporting():
            return F.adaptive_avg_pool2d(x, self.side)
        # ONNX has no such operator for sides that do not divide; two products are the same.
        rows, columns = (_means(size, self.side, x) for size in x.shape[-2:])
        return rows @ x @ columns.t()


def _means(size: int, side: int, like: Tensor) -> Tensor:
    """Return (side, size): which places each pooled place averages."""
    matrix = torch.zeros(side, size)
    for row in range(side):
        start, stop = row * size // side, -(-(row + 1) * size // side)
        matrix[row, start:stop] = 1 / (stop - start)
    return matrix.to(like)
