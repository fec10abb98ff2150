"""Global response normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GRN(nn.Module):
    """Weighs channels by how strongly they respond over the map (ConvNeXt V2, equation 3).

    `G = ||x||_2` over the places, `N = G / mean_C(G)`, and `x (gamma N + 1) + beta`. Both
    parameters start at zero, so the layer starts as the identity.

    Args:
        channels: C.
        bias: Whether there is a `beta`; the re-parameterised form has none.
    """

    def __init__(self, channels: int, bias: bool = True) -> None:
        """Build gamma and beta, (1, 1, 1, C)."""
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        # Not `norm`, which is six times slower over these axes; the clamp keeps the gradient of
        # the root finite where a channel is zero everywhere.
        response = wide.square().sum((1, 2), keepdim=True).clamp_min(1e-30).sqrt()
        relative = response / (response.mean(-1, keepdim=True) + 1e-6)
        scale = (self.gamma * relative + 1).to(x.dtype)
        return x * scale if self.beta is None else torch.addcmul(self.beta, x, scale)
