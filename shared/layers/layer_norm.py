"""Layer normalisation of feature maps."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W), each place by itself."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        """Build the scale and the shift of `channels` channels."""
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)
