"""The fully convolutional head (Long et al. 2015) in mmseg's form, and the linear probe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crossband.shared.heads.base import ConvNormAct, SegmentationHead
from crossband.shared.layers.resize import resize


class FCNHead(SegmentationHead):
    """Convolutions on one map, or on several that are resized to the first and joined.

    Args:
        in_channels: Of the maps that are given.
        num_classes: K.
        in_index: Which of the maps are taken.
        channels: Of the convolutions; without convolutions the maps' own.
        num_convs: Convolutions before the classifier; 0 makes a linear probe.
        kernel_size: Of the convolutions.
        dropout: Probability of leaving out a channel.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        in_index: Sequence[int] = (-1,),
        channels: int = 256,
        num_convs: int = 1,
        kernel_size: int = 3,
        dropout: float = 0.1,
    ) -> None:
        """Build the layers."""
        width = sum(in_channels[i] for i in in_index)
        super().__init__(channels if num_convs else width, num_classes, dropout)
        self.in_index = list(in_index)
        self.convs: nn.Module = nn.Identity()
        if num_convs:
            widths = [width, *([channels] * num_convs)]
            self.convs = nn.Sequential(
                *(ConvNormAct(a, b, kernel_size) for a, b in zip(widths, widths[1:], strict=False))
            )

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """Map the chosen maps to features at the first one's size."""
        chosen = [maps[i] for i in self.in_index]
        size = chosen[0].shape[-2:]
        joined = chosen[0]
        if len(chosen) > 1:
            joined = torch.cat([resize(x, size) for x in chosen], dim=1)
        return self.convs(joined)
