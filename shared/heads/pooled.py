"""Classes of an image from the mean of a backbone's last map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from crossband.shared.backbones.base import AroundBackbone
from crossband.shared.registry import as_backbone


class PooledClassifier(AroundBackbone):
    """A backbone, the mean over its last map, and a linear layer.

    Args:
        backbone: Name of a backbone of ours or of timm, or a network.
        num_classes: K.
        backbone_arguments: Of a backbone given by name.

    Raises:
        ConfigError: a network that gives no maps.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int,
        *,
        backbone_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Build both parts."""
        super().__init__()
        backbone = as_backbone(backbone, backbone_arguments)
        self.backbone = backbone
        self.head = nn.Linear(backbone.out_channels[-1], num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, C, H, W) to logits (B, K)."""
        return self.head(self.backbone(image)[-1].mean((2, 3)))
