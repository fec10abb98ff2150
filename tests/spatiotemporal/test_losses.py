from __future__ import annotations

import pytest
import torch

from crossband.spatiotemporal.losses import tau_regulariser


def test_equal_differences_diverge_by_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(2, 4, 1, 3, 5, generator=generator)
    assert tau_regulariser(frames, frames + 7).item() == pytest.approx(0, abs=1e-7)


def test_closed_form_of_two_cells() -> None:
    # Differences (0, d) against (0, 0): p = (1, e^(d/t)) / (1 + e^(d/t)), q = (1/2, 1/2).
    d, t = 0.03, 0.1
    prediction = torch.zeros(1, 2, 1, 1, 2, dtype=torch.float64)
    prediction[0, 1, 0, 0, 1] = d
    p = torch.tensor([1.0, torch.e ** (d / t)], dtype=torch.float64)
    p = p / p.sum()
    expected = (p * (2 * p).log()).mean()
    found = tau_regulariser(prediction, torch.zeros_like(prediction), t)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)


def test_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1, 3, 1, 2, 2, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(tau_regulariser, (a.requires_grad_(), b))
