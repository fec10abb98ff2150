"""Generalised mean pooling of tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class GeM(nn.Module):
    """`(mean_n clamp(x_n)^p)^(1/p)` with one learned exponent per group of channels.

    One group is GeM (Radenovic et al. 2018), as many groups as heads GGeM (Ko et al. 2022,
    arXiv 2212.04114). `p = 1` is the mean of what is positive, a large `p` the maximum.

    Args:
        groups: G; consecutive channels form a group.
        p: Exponent to start with.
        eps: Smallest value; what is below counts as this.
    """

    def __init__(self, groups: int = 1, p: float = 3.0, eps: float = 1e-6) -> None:
        """Build the exponents, (G,)."""
        super().__init__()
        self.p = nn.Parameter(torch.full((groups,), float(p)))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, C) to (B, C)."""
        p = self.p.float().repeat_interleave(x.shape[-1] // len(self.p))
        powers = x.float().clamp(min=self.eps).log() * p  # logarithms: large exponents overflow
        mean = powers.logsumexp(1) - math.log(x.shape[1])
        return (mean / p).exp().to(x.dtype)
