"""The U-Net (Ronneberger et al. 2015) of segmentation_models_pytorch on any backbone.

With a ResNet-50 it is `smp.Unet("resnet50")` to the last bit, and its files load: LVM-Med's 2-D
segmentation (Nguyen et al. 2023, section 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import crossband.shared.compat  # noqa: F401 - before smp, which imports torchvision

from torch import Tensor, nn

from crossband.shared.backbones.base import AroundBackbone
from crossband.shared.errors import ConfigError, MissingExtraError
from crossband.shared.registry import as_backbone


class BackboneUNet(AroundBackbone):
    """A backbone, and smp's decoder back to the image's own resolution.

    Maps of strides that a backbone does not have (ConvNeXt has none of 2) are left out: the decoder
    doubles the resolution without them.

    Args:
        backbone: Name of a backbone of ours or of timm, or a network.
        num_classes: K.
        backbone_arguments: Of a backbone given by name.
        decoder_channels: Of the decoder's blocks, coarsest first; one for each halving of the
            resolution, and the last ones of these if the backbone halves less often.

    Raises:
        ConfigError: a backbone whose strides are not powers of two, or too few channels.
        MissingExtraError: segmentation_models_pytorch is not installed.
    """

    inner = "encoder"

    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int,
        *,
        backbone_arguments: Mapping[str, Any] | None = None,
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
    ) -> None:
        """Build both parts; the decoder starts as smp's."""
        super().__init__()
        try:
            from segmentation_models_pytorch.base import initialization
            from segmentation_models_pytorch.base.heads import SegmentationHead
            from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
        except ModuleNotFoundError as error:
            raise MissingExtraError("segmentation_models_pytorch", "medical") from error
        backbone = as_backbone(backbone, backbone_arguments)
        self.num_classes = num_classes
        self.encoder = backbone
        channels = dict(zip(backbone.strides, backbone.out_channels, strict=True))
        levels = max(channels).bit_length() - 1
        self.steps = [2 << level for level in range(levels)]
        if set(channels) - set(self.steps):
            raise ConfigError(
                f"A U-Net needs maps whose strides are powers of two, and those of "
                f"{type(backbone).__name__} are {', '.join(map(str, channels))}."
            )
        if levels > len(decoder_channels):
            raise ConfigError(
                f"{len(decoder_channels)} decoder_channels are too few for a backbone that ends at "
                f"a stride of {max(channels)}: give {levels}."
            )
        widths = list(decoder_channels)[-levels:]
        self.decoder = UnetDecoder(
            [0, *(channels.get(step, 0) for step in self.steps)], widths, n_blocks=levels
        )
        self.segmentation_head = SegmentationHead(widths[-1], num_classes)
        initialization.initialize_decoder(self.decoder)
        initialization.initialize_head(self.segmentation_head)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, C, H, W) to logits (B, K, H, W)."""
        maps = dict(zip(self.encoder.strides, self.encoder(image), strict=True))
        sides = image.shape[-2:]
        features = [image]
        for step in self.steps:
            sides = tuple(-(-side // 2) for side in sides)
            found = maps.get(step)
            features.append(image.new_empty(len(image), 0, *sides) if found is None else found)
        return self.segmentation_head(self.decoder(features))
