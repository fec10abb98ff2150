from __future__ import annotations

import pytest
import torch

from crossband.shared.errors import ConfigError
from crossband.shared.pretraining.distillation_losses import (
    channel_divergence,
    nkd_loss,
    relation_loss,
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_nkd_is_the_formula(temperature: float) -> None:
    s, t, y = draw(6, 5), draw(6, 5, seed=1), torch.tensor([0, 1, 2, 3, 4, 0])
    wanted = torch.zeros(())
    for own, teach, label in zip(s, t, y.tolist(), strict=True):
        others = [c for c in range(5) if c != label]
        wanted = wanted - teach.softmax(0)[label] * own.softmax(0)[label].log()
        p, q = (teach[others] / temperature).softmax(0), (own[others] / temperature).softmax(0)
        wanted = wanted - 0.5 * temperature**2 * (p * q.log()).sum()
    found = nkd_loss(s, t, y, temperature=temperature, alpha=0.5)
    torch.testing.assert_close(found, wanted / 6)
    soft = torch.nn.functional.one_hot(y, 5) * 0.8 + 0.04
    assert torch.equal(nkd_loss(s, t, soft, temperature=temperature, alpha=0.5), found)


def test_nkd_has_its_least_value_for_the_other_classes_at_the_teacher() -> None:
    t, y = draw(4, 7, seed=2), torch.arange(4)
    s = t.clone().requires_grad_()
    nkd_loss(s, t, y, alpha=1.0).backward()
    others = s.grad.scatter(1, y[:, None], 0.0)
    # What is left is the pull of the target class on all, proportional to their probability.
    pull = t.softmax(1) * t.softmax(1).gather(1, y[:, None]) / 4
    torch.testing.assert_close(others, pull.scatter(1, y[:, None], 0.0), rtol=1e-4, atol=1e-6)
    far = nkd_loss(t * 1e4, t, y)
    assert torch.isfinite(far)


def test_channel_divergence_of_the_same_map_is_its_entropy() -> None:
    t = torch.zeros(2, 3, 4, 5)
    for temperature in (1.0, 2.0):
        found = channel_divergence(t, t, temperature=temperature)
        expected = temperature**2 * torch.log(torch.tensor(20.0))
        torch.testing.assert_close(found, expected)
    s = draw(2, 3, 4, 5).requires_grad_()
    channel_divergence(s, s.detach()).backward()
    torch.testing.assert_close(s.grad, torch.zeros_like(s), rtol=0, atol=1e-7)
    shifted = s.detach() + draw(2, 3, 1, 1)  # softmaxes over places do not see it
    other = draw(2, 3, 4, 5, seed=3)
    torch.testing.assert_close(
        channel_divergence(shifted, other), channel_divergence(s.detach(), other)
    )
    with pytest.raises(ConfigError, match="same classes"):
        channel_divergence(s, other[:, :2])


def test_relations_are_compared_whatever_the_width() -> None:
    q, k, v = (draw(2, 5, 8, seed=i) for i in range(3))
    assert relation_loss((q, k, v), (q, k, v), 2).abs() < 1e-7
    rotation, _ = torch.linalg.qr(draw(8, 8, seed=4))  # keeps products, within one head
    turned = [x @ rotation for x in (q, k, v)]
    assert relation_loss(turned, (q, k, v)).abs() < 1e-5
    wide = [torch.cat([x, torch.zeros_like(x)], -1) * 2**0.25 for x in (q, k, v)]
    assert relation_loss(wide, (q, k, v)).abs() < 1e-5  # twice as wide: scale by sqrt 2
    with pytest.raises(ConfigError, match="3 relation heads do not divide 8"):
        relation_loss((q, k, v), (q, k, v), 3)


def test_one_relation_by_hand() -> None:
    s, t = draw(1, 3, 4), draw(1, 3, 6, seed=1)
    a = (t[0] @ t[0].T / 6**0.5).softmax(-1)
    b = (s[0] @ s[0].T / 2.0).softmax(-1)
    wanted = (a * (a.log() - b.log())).sum(-1).mean()
    torch.testing.assert_close(relation_loss([s] * 3, [t] * 3), wanted)
