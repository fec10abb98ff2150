from __future__ import annotations

import pytest
import torch

from crossband.shared.layers.gem import GeM


@pytest.mark.parametrize("p, wanted", [(1.0, 2.5), (3.0, 2.924018), (100.0, 3.944930)])
def test_closed_forms(p: float, wanted: float) -> None:
    x = torch.arange(1.0, 5.0).view(1, 4, 1)
    assert GeM(1, p)(x).item() == pytest.approx(wanted, abs=1e-5)


def test_every_group_has_its_exponent_and_learns_it() -> None:
    pool = GeM(2)
    with torch.no_grad():
        pool.p.copy_(torch.tensor([1.0, 50.0]))
    x = torch.rand(2, 7, 6)
    y = pool(x)
    torch.testing.assert_close(y[:, :3], x[..., :3].mean(1))
    assert ((y[:, 3:] - x[..., 3:].amax(1)).abs() < 0.1).all()
    y.sum().backward()
    assert (pool.p.grad != 0).all()
