from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from crossband.shared.matching import Problem


def _neighbours(batch: int, nodes: int, k: int, generator: torch.Generator) -> Tensor:
    distance = torch.rand(batch, nodes, nodes, generator=generator)
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    near = distance.topk(min(k, nodes - 1), largest=False).indices
    start = torch.arange(nodes)[None, :, None].expand_as(near)
    return torch.stack([start.flatten(1), near.flatten(1)], -1)


@pytest.fixture
def random_problem() -> Callable[..., Problem]:
    """Makes problems with normal costs on k-nearest-neighbour graphs, in float64."""

    def make(
        batch: int, n: int, m: int, k: int = 2, *, seed: int = 0, allow_unmatched: bool = True
    ) -> Problem:
        generator = torch.Generator().manual_seed(seed)
        left, right = (_neighbours(batch, size, k, generator) for size in (n, m))
        shapes = ((batch, n, m), (batch, left.shape[1], right.shape[1]))
        unary, quadratic = (
            torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
        )
        return Problem(unary, left, right, quadratic, allow_unmatched)

    return make
