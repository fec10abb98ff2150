"""Scaled dot-product attention, computed the way that is fastest for its shape.

`softmax(q k^T / sqrt(e)) v` (Vaswani et al. 2017, equation 1). The reference is the formula; the
other forms give the same values and gradients and differ in speed only (benchmarks/README.md).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from crossband.shared.kernels.dispatch import exporting

Implementation = Literal["auto", "reference", "batched", "fused"]

# Up to here batched products beat the fused operator on a CPU with two threads, which pays some
# 2 us for each small product: at the published sizes of PredFormer 12 keys take 0.7 instead of
# 1.9 ms, 64 keys 0.39 instead of 0.53 ms. From 128 keys on the scores outgrow the caches (batch 8
# in training: 104 instead of 57 ms).
_BATCHED_KEYS = 64
# A softmax over so short a last axis is slow (12 keys: 0.84 ms); over the axis before it is not
# (0.22 ms), so the scores are computed transposed.
_TRANSPOSED_KEYS = 32


def attention(q: Tensor, k: Tensor, v: Tensor, implementation: Implementation = "auto") -> Tensor:
    """Attend over the second-last axis.

    Args:
        q: Queries (..., L, E).
        k: Keys (..., S, E).
        v: Values (..., S, E).
        implementation: `reference` is the plain formula, `batched` suits many short sequences,
            `fused` long ones and accelerators. `auto` chooses; when exporting, the reference.

    Returns:
        (..., L, E).
    """
    if implementation == "auto":
        implementation = _choose(q, k)
    if implementation == "reference":
        weights = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)
        return weights @ v
    if implementation == "batched":
        return _batched(q, k, v)
    if q.dim() > 4:  # the fused operators know one batch axis and the heads
        batch = q.shape[:-3]
        q, k, v = q.flatten(0, -4), k.flatten(0, -4), v.flatten(0, -4)
        return scaled_dot_product_attention(q, k, v).unflatten(0, batch)
    return scaled_dot_product_attention(q, k, v)


def _choose(q: Tensor, k: Tensor) -> Implementation:
    if exporting():
        return "reference"
    return "batched" if q.device.type == "cpu" and k.shape[-2] <= _BATCHED_KEYS else "fused"


def _batched(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, scale = q.shape[:-2], q.shape[-1] ** -0.5
    q, k, v = q.flatten(0, -3), k.flatten(0, -3), v.flatten(0, -3)
    nothing = q.new_zeros(()).expand(1, 1, 1)  # beta=0: not read, only scales the product by alpha
    if k.shape[-2] <= _TRANSPOSED_KEYS:
        scores = torch.baddbmm(nothing, k, q.transpose(1, 2), beta=0, alpha=scale)  # (n, S, L)
        weights = scores.softmax(dim=-2).transpose(1, 2)
    else:
        weights = torch.baddbmm(nothing, q, k.transpose(1, 2), beta=0, alpha=scale).softmax(dim=-1)
    return torch.bmm(weights, v).unflatten(0, batch)
