from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from crossband.shared.layers.drop_path import DropPath
from crossband.shared.layers.grn import GRN
from crossband.shared.layers.layer_norm import LayerNorm2d
from crossband.shared.layers.squeeze_excite import SqueezeExcite


def test_layer_norm_over_channels() -> None:
    layer, x = LayerNorm2d(5), 3 * torch.randn(2, 5, 4, 3) + 1
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    expected = (x - mean) / (variance + 1e-6).sqrt()
    expected = expected * layer.weight[:, None, None] + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected)
    assert LayerNorm2d(5, eps=1e-3).eps == 1e-3


class TestGRN:
    def test_formula(self) -> None:
        layer, x = GRN(6), torch.randn(2, 4, 3, 6)
        assert torch.equal(layer(x), x)
        torch.nn.init.normal_(layer.gamma)
        torch.nn.init.normal_(layer.beta)
        response = x.norm(p=2, dim=(1, 2), keepdim=True)
        relative = response / (response.mean(-1, keepdim=True) + 1e-6)
        expected = (layer.gamma * relative + 1) * x + layer.beta
        torch.testing.assert_close(layer(x), expected)

    def test_gradients(self) -> None:
        layer = GRN(3).double()
        torch.nn.init.normal_(layer.gamma)
        x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
        assert gradcheck(layer, (x,))

    def test_a_silent_channel_has_a_finite_gradient(self) -> None:
        layer, x = GRN(2, bias=False), torch.zeros(1, 2, 2, 2)
        torch.nn.init.ones_(layer.gamma)
        x[..., 0] = 1
        x.requires_grad_()
        layer(x).sum().backward()
        assert x.grad.isfinite().all() and layer.gamma.grad.isfinite().all()
        assert layer.beta is None and set(layer.state_dict()) == {"gamma"}

    def test_half_precision_does_not_overflow(self) -> None:
        layer, x = GRN(2).half(), torch.full((1, 8, 8, 2), 300.0).half()
        torch.nn.init.ones_(layer.gamma)
        torch.testing.assert_close(layer(x), 2 * x)


def test_squeeze_excite() -> None:
    layer, x = SqueezeExcite(4, 2), torch.randn(2, 4, 3, 5)
    mean = x.mean((2, 3))
    hidden = (mean @ layer.down.weight.flatten(1).t() + layer.down.bias).relu()
    gate = (hidden @ layer.up.weight.flatten(1).t() + layer.up.bias).sigmoid()
    torch.testing.assert_close(layer(x), x * gate[:, :, None, None])


class TestDropPath:
    def test_whole_samples_are_dropped_and_the_mean_stays(self) -> None:
        torch.manual_seed(0)
        layer, x = DropPath(0.25), torch.ones(4000, 2, 3)
        y = layer(x)
        kept = y[:, 0, 0] > 0
        assert torch.equal(y, kept[:, None, None] / 0.75 * x)
        assert kept.float().mean() == pytest.approx(0.75, abs=0.03)

    def test_edges(self) -> None:
        x = torch.ones(3, 2)
        assert DropPath(0.5).eval()(x) is x
        assert DropPath(0.0)(x) is x
        assert DropPath(1.0)(x).count_nonzero() == 0
        assert "rate=0.5" in repr(DropPath(0.5))
