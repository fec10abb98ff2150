"""A backbone and its heads as one network that gives classes of pixels."""

from __future__ import annotations

from torch import Tensor, nn

from crossband.shared.backbones.base import Backbone
from crossband.shared.heads.base import SegmentationHead, resize


class Segmentor(nn.Module):
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

    def layer_index(self, name: str) -> int:
        """Return the layer of a parameter for layer-wise rates; heads come last."""
        own = self.backbone.layer_index
        if name.startswith("backbone."):
            return own(name.removeprefix("backbone."))
        return own("norm.weight")

    def no_weight_decay(self) -> set[str]:
        """Return names of the backbone's parameters that take no weight decay."""
        names = getattr(self.backbone, "no_weight_decay", set)()
        return {f"backbone.{name}" for name in names}
