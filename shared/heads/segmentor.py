"""A backbone and its heads as one network that gives classes of pixels."""

from __future__ import annotations

from torch import Tensor

from crossband.shared.backbones.base import AroundBackbone, Backbone
from crossband.shared.heads.base import SegmentationHead
from crossband.shared.layers.resize import resize


class Segmentor(AroundBackbone):
    """Encoder and decoder; an auxiliary head helps in training (mmseg's EncoderDecoder).

    Args:
        backbone: Gives maps, finest first.
        decode_head: Gives logits of the maps.
        auxiliary_head: The same, used in training only.
    """

    def __init__(
        self,
        backbone: Backbone,
        decode_head: SegmentationHead,
        auxiliary_head: SegmentationHead | None = None,
    ) -> None:
        """Join the parts."""
        super().__init__()
        self.backbone = backbone
        self.decode_head = decode_head
        self.auxiliary_head = auxiliary_head
        self.num_classes = decode_head.num_classes

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, C, H, W) to logits (B, K, H, W)."""
        return resize(self.decode_head(self.backbone(image)), image.shape[-2:])

    def training_logits(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map an image to the logits of both heads, at the heads' own sizes."""
        maps = self.backbone(image)
        main = self.decode_head(maps)
        return main, None if self.auxiliary_head is None else self.auxiliary_head(maps)
