"""Linear layers by the faster of the two matrix libraries that PyTorch carries on x86.

PyTorch computes float32 products with MKL, which on CPUs of other makers than Intel takes slow
code paths; oneDNN, which it carries too, generates code for what the CPU can do (twice as fast on
an AMD EPYC with AVX-512, benchmarks/README.md). Elsewhere, in other precisions and when exporting
this is `torch.nn.functional.linear`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from crossband.shared.kernels.dispatch import exporting

Implementation = Literal["auto", "reference", "onednn"]

# Below this many multiply-adds the call itself costs as much as a faster product saves.
_SMALLEST = 2**21


def _available() -> bool:
    parts = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
    return parts and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # not a public operator


def _mkl_is_slow() -> bool:
    try:
        cpu = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return False
    # Not measured, so left alone: older CPUs, where both libraries use AVX2.
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and "vendor_id" in cpu and "GenuineIntel" not in cpu


ONEDNN_AVAILABLE = _available()
_PREFERRED = ONEDNN_AVAILABLE and _mkl_is_slow()


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, implementation: Implementation = "auto"
) -> Tensor:
    """Return `x weight^T + bias`.

    Args:
        x: (..., I).
        weight: (O, I).
        bias: (O,) or None.
        implementation: `reference` is PyTorch's own function; `onednn` (float32 on the CPU) is
            chosen by `auto` where it was measured to win.

    Returns:
        (..., O).
    """
    if implementation == "auto":
        implementation = "onednn" if _onednn_wins(x, weight) else "reference"
    if implementation == "reference":
        return nn.functional.linear(x, weight, bias)
    return _product(x, weight, bias)


def batched_linear(x: Tensor, weight: Tensor, implementation: Implementation = "auto") -> Tensor:
    """Return `x_b weight_b^T` for every sample b, as dynamic layers need it.

    Args:
        x: (B, N, I).
        weight: (B, O, I).
        implementation: As for `linear`.

    Returns:
        (B, N, O).
    """
    if implementation == "auto":
        implementation = "onednn" if _onednn_wins(x, weight[0]) else "reference"
    if implementation == "reference":
        return x @ weight.transpose(1, 2)
    return torch.stack([_product(a, w) for a, w in zip(x, weight, strict=True)])


class Linear(nn.Linear):
    """`torch.nn.Linear`, same parameters and state dict, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        return linear(x, self.weight, self.bias)


def _onednn_wins(x: Tensor, weight: Tensor) -> bool:
    return (
        _PREFERRED
        and x.device.type == "cpu"
        and x.dim() > 1
        and x.dtype == weight.dtype == torch.float32
        and not exporting()
        and not torch.is_autocast_enabled("cpu")
        and x.numel() * weight.shape[0] >= _SMALLEST
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if torch.is_grad_enabled():  # also in a backward pass that is to be differentiated again
        return _Product.apply(x, weight, bias)
    return _operator(x, weight, bias)


def _operator(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.compiler.is_compiling():
        return _opaque(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


# The compiler takes the operator itself with packed constant weights only.
@torch.library.custom_op(
    "crossband::onednn_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
)
def _opaque(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@_opaque.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _operator(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            grad_x = _product(grad, weight.t())
        rows = grad.flatten(0, -2)
        if needs_weight:
            columns = x.flatten(0, -2)
            if weight.shape[0] > weight.shape[1]:  # the product is faster with few rows
                grad_weight = _product(columns.t(), rows.t()).t()
            else:
                grad_weight = _product(rows.t(), columns.t())
        if needs_bias:
            grad_bias = rows.sum(0)
        return grad_x, grad_weight, grad_bias


if ONEDNN_AVAILABLE:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
        return 2 * x.numel() * weight[0]
