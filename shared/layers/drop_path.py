"""Stochastic depth."""

from __future__ import annotations

from torch import Tensor, nn


class DropPath(nn.Module):
    """Sets whole samples of a residual branch to zero in training (Huang et al. 2016).

    Those that stay are divided by the probability of staying.
    """

    def __init__(self, rate: float = 0.0) -> None:
        """Take the probability of dropping a sample."""
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, ...) to the same shape."""
        if not self.training or self.rate == 0.0:
            return x
        if self.rate >= 1.0:
            return x * 0.0
        keep = 1 - self.rate
        return x * (x.new_empty((len(x), *[1] * (x.dim() - 1))).bernoulli_(keep) / keep)

    def extra_repr(self) -> str:
        """Return the rate."""
        return f"rate={self.rate}"
