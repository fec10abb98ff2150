"""LVM-Med's ResNet-50 under torchvision's keys, as a classifier and as a backbone.

The other encoder is SAM's (`shared/backbones/sam.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import crossband.shared.compat  # noqa: F401 - before timm, which imports torchvision

from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor

from crossband.shared.backbones.base import Backbone, take_indices

DEPTHS = (3, 4, 6, 3)
_CHANNELS, _STRIDES = (64, 256, 512, 1024, 2048), (2, 4, 8, 16, 32)


class ResNet50(ResNet):
    """ResNet-50 (torchvision's v1.5) with a linear layer on pooled features.

    Args:
        num_classes: Outputs; 0: the pooled features, 2048 of them.
        in_chans: Channels of the image.
        layers: Blocks of each stage.
    """

    def __init__(
        self, num_classes: int = 0, in_chans: int = 3, layers: Sequence[int] = DEPTHS
    ) -> None:
        """Build the network; weights are drawn as timm does."""
        super().__init__(Bottleneck, tuple(layers), num_classes, in_chans)


class ResNet50Backbone(Backbone, ResNet50):
    """The same as a backbone of five maps, strides 2 to 32; keys are the classifier's without `fc`.

    Args:
        in_chans: Channels of the image.
        layers: Blocks of each stage.
        out_indices: Maps to return of 0 (the stem) to 4; None: all.
    """

    def __init__(
        self,
        in_chans: int = 3,
        layers: Sequence[int] = DEPTHS,
        out_indices: Sequence[int] | None = None,
    ) -> None:
        """Build the network without its classifier."""
        ResNet50.__init__(self, 0, in_chans, layers)
        self.out_indices = take_indices(len(_CHANNELS), out_indices)
        self.out_channels = [_CHANNELS[index] for index in self.out_indices]
        self.strides = [_STRIDES[index] for index in self.out_indices]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (B, C, H, W) to maps (B, out_channels[i], ~H/strides[i], ~W/strides[i])."""
        x = self.act1(self.bn1(self.conv1(image)))
        maps = [x]
        x = self.maxpool(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return [maps[index] for index in self.out_indices]
