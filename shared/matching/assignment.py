"""Linear assignment, and the lower bound that it gives for quadratic assignment."""

from __future__ import annotations

import torch
from torch import Tensor

from crossband.shared.matching.problem import Problem, cost_tables


def linear_assignment(costs: Tensor, *, allow_unmatched: bool = True) -> Tensor:
    """Return the cheapest partner of every left node (B, n), m for none, for costs (B, n, m)."""
    from scipy.optimize import linear_sum_assignment

    batch, n, m = costs.shape
    partners = torch.full((batch, n), m)
    for result, cost in zip(partners, costs.double().cpu().numpy(), strict=True):
        # A pair that costs more than leaving both alone is taken at 0, and dropped.
        usable = cost.clip(max=0) if allow_unmatched else cost
        rows, columns = (torch.from_numpy(index) for index in linear_sum_assignment(usable))
        result[rows] = columns
        if allow_unmatched:
            kept = torch.from_numpy(cost)[rows, columns] < 0
            result[rows[~kept]] = m
    return partners.to(costs.device)


def lower_bound(problem: Problem) -> Tensor:
    """Return a lower bound of the objective (B,), float64 (after Gilmore 1962 and Lawler 1963).

    Every assignment is charged half of the cheapest that its edge pairs can cost, counted by left
    or by right neighbours, whichever is dearer; the linear assignment of the sums is the bound.
    """
    nodes, pairs = cost_tables(problem)
    n, m = problem.left, problem.right
    # (B, N, M, N, M); the 0 of "no partner" is among the choices.
    pairs = pairs.double().view(len(problem), n + 1, m + 1, n + 1, m + 1)
    cheapest = torch.maximum(pairs.amin(4).sum(3), pairs.amin(3).sum(3))[:, :n, :m]
    costs = problem.unary.double() + cheapest / 2
    partners = linear_assignment(costs, allow_unmatched=problem.allow_unmatched)
    padded = torch.nn.functional.pad(costs, (0, 1))
    return padded.gather(2, partners[..., None]).sum((1, 2))
