from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import gradcheck

from crossband.shared.kernels.deformable_attention import deformable_attention

SHAPES = [(4, 3), (2, 2)]


def arrays(width: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return draw(2, 16, 2, width), 1.4 * draw(2, 5, 2, 2, 3, 2) - 0.2, draw(2, 5, 2, 2, 3)


def test_definition() -> None:
    value, locations, weights = arrays()
    expected = torch.zeros(2, 5, 2, 3, dtype=torch.float64)
    first = 0
    for level, (height, width) in enumerate(SHAPES):
        cells = value[:, first : first + height * width].unflatten(1, (height, width))
        first += height * width
        for b, q, m, p in torch.cartesian_prod(*map(torch.arange, (2, 5, 2, 3))).tolist():
            x, y = (locations[b, q, m, level, p] * torch.tensor([width, height]) - 0.5).tolist()
            for row in range(height):
                for column in range(width):
                    part = max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column))
                    expected[b, q, m] += (
                        weights[b, q, m, level, p] * part * cells[b, row, column, m]
                    )
    for shapes in (SHAPES, torch.tensor(SHAPES)):
        found = deformable_attention(value, shapes, locations, weights)
        torch.testing.assert_close(found, expected.flatten(2), rtol=1e-12, atol=1e-12)


def test_one_point_on_a_cell_reads_it() -> None:
    value = torch.arange(16.0).view(1, 16, 1, 1)
    locations = torch.tensor([2.5 / 3, 1.5 / 4]).expand(1, 1, 1, 2, 1, 2)
    weights = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2, 1)
    found = deformable_attention(value, SHAPES, locations, weights)
    torch.testing.assert_close(found.flatten(), torch.tensor([5.0]))  # row 1, column 2


def test_gradient() -> None:
    value, locations, weights = (t.requires_grad_() for t in arrays(2))
    assert gradcheck(
        lambda v, x, w: deformable_attention(v, SHAPES, x, w), (value, locations, weights)
    )
