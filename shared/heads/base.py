"""What segmentation heads have in common: mmseg's names of layers, its start, its order."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class ConvNormAct(nn.Module):
    """Convolution without bias, batch norm, ReLU; keys `conv.weight` and `bn.*`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        """Build the layers and initialise them as mmcv's ConvModule does."""
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, O, H, W)."""
        return self.finish(self.conv(x))

    def finish(self, x: Tensor) -> Tensor:
        """Normalise and rectify what the convolution gave."""
        return F.relu(self.bn(x), inplace=True)


class SegmentationHead(nn.Module):
    """Ends in `conv_seg`, a 1x1 convolution to classes after dropout of whole channels.

    Args:
        channels: Of the features.
        num_classes: K.
        dropout: Probability of leaving out a channel.
    """

    def __init__(self, channels: int, num_classes: int, dropout: float) -> None:
        """Build the classifier."""
        super().__init__()
        self.num_classes = num_classes
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)
        self.dropout = nn.Dropout2d(dropout) if dropout else nn.Identity()

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """Map a backbone's maps to features (B, channels, h, w)."""
        raise NotImplementedError

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map a backbone's maps, finest first, to logits (B, K, h, w)."""
        return self.conv_seg(self.dropout(self.features(maps)))
