"""The loss of a matching and its gradient through the solver (LVM-Med, section 3.3).

A solver gives the matching vhat(c) of least cost c.v. Its derivative is zero almost everywhere, so
the gradient of the Hamming loss L is taken from two solutions (Vlastelica et al. 2020):

    dL/dc = -(vhat(c) - vhat(c + lambda dL/dv)) / lambda

With Gumbel noise in c, the same for both, this is IMLE (Niepert et al. 2021). The Hamming loss is
linear, dL/dv = 1 - 2 v*, so both problems are known beforehand and are solved in one call; edges
have dL/dv = 0 but get a gradient where their indicators differ. The scale of what comes back from
above (a mean over graphs, a loss scaled for float16) multiplies the gradient and never enters the
second problem, so lambda means the same for every batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossband.medical.lvm_med.affinities import full_precision
from crossband.shared.errors import ConfigError
from crossband.shared.matching import Problem, SolverPool, solve_problem


@dataclass(frozen=True)
class MatchingLoss:
    """What a batch of G matchings gave.

    Attributes:
        loss: Hamming loss of every graph (G,), with a gradient.
        x: The matchings (G, n, m).
        y: The edges that they match (G, E1, E2).
        energy: Their costs (G,).
        bound: Lower bounds of the costs (G,), where the solver gives them.
        perturbed: Solutions (x, y) of the second problems; None where no gradient is asked for.
    """

    loss: Tensor
    x: Tensor
    y: Tensor
    energy: Tensor
    bound: Tensor | None
    perturbed: tuple[Tensor, Tensor] | None


def hamming_loss(x: Tensor, target: Tensor) -> Tensor:
    """Return x.(1 - v*) + v*.(1 - x) of every graph, (G,): 2m for m misplaced nodes.

    Args:
        x: Matchings (G, n, m).
        target: v*, (G, n, m) or (n, m).
    """
    return (x * (1 - target) + target * (1 - x)).sum((-2, -1))


def matching_loss(
    unary: Tensor,
    quadratic: Tensor,
    left_edges: Tensor,
    right_edges: Tensor,
    *,
    lam: float = 80.0,
    target: Tensor | None = None,
    allow_unmatched: bool = False,
    solver: str = "auto",
    bound: bool = False,
    pool: SolverPool | None = None,
    options: Mapping[str, Any] | None = None,
) -> MatchingLoss:
    """Match graphs, and compare with what is right.

    A right matching gives loss 0 and gradient 0. A graph of one node is always right where nodes
    must be matched. Graphs without edges make assignment problems.

    Args:
        unary: Costs of node pairs (G, n, m), with the noise of IMLE if that is wanted.
        quadratic: Costs of edge pairs (G, E1, E2), likewise.
        left_edges: (G, E1, 2), int64.
        right_edges: (G, E2, 2), int64.
        lam: lambda, by how much the second problem differs.
        target: v*, (n, m); None: the identity.
        allow_unmatched: Nodes may stay unmatched at cost 0, as in the authors' draft; else every
            node is matched once, as in the paper.
        solver: Of `shared.matching.solve`.
        bound: Ask for lower bounds where the solver knows none.
        pool: Solves in processes, by its own solver and options, which take the place of the last
            three.
        options: Of the solver.

    Raises:
        ConfigError: lambda that is not positive, costs that are not finite, or an unknown solver.
    """
    if not lam > 0:
        raise ConfigError(f"lambda {lam:g} must be positive: the paper takes 80.")
    costs = full_precision(unary.detach()), full_precision(quadratic.detach())
    if target is None:
        target = torch.eye(*unary.shape[1:], device=unary.device)
    target = target.to(costs[0])
    wanted = torch.is_grad_enabled() and (unary.requires_grad or quadratic.requires_grad)
    count = len(unary)
    problem = (costs[0], left_edges, right_edges, costs[1])
    if wanted:
        harder = costs[0] + lam * (1 - 2 * target)
        problem = (
            torch.cat((costs[0], harder)),
            *(torch.cat((part, part)) for part in (left_edges, right_edges, costs[1])),
        )
    whole = Problem(*problem, allow_unmatched)
    if pool is None:
        found = solve_problem(whole, solver=solver, bound=bound, **(options or {}))
    else:
        found = pool.solve(whole)
    x, y = found.x.to(costs[0]), found.y.to(costs[1])
    loss = hamming_loss(x[:count], target)
    perturbed = None
    if wanted:
        perturbed = x[count:], y[count:]
        slopes = [-(a[:count] - a[count:]) / lam for a in (x, y)]
        loss = _Interpolated.apply(unary, quadratic, loss, *slopes)
    return MatchingLoss(
        loss,
        x[:count],
        y[:count],
        found.energy[:count],
        None if found.bound is None else found.bound[:count],
        perturbed,
    )


class _Interpolated(torch.autograd.Function):
    """The loss, with the slopes of the two costs as its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        unary: Tensor,
        quadratic: Tensor,
        loss: Tensor,
        unary_slope: Tensor,
        quadratic_slope: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(unary_slope, quadratic_slope)
        ctx.dtypes = unary.dtype, quadratic.dtype
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        slopes = (grad[:, None, None] * slope for slope in ctx.saved_tensors)
        return (*(s.to(dtype) for s, dtype in zip(slopes, ctx.dtypes, strict=True)), *[None] * 3)
