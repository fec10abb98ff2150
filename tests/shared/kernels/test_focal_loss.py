from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from crossband.shared.kernels.focal_loss import sigmoid_focal_loss


def test_closed_form() -> None:
    logits = torch.tensor([[0.0, 2.0], [-1.0, 0.5]], dtype=torch.float64)
    found = sigmoid_focal_loss(logits, torch.tensor([1, 2]), gamma=2.0, alpha=0.25)
    p = logits.sigmoid()
    positive = -0.25 * (1 - p) ** 2 * p.log()
    negative = -0.75 * p**2 * (1 - p).log()
    expected = negative.clone()
    expected[0, 1] = positive[0, 1]  # row 1 is background
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_without_focus_it_is_cross_entropy() -> None:
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    target = torch.arange(20) % 6
    one_hot = F.one_hot(target, 6)[:, :5].float()
    found = sigmoid_focal_loss(logits, target, gamma=0.0, alpha=0.5)
    expected = 0.5 * F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    torch.testing.assert_close(found, expected)


def test_exact_where_probabilities_round_to_one() -> None:
    logits = torch.tensor([[30.0, -30.0]])
    found = sigmoid_focal_loss(logits, torch.tensor([2]), gamma=2.0, alpha=0.25)
    assert found[0, 0] == pytest.approx(0.75 * 30.0, rel=1e-6)
    assert 0 <= found[0, 1] < 1e-20


def test_weights_by_the_class_of_the_target() -> None:
    logits = torch.zeros(3, 2)
    plain = sigmoid_focal_loss(logits, torch.tensor([0, 1, 2]))
    found = sigmoid_focal_loss(logits, torch.tensor([0, 1, 2]), weight=torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(found, plain * torch.tensor([[2.0], [3.0], [1.0]]))


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_gradient(gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 3, 4, 4])
    logits.requires_grad_()
    assert gradcheck(lambda x: sigmoid_focal_loss(x, target, gamma=gamma), logits)
