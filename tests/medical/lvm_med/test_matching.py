from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from crossband.medical.lvm_med.graphs import knn_edges
from crossband.medical.lvm_med.matching import hamming_loss, matching_loss
from crossband.shared.errors import ConfigError
from crossband.shared.matching import Matching, Problem, solve_problem


def problem(n: int = 5, graphs: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    edges = [knn_edges(torch.randn(graphs, n, 3, generator=generator), 2) for _ in range(2)]
    count = edges[0].shape[1]
    unary = torch.randn(graphs, n, n, generator=generator)
    quadratic = torch.randn(graphs, count, count, generator=generator)
    return unary, quadratic, *edges


def cost(x: Tensor, unary: Tensor, quadratic: Tensor, left: Tensor, right: Tensor) -> Tensor:
    y = x[left[:, 0]][:, right[:, 0]] * x[left[:, 1]][:, right[:, 1]]
    return (x * unary).sum() + (y * quadratic).sum()


def best(*given: Tensor) -> Tensor:
    matchings = [torch.eye(len(given[0]))[list(p)] for p in permutations(range(len(given[0])))]
    return min(matchings, key=lambda x: cost(x, *given).item())


@pytest.mark.parametrize("misplaced", [0, 2, 3, 5])
def test_m_misplaced_nodes_lose_2m(misplaced: int) -> None:
    order = torch.arange(6)
    order[:misplaced] = order[:misplaced].roll(1)
    assert hamming_loss(torch.eye(6)[order][None], torch.eye(6)).item() == 2 * misplaced


def test_an_unmatched_node_loses_1() -> None:
    x = torch.eye(4)
    x[2, 2] = 0
    assert hamming_loss(x[None], torch.eye(4)).tolist() == [1.0]


def test_solutions_and_gradients_are_those_of_enumeration() -> None:
    unary, quadratic, left, right = problem()
    unary.requires_grad_()
    quadratic.requires_grad_()
    found = matching_loss(unary, quadratic, left, right, lam=0.7, solver="exact")
    found.loss.sum().backward()
    for g in range(3):
        given = (unary[g].detach(), quadratic[g].detach(), left[g], right[g])
        x = best(*given)
        harder = best(given[0] + 0.7 * (1 - 2 * torch.eye(5)), *given[1:])
        torch.testing.assert_close(found.x[g], x)
        torch.testing.assert_close(found.perturbed[0][g], harder)
        torch.testing.assert_close(unary.grad[g], -(x - harder) / 0.7)
        y, z = (
            m[left[g, :, 0]][:, right[g, :, 0]] * m[left[g, :, 1]][:, right[g, :, 1]]
            for m in (x, harder)
        )
        torch.testing.assert_close(found.y[g], y)
        torch.testing.assert_close(quadratic.grad[g], -(y - z) / 0.7)
        torch.testing.assert_close(found.energy[g].float(), cost(x, *given))


def test_a_right_matching_has_no_loss_and_no_gradient() -> None:
    unary, quadratic, left, right = problem()
    unary = (unary - 100 * torch.eye(5)).requires_grad_()
    quadratic.requires_grad_()
    found = matching_loss(unary, quadratic, left, right, solver="exact")
    found.loss.mean().backward()
    assert torch.equal(found.loss, torch.zeros(3))
    assert not unary.grad.any()
    assert not quadratic.grad.any()


def test_descent_makes_wrong_pairs_dearer() -> None:
    unary = torch.zeros(1, 3, 3)
    unary[0, [0, 1, 2], [1, 0, 2]] = -1
    unary.requires_grad_()
    none = torch.zeros(1, 0, 2, dtype=torch.long)
    found = matching_loss(unary, torch.zeros(1, 0, 0), none, none, solver="lap")
    found.loss.sum().backward()
    assert found.loss.tolist() == [4.0]
    assert unary.grad[0, 0, 1] < 0 < unary.grad[0, 0, 0]
    assert unary.grad[0, 2].tolist() == [0, 0, 0]


def test_the_gradients_scale_never_enters_the_second_problem() -> None:
    given = problem()
    slopes = []
    for scale in (1.0, 65536.0):
        unary = given[0].clone().requires_grad_()
        (scale * matching_loss(unary, *given[1:], lam=2, solver="exact").loss.mean()).backward()
        slopes.append(unary.grad / scale)
    assert slopes[0].any()
    torch.testing.assert_close(slopes[0], slopes[1])


def test_relabelling_nodes_permutes_the_solution() -> None:
    unary, quadratic, left, right = problem()
    order = torch.randperm(5, generator=torch.Generator().manual_seed(1))
    back = order.argsort()
    plain = matching_loss(unary, quadratic, left, right, solver="exact")
    moved = matching_loss(unary[:, order], quadratic, back[left], right, solver="exact")
    torch.testing.assert_close(moved.x, plain.x[:, order])
    torch.testing.assert_close(moved.y, plain.y)
    torch.testing.assert_close(moved.energy, plain.energy)
    both = matching_loss(
        unary[:, order][..., order], quadratic, back[left], back[right], solver="exact"
    )
    torch.testing.assert_close(both.loss, plain.loss)


def test_another_target() -> None:
    unary, quadratic, left, right = problem()
    target = torch.eye(5).roll(1, 0)
    found = matching_loss(unary - 100 * target, quadratic, left, right, target=target)
    assert torch.equal(found.loss, torch.zeros(3))


def test_without_a_gradient_one_problem_is_solved() -> None:
    unary, quadratic, left, right = problem()
    assert matching_loss(unary, quadratic, left, right, solver="exact").perturbed is None
    with torch.no_grad():
        found = matching_loss(unary.requires_grad_(), quadratic, left, right, solver="exact")
    assert found.perturbed is None
    assert not found.loss.requires_grad


def test_half_precision_is_matched_in_float32() -> None:
    unary, quadratic, left, right = problem()
    half = unary.bfloat16().requires_grad_()
    found = matching_loss(half, quadratic.bfloat16(), left, right, lam=2, solver="exact")
    found.loss.sum().backward()
    assert found.x.dtype == found.loss.dtype == torch.float32
    assert half.grad.dtype == torch.bfloat16
    rounded = (unary.bfloat16().float(), quadratic.bfloat16().float())
    same = matching_loss(*rounded, left, right, lam=2, solver="exact")
    assert torch.equal(found.x, same.x)


def test_a_single_node_is_right() -> None:
    none = torch.zeros(2, 0, 2, dtype=torch.long)
    unary = torch.tensor([[[5.0]], [[-5.0]]], requires_grad=True)
    found = matching_loss(unary, torch.zeros(2, 0, 0), none, none)
    found.loss.sum().backward()
    assert found.loss.tolist() == [0, 0]
    assert not unary.grad.any()
    free = matching_loss(unary.detach(), torch.zeros(2, 0, 0), none, none, allow_unmatched=True)
    assert free.loss.tolist() == [1, 0]


def test_costs_that_are_all_equal_give_a_matching() -> None:
    unary, quadratic, left, right = problem()
    found = matching_loss(unary * 0, quadratic * 0, left, right)
    assert torch.equal(found.x.sum(1), torch.ones(3, 5))
    assert found.loss.isfinite().all()


def test_what_cannot_be_is_refused() -> None:
    unary, quadratic, left, right = problem()
    with pytest.raises(ConfigError, match="lambda"):
        matching_loss(unary, quadratic, left, right, lam=0)
    unary[0, 0, 0] = torch.nan
    with pytest.raises(ConfigError, match="finite"):
        matching_loss(unary, quadratic, left, right)


def test_a_pool_takes_the_solvers_place() -> None:
    class Pool:
        """Keeps what it is given."""

        given: Problem

        def solve(self, problem: Problem) -> Matching:
            self.given = problem
            return solve_problem(problem, solver="exact")

    unary, quadratic, left, right = problem()
    pool = Pool()
    found = matching_loss(
        unary.requires_grad_(), quadratic, left, right, solver="none", pool=pool, lam=3
    )
    plain = matching_loss(unary, quadratic, left, right, solver="exact", lam=3)
    assert torch.equal(found.x, plain.x)
    shift = 3 * (1 - 2 * torch.eye(5)).expand(3, 5, 5)
    torch.testing.assert_close(pool.given.unary[3:] - unary, shift)
    assert not pool.given.allow_unmatched


def test_bounds_are_below_the_energies() -> None:
    found = matching_loss(*problem(), solver="search", bound=True)
    assert (found.bound <= found.energy + 1e-5).all()
    assert matching_loss(*problem(), solver="search").bound is None
