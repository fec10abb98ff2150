"""Every implementation gives the values and gradients of the formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from crossband.shared.kernels import attention as module
from crossband.shared.kernels.attention import attention

IMPLEMENTATIONS = ["auto", "batched", "fused"]
# (..., L, E) as in the published PredFormers: time of TaxiBJ, Moving MNIST and t2m, space of Moving
# MNIST and t2m, all of TaxiBJ.
PUBLISHED = [
    (1, 64, 8, 4, 32), (1, 64, 8, 10, 32), (1, 128, 8, 12, 32), (1, 10, 8, 64, 32),
    (1, 2, 8, 128, 32), (1, 8, 256, 32),
]  # fmt: skip


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def test_reference_is_the_closed_form_of_equal_scores() -> None:
    v = draw(2, 3, 5, 4)
    out = attention(torch.zeros(2, 3, 7, 4), draw(2, 3, 5, 4), v, "reference")
    torch.testing.assert_close(out, v.mean(-2, keepdim=True).expand(2, 3, 7, 4))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", PUBLISHED, ids=str)
def test_equals_reference_forward_and_backward(shape: tuple[int, ...], implementation: str) -> None:
    torch.manual_seed(0)
    inputs = [draw(*shape) for _ in range(3)]
    outer = torch.randn(shape)
    expected = attention(*inputs, "reference")
    got = attention(*inputs, implementation)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(
        torch.autograd.grad(got, inputs, outer),
        torch.autograd.grad(expected, inputs, outer),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", ["reference", *IMPLEMENTATIONS])
@pytest.mark.parametrize("keys", [3, module._TRANSPOSED_KEYS + 1])
def test_gradcheck(implementation: str, keys: int) -> None:
    torch.manual_seed(0)
    q, k, v = (draw(1, 2, n, 2, dtype=torch.float64) for n in (2, keys, keys))
    assert torch.autograd.gradcheck(lambda *t: attention(*t, implementation), (q, k, v))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("keys", [5, 40])
def test_other_lengths_permuted_views_and_large_scores(implementation: str, keys: int) -> None:
    torch.manual_seed(0)
    q = 40 * torch.randn(2, 3, 2, 4, 8).permute(0, 2, 3, 1, 4)  # a softmax without shift overflows
    k, v = (torch.randn(2, keys, 2, 4, 8).permute(0, 2, 3, 1, 4) for _ in range(2))
    expected = attention(q, k, v, "reference")
    assert expected.isfinite().all()
    torch.testing.assert_close(attention(q, k, v, implementation), expected)


class Attend(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v)


@pytest.mark.parametrize("length", [4, 100])
def test_exporting_takes_the_reference(length: int) -> None:
    inputs = tuple(torch.randn(1, 2, length, 8) for _ in range(3))
    program = torch.export.export(Attend(), inputs)
    operators = " ".join(str(node.target) for node in program.graph.nodes)
    assert "softmax" in operators
    assert "baddbmm" not in operators and "scaled_dot_product" not in operators
    torch.testing.assert_close(program.module()(*inputs), attention(*inputs, "reference"))


def test_onnx_export_takes_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.randn(1, 2, 100, 8)
    assert module._choose(q, q) == "fused"
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert module._choose(q, q) == "reference"


@pytest.mark.parametrize("length", [4, 40, 100])
def test_compiles_whole(length: int) -> None:
    inputs = tuple(draw(1, 2, length, 8) for _ in range(3))
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), attention(*inputs))
