from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from crossband.medical.lvm_med.graphs import edge_features, knn_edges
from crossband.medical.lvm_med.local import local_affinity, location_grid
from crossband.medical.lvm_med.objective import GraphMatchingObjective, ObjectiveOutput
from crossband.shared.errors import ConfigError

VARIANTS = {
    "paper": {},
    "draft": {"variant": "draft", "gradient": "blackbox", "projector": "16-16"},
    "first order": {"order": 1},
    "nodes alone": {"local": False, "message_passing": False},
}


def objective(dim: int = 6, **arguments: Any) -> GraphMatchingObjective:
    torch.manual_seed(0)
    return GraphMatchingObjective(dim, **{"graph_size": 4, "k": 2, "gamma": (3, 2), **arguments})


def maps(count: int, seed: int = 0, side: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, side, side, generator=generator)


def grids(count: int) -> Tensor:
    return torch.stack([location_grid((i, 2 * i, 30, 40), 3) for i in range(count)])


def run(module: GraphMatchingObjective, *views: Tensor, seed: int = 0) -> ObjectiveOutput:
    described = [module.describe(x.mean((2, 3)), x, grids(len(x))) for x in views]
    return module([(described[0], described[1])], torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_learns(name: str) -> None:
    module = objective(**VARIANTS[name])
    first, second = (maps(8, seed).requires_grad_() for seed in (0, 1))
    found = run(module, first, second)
    found.loss.backward()
    assert 0 < found.loss <= 8
    assert first.grad.any()
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_equal_views_match_and_teach_nothing() -> None:
    module = objective(gradient="blackbox")
    x = maps(8).requires_grad_()
    found = run(module, x, x)
    found.loss.backward()
    assert found.loss == 0
    assert found.statistics["matched"] == 1
    assert not x.grad.any()


def test_costs_are_the_papers() -> None:
    module = objective(gradient="blackbox", alpha=0.6)
    first, second = (module.describe(x.mean((2, 3)), x, grids(4)) for x in (maps(4, 0), maps(4, 1)))
    (costs,) = module.costs(first, second)
    z = [view.z[None] for view in (first, second)]
    edges = [knn_edges(x, 2) for x in z]
    h = [module.message_passing(x, e) for x, e in zip(z, edges, strict=True)]
    places = (first.maps, second.maps, first.locations, second.locations)
    local = local_affinity(*(x[None] for x in places), (3, 3))[0]
    for i in range(4):
        for a in range(4):
            wanted = torch.cosine_similarity(h[0][0, i], h[1][0, a], 0)
            wanted = 0.6 * wanted + 0.4 * local[i, a]
            torch.testing.assert_close(costs.unary[0, i, a], -wanted)
    e = [edge_features(x, pairs)[0] for x, pairs in zip(h, edges, strict=True)]
    wanted = torch.cosine_similarity(e[0][3], e[1][5], 0)
    torch.testing.assert_close(costs.quadratic[0, 3, 5], -wanted)


def test_costs_are_the_drafts() -> None:
    given = {"variant": "draft", "gradient": "blackbox", "local": False, "projector": "16"}
    module = objective(**given, margin=3.0, edge_scale=0.25).eval()
    first, second = (module.describe(x.mean((2, 3)), x, None) for x in (maps(4, 0), maps(4, 1)))
    (costs,) = module.costs(first, second)
    z = [view.z[None] for view in (first, second)]
    edges = [knn_edges(x, 2) for x in z]
    h = [module.message_passing(x, e) for x, e in zip(z, edges, strict=True)]
    affinity = torch.nn.functional.softplus(h[0][0] @ h[1][0].T) - 0.5
    torch.testing.assert_close(costs.unary[0], 3 * torch.eye(4) - affinity)
    e = [edge_features(x, pairs)[0] for x, pairs in zip(h, edges, strict=True)]
    affinity = torch.nn.functional.softplus(e[0] @ e[1].T) - 0.5
    torch.testing.assert_close(costs.quadratic[0], -0.25 * affinity)


def test_noise_is_that_of_the_generator() -> None:
    module = objective()
    losses = [run(module, maps(8), maps(8, 1), seed=seed).loss.item() for seed in range(4)]
    again = [run(module, maps(8), maps(8, 1), seed=seed).loss.item() for seed in range(4)]
    assert losses == again
    assert len(set(losses)) > 1


def test_the_order_of_the_images_in_a_graph_does_not_matter() -> None:
    module = objective(gradient="blackbox")
    order = torch.randperm(4, generator=torch.Generator().manual_seed(1))
    first, second = maps(4, 0), maps(4, 0) + 0.7 * maps(4, 1)
    views = [
        [module.describe(x.mean((2, 3)), x, grids(4)[:1].expand(4, -1, -1, -1)) for x in pair]
        for pair in ((first, second), (first[order], second[order]))
    ]
    losses = [module([(a, b)]) for a, b in views]
    torch.testing.assert_close(losses[0].loss, losses[1].loss)
    energies = [found.statistics["energy"] for found in losses]
    torch.testing.assert_close(energies[0], energies[1])


def test_pairs_of_views_are_averaged() -> None:
    module = objective(gradient="blackbox")
    views = [module.describe(x.mean((2, 3)), x, grids(8)) for x in map(maps, (8,) * 3, range(3))]
    one, other = module([(views[0], views[1])]), module([(views[0], views[2])])
    both = module([(views[0], views[1]), (views[0], views[2])])
    torch.testing.assert_close(both.loss, (one.loss + other.loss) / 2)


def test_small_crops_have_their_own_gamma() -> None:
    module = objective()
    x = maps(4)
    views = [module.describe(x.mean((2, 3)), x, grids(4), small=small) for small in (False, True)]
    assert [view.gamma for view in views] == [3, 2]


def test_large_maps_are_pooled_with_their_grids() -> None:
    module = objective(map_size=3)
    x = maps(2, side=6)
    view = module.describe(x.mean((2, 3)), x, grids(2))
    wanted = torch.nn.functional.avg_pool2d(x, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(view.maps, wanted)
    torch.testing.assert_close(view.locations, grids(2).flatten(1, 2))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_batches_that_are_no_multiple_of_a_graph(name: str, count: int) -> None:
    module = objective(k=9, **VARIANTS[name])
    x = maps(count).requires_grad_()
    found = run(module, x, maps(count, 1))
    found.loss.backward()
    assert found.loss.isfinite()
    assert x.grad.isfinite().all()


def test_a_single_image_is_always_right() -> None:
    x = maps(1).requires_grad_()
    found = run(objective(), x, maps(1, 1))
    found.loss.backward()
    assert found.loss == 0
    assert not x.grad.any()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_identical_images_give_no_nan(name: str, value: float) -> None:
    module = objective(lam=2.0, **VARIANTS[name])
    x = torch.full((8, 6, 3, 3), value, requires_grad=True)
    found = run(module, x, x)
    found.loss.backward()
    assert found.loss.isfinite()
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() < 1e3
    assert all(value.isfinite() for value in found.statistics.values())


def test_bfloat16_is_matched_in_float32() -> None:
    module = objective(gradient="blackbox", lam=2.0)
    views = [maps(8, seed).requires_grad_() for seed in (0, 1)]
    with torch.autocast("cpu", torch.bfloat16):
        described = [module.describe(x.mean((2, 3)), x, grids(8)) for x in views]
        assert described[0].z.dtype == torch.bfloat16
        (pair,) = module([(described[0], described[1])]).loss[None]
        (costs,) = module.costs(*described)
    assert pair.dtype == torch.float32
    pair.backward()
    assert views[0].grad.isfinite().all()
    assert costs.unary.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"variant": "theirs"}, "paper or draft"),
        ({"gradient": "exact"}, "imle or blackbox"),
        ({"order": 3}, "1 or 2"),
        ({"alpha": 1.5}, "alpha"),
        ({"gamma": (3,)}, "gamma"),
        ({"gamma": (0, 1)}, "gamma"),
        ({"graph_size": 0}, "graph_size"),
        ({"k": 0}, "k 0"),
        ({"lam": -1.0}, "lambda"),
        ({"projector": "128-x"}, "projector"),
        ({"projector": "0"}, "projector"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        objective(**arguments)


def test_maps_need_grids_unless_they_do_not_count() -> None:
    x = maps(4)
    with pytest.raises(ConfigError, match="grids"):
        objective().describe(x.mean((2, 3)), x, None)
    for arguments in ({"local": False}, {"alpha": 1.0}):
        assert objective(**arguments).describe(x.mean((2, 3)), x, None).maps is None


def test_statistics_of_one_image_do_not_exist() -> None:
    module = objective(projector="8-8")
    with pytest.raises(ConfigError, match="BatchNorm"):
        module.describe(maps(1).mean((2, 3)), maps(1), grids(1))
    assert module.eval().describe(maps(1).mean((2, 3)), maps(1), grids(1)).z.shape == (1, 8)
