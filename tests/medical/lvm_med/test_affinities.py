from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from crossband.medical.lvm_med.affinities import (
    cosine_affinity,
    gumbel_like,
    softplus_affinity,
    unit,
    vertex_affinity,
)


def test_cosine_is_the_cosine() -> None:
    a, b = torch.randn(2, 4, 8), torch.randn(2, 3, 8)
    wanted = F.cosine_similarity(a[:, :, None], b[:, None], dim=-1)
    torch.testing.assert_close(cosine_affinity(a, b), wanted)


def test_vectors_without_length_have_no_direction() -> None:
    x = torch.zeros(1, 2, 4, requires_grad=True)
    affinity = cosine_affinity(x, torch.randn(1, 3, 4))
    affinity.sum().backward()
    assert torch.equal(affinity, torch.zeros(1, 2, 3))
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_gradients() -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit, x)
    assert torch.autograd.gradcheck(softplus_affinity, (x, x.detach().clone().requires_grad_()))


def test_softplus_affinity_by_hand() -> None:
    a, b = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, -1.0], [0.0, 0.0]]])
    wanted = [math.log1p(math.e) - 0.5, math.log(2) - 0.5]
    torch.testing.assert_close(softplus_affinity(a, b)[0, 0], torch.tensor(wanted))


def test_weights_of_global_and_local_similarity() -> None:
    similarity, local = torch.tensor([[[0.5]]]), torch.tensor([[[2.0]]])
    assert vertex_affinity(similarity, local, 0.8).item() == torch.tensor(0.8).item()
    assert vertex_affinity(similarity, None, 0.8) is similarity


def test_noise_is_gumbel() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = gumbel_like(torch.empty(200_000), generator).double()
    assert abs(noise.mean().item() - 0.577216) < 0.01
    assert abs(noise.var().item() - math.pi**2 / 6) < 0.03
    # P(noise <= 1) = exp(-exp(-1))
    assert abs((noise <= 1).double().mean().item() - math.exp(-math.exp(-1))) < 0.005
    assert noise.isfinite().all()


def test_noise_follows_the_generator() -> None:
    draws = [gumbel_like(torch.empty(7), torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
