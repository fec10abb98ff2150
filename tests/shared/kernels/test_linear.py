from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.utils.flop_counter import FlopCounterMode

from crossband.shared.kernels import linear as module
from crossband.shared.kernels.linear import ONEDNN_AVAILABLE, Linear, batched_linear, linear

needs_onednn = pytest.mark.skipif(not ONEDNN_AVAILABLE, reason="PyTorch without oneDNN or MKL")


@pytest.fixture
def prefer_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `auto` choose as on a CPU where MKL is slow."""
    monkeypatch.setattr(module, "_PREFERRED", True)


def arrays(*lead: int, into: int, out: int, bias: bool = True) -> list[Tensor | None]:
    torch.manual_seed(0)
    x, weight = torch.randn(*lead, into), torch.randn(out, into)
    return [t.requires_grad_() for t in (x, weight)] + [
        torch.randn(out).requires_grad_() if bias else None
    ]


@needs_onednn
class TestParity:
    @pytest.mark.parametrize("lead", [(7,), (2, 3), (2, 3, 4)])
    @pytest.mark.parametrize(("into", "out"), [(5, 9), (9, 5), (1, 4), (4, 1)])
    @pytest.mark.parametrize("bias", [True, False])
    def test_values_and_gradients(
        self, lead: tuple[int, ...], into: int, out: int, bias: bool
    ) -> None:
        inputs = arrays(*lead, into=into, out=out, bias=bias)
        wanted = [t for t in inputs if t is not None]
        upstream = torch.randn(*lead, out)
        expected = nn.functional.linear(*inputs)
        found = linear(*inputs, implementation="onednn")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for a, b in zip(
            grad(found, wanted, upstream), grad(expected, wanted, upstream), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)

    def test_arrays_in_any_layout(self) -> None:
        x, weight, bias = arrays(6, 4, into=8, out=8)
        upstream = torch.ones(()).expand(4, 6, 8)  # as `sum` sends it back
        strided = [x.transpose(0, 1), weight.t(), bias]
        expected = nn.functional.linear(*strided)
        found = linear(*strided, implementation="onednn")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        wanted = (x, weight, bias)
        for a, b in zip(
            grad(found, wanted, upstream), grad(expected, wanted, upstream), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)

    def test_no_gradient_for_what_is_frozen(self) -> None:
        x, weight, bias = arrays(4, into=3, out=2)
        y = linear(x.detach(), weight, bias.detach(), "onednn")
        assert grad(y.sum(), weight)[0].shape == weight.shape
        assert not linear(x.detach(), weight.detach(), None, "onednn").requires_grad

    def test_gradient_of_a_gradient(self) -> None:
        x, weight, bias = arrays(4, into=3, out=2)
        results = []
        for implementation in ("onednn", "reference"):
            y = linear(x, weight, bias, implementation).square().sum()
            (first,) = grad(y, x, create_graph=True)
            results.append(grad(first.square().sum(), weight)[0])
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-4)

    def test_compiles_in_one_piece(self) -> None:
        inputs = arrays(4, into=3, out=2)
        torch._dynamo.reset()
        compiled = torch.compile(linear, fullgraph=True, backend="eager")
        for enabled in (True, False):
            with torch.set_grad_enabled(enabled):
                found = compiled(*inputs, implementation="onednn")
            torch.testing.assert_close(found, nn.functional.linear(*inputs))

    def test_operations_are_counted(self) -> None:
        inputs = arrays(4, 5, into=6, out=7)
        counts = []
        for implementation in ("onednn", "reference"):
            with FlopCounterMode(display=False) as counter:
                linear(*inputs, implementation).sum().backward()
            counts.append(counter.get_total_flops())
        assert counts == [3 * 2 * 20 * 6 * 7] * 2


@needs_onednn
@pytest.mark.usefixtures("prefer_onednn")
class TestChoice:
    def chosen(self, x: Tensor, layer: nn.Linear) -> str:
        with torch.profiler.profile() as profiler, torch.no_grad():
            layer(x)
        names = {event.key for event in profiler.key_averages()}
        return "onednn" if "mkldnn::_linear_pointwise" in names else "reference"

    def test_large_float32_products(self) -> None:
        assert self.chosen(torch.randn(256, 128), Linear(128, 128)) == "onednn"

    def test_small_products(self) -> None:
        assert self.chosen(torch.randn(8, 32), Linear(32, 32)) == "reference"

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_other_precisions(self, dtype: torch.dtype) -> None:
        x = torch.randn(256, 128, dtype=dtype)
        assert self.chosen(x, Linear(128, 128, dtype=dtype)) == "reference"

    def test_autocast(self) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            assert Linear(128, 128)(torch.randn(256, 128)).dtype == torch.bfloat16

    def test_where_mkl_is_fast(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_PREFERRED", False)
        assert self.chosen(torch.randn(256, 128), Linear(128, 128)) == "reference"

    def test_exported_programs_hold_public_operators_only(self) -> None:
        exported = torch.export.export(Linear(128, 128), (torch.randn(256, 128),))
        targets = [str(node.target) for node in exported.graph.nodes]
        assert "aten.linear.default" in targets
        assert not any("mkldnn" in target for target in targets)


def test_is_a_torch_linear() -> None:
    ours, theirs = Linear(3, 2), nn.Linear(3, 2)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 3)
    assert isinstance(ours, nn.Linear)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("implementation", ["reference", "auto", "onednn"])
def test_every_sample_has_its_own_weight(implementation: str) -> None:
    if implementation == "onednn" and not ONEDNN_AVAILABLE:
        pytest.skip("PyTorch without oneDNN or MKL")
    torch.manual_seed(0)
    x, weight = torch.randn(3, 5, 4).requires_grad_(), torch.randn(3, 7, 4).requires_grad_()
    upstream = torch.randn(3, 5, 7)
    expected = torch.einsum("bni,boi->bno", x, weight)
    found = batched_linear(x, weight, implementation)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(
        grad(found, (x, weight), upstream), grad(expected, (x, weight), upstream), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
