"""Scaled dot-product attention over one axis of a token grid, chosen by shape.

`softmax(q k^T / sqrt(e)) v` (Vaswani et al. 2017, equation 1). The reference is the formula; the
other forms give the same values and differ in speed only (benchmarks/README.md).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Implementation = Literal["auto", "reference", "fused"]


def attention(q: Tensor, k: Tensor, v: Tensor, implementation: Implementation = "auto") -> Tensor:
    """Attend over the second-last axis.

    Args:
        q: Queries (..., L, E).
        k: Keys (..., S, E).
        v: Values (..., S, E).
        implementation: `reference` forces the plain formula; `auto` takes it when exporting, and
            the fused operator otherwise.

    Returns:
        (..., L, E).
    """
    if implementation == "auto":
        exporting = torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()
        implementation = "reference" if exporting else "fused"
    if implementation == "reference":
        weights = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)
        return weights @ v
    return scaled_dot_product_attention(q, k, v)
