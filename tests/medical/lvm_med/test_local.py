from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from crossband.medical.lvm_med import local
from crossband.medical.lvm_med.local import (
    best_pairs,
    local_affinity,
    local_distance,
    location_grid,
    nearest_neighbours,
    regrid,
)
from crossband.shared.errors import ConfigError


def test_centres_of_cells_by_hand() -> None:
    grid = location_grid((10, 20, 40, 30, 100, 100), (2, 3))
    assert grid[..., 0].tolist() == [[20] * 3, [40] * 3]
    assert grid[..., 1].tolist() == [[25, 35, 45]] * 2


def test_mirrored_crops_have_mirrored_grids_unless_asked() -> None:
    box = (10.0, 20.0, 40.0, 30.0)
    plain, mirrored = location_grid(box, 3), location_grid(box, 3, True)
    assert torch.equal(mirrored, plain.flip(1))
    assert torch.equal(location_grid(box, 3, True, no_flip_grid=True), plain)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(3, 5), (14, 14), (1, 1)])
def test_grids_fit_other_maps_exactly(size: tuple[int, int], flip: bool) -> None:
    boxes = [(10, 20, 40, 30), (0, 3, 97, 55)]
    given = torch.stack([location_grid(box, (7, 4), flip) for box in boxes])
    wanted = torch.stack([location_grid(box, size, flip) for box in boxes])
    torch.testing.assert_close(regrid(given, size), wanted)


def test_a_grid_of_one_cell_fits_nothing_else() -> None:
    grid = torch.zeros(2, 1, 1, 2)
    assert regrid(grid, (1, 1)) is grid
    with pytest.raises(ConfigError, match="2 x 2"):
        regrid(grid, (3, 3))


def test_best_pairs_keep_the_order_of_rows() -> None:
    nearest, columns = torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor([5, 0, 5, 2])
    rows, found = best_pairs(nearest, columns, 3)
    assert rows.tolist() == [1, 2, 3]
    assert found.tolist() == [0, 5, 2]
    assert best_pairs(nearest, columns, 9)[0].tolist() == best_pairs(nearest, columns)[0].tolist()


def test_nearest_neighbours_by_hand() -> None:
    first, second = torch.randn(1, 3, 2), torch.randn(1, 2, 2)
    distance = torch.tensor([[[4.0, 1.0], [3.0, 2.0], [0.5, 9.0]]])
    a, b = nearest_neighbours(first, second, distance, 2)
    assert torch.equal(a, first[:, [0, 2]])
    assert torch.equal(b, second[:, [1, 0]])


def one_way(q: Tensor, r: Tensor, here: Tensor, there: Tensor, gamma: int) -> Tensor:
    """Return c_lo of two images as the paper words it."""
    total = torch.zeros(())
    for distance in (torch.cdist(here, there), torch.cdist(q, r)):
        pairs = sorted((distance[p].min(), p, int(distance[p].argmin())) for p in range(len(q)))
        kept = [F.cosine_similarity(q[p], r[m], dim=0) for _, p, m in pairs[:gamma]]
        total = total + torch.stack(kept).mean()
    return total / 2


def views(graphs: int = 2, nodes: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(places: int, width: int) -> Tensor:
        return torch.randn(graphs, nodes, places, width, generator=generator)

    return random(6, 4), random(5, 4), random(6, 2), random(5, 2)


@pytest.mark.parametrize("gamma", [(6, 5), (3, 2), (1, 4)])
def test_similarity_is_the_papers(gamma: tuple[int, int]) -> None:
    q, r, here, there = views()
    found = local_affinity(q, r, here, there, gamma)
    for g in range(2):
        for i in range(3):
            for a in range(3):
                pair = (q[g, i], r[g, a], here[g, i], there[g, a])
                back = (r[g, a], q[g, i], there[g, a], here[g, i])
                wanted = one_way(*pair, gamma[0]) + one_way(*back, gamma[1])
                torch.testing.assert_close(found[g, i, a], wanted)


def test_equal_maps_in_one_place_are_as_alike_as_can_be() -> None:
    q, _, here, _ = views()
    found = local_affinity(q, q, here, here, (4, 4))
    torch.testing.assert_close(found.diagonal(dim1=1, dim2=2), torch.full((2, 3), 2.0))
    assert found.max() <= 2 + 1e-6


def test_more_pairs_than_places_are_all_pairs() -> None:
    given = views()
    assert torch.equal(local_affinity(*given, (20, 20)), local_affinity(*given))


def test_parts_of_a_batch_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    given = views(graphs=5)
    whole = local_affinity(*given, (3, 3))
    monkeypatch.setattr(local, "_CHUNK", 1)
    torch.testing.assert_close(local_affinity(*given, (3, 3)), whole)


def test_gradients() -> None:
    q, r, here, there = (x.double() for x in views(1, 2))
    q.requires_grad_()
    r.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: local_affinity(a, b, here, there, (3, 3)), (q, r))


def test_maps_without_features_give_no_nan() -> None:
    zeros = torch.zeros(1, 2, 4, 3, requires_grad=True)
    places = torch.zeros(1, 2, 4, 2)
    found = local_affinity(zeros, zeros, places, places, (2, 2))
    found.sum().backward()
    assert torch.equal(found, torch.zeros(1, 2, 2))
    assert torch.equal(zeros.grad, torch.zeros_like(zeros))


def test_the_drafts_distance() -> None:
    q, r, here, there = views(1, 3)
    found = local_distance(q, r, here, there, 2)[0]
    for i in range(3):
        for a in range(3):
            total = 0.0
            for x, y in ((q, r), (here, there)):
                kept = [
                    nearest_neighbours(q[0, [n]], r[0, [n]], torch.cdist(x[0, [n]], y[0, [n]]), 2)
                    for n in (i, a)
                ]
                total += (kept[0][0] - kept[1][1]).norm()
            torch.testing.assert_close(found[i, a], total)
