"""Objectives of forecasting beside the mean squared error."""

from __future__ import annotations

import torch
from torch import Tensor


def tau_regulariser(
    prediction: Tensor, target: Tensor, temperature: float = 0.1, eps: float = 1e-12
) -> Tensor:
    """Return the differential divergence of TAU (Tan et al. 2023, equation 10).

    Kullback-Leibler divergence between the softmaxed frame differences of forecast and truth,
    averaged over all elements: mean(p log(p / (q + eps) + eps)), p and q = softmax over C, H, W.

    Args:
        prediction: (B, T, C, H, W), T at least 2.
        target: Same shape.
        temperature: Divides the differences.
        eps: Keeps the logarithm finite.

    Returns:
        A scalar.
    """
    p, q = (
        torch.softmax(frames.diff(dim=1).flatten(2) / temperature, dim=-1)
        for frames in (prediction, target)
    )
    return (p * torch.log(p / (q + eps) + eps)).mean()
