"""Proven optima: enumeration of all matchings for the smallest problems, else a MILP."""

from __future__ import annotations

from functools import lru_cache
from math import comb, factorial

import numpy as np
import torch
from torch import Tensor

from crossband.shared.errors import ConfigError
from crossband.shared.matching.assignment import linear_assignment
from crossband.shared.matching.problem import Matching, Problem, cost_tables, to_matching

_MOST_ENUMERATED = 20_000


def count_matchings(problem: Problem) -> int:
    """Return how many matchings one problem of the batch has."""
    n, m = problem.left, problem.right
    smaller = min(n, m)
    sizes = range(smaller + 1) if problem.allow_unmatched else (smaller,)
    return sum(comb(n, k) * comb(m, k) * factorial(k) for k in sizes)


def solve_exact(problem: Problem, *, time_limit: float = 600.0) -> Matching:
    """Return the optimum, with the energy as its bound.

    `time_limit` (seconds for one problem) holds for those too large for enumeration: about 0.3 s
    at 10 nodes and 5 neighbours, out of reach beyond 14.

    Raises:
        ConfigError: the optimum was not proven within `time_limit`.
    """
    if problem.is_linear:  # or an empty batch
        partners = linear_assignment(problem.unary, allow_unmatched=problem.allow_unmatched)
    elif count_matchings(problem) <= _MOST_ENUMERATED:
        partners = _enumerate(problem)
    else:
        tables = zip(*(t.double().cpu().numpy() for t in cost_tables(problem)), strict=True)
        found = [_milp(problem, *table, time_limit) for table in tables]
        partners = torch.tensor(found, device=problem.unary.device)
    matching = to_matching(problem, partners)
    return Matching(matching.x, matching.y, matching.energy, matching.energy.clone())


def _enumerate(problem: Problem) -> Tensor:
    """Return the best of all matchings (B, n)."""
    n, m = problem.left, problem.right
    every = _all_partners(n, m, problem.allow_unmatched).to(problem.unary.device)
    rows = torch.arange(n, device=every.device) * (m + 1)
    size = (n + 1) * (m + 1)
    chosen = torch.zeros(len(every), size, dtype=torch.float64, device=every.device)
    chosen.scatter_(1, every + rows, 1)
    best = []
    for nodes, pairs in zip(*cost_tables(problem), strict=True):
        fields = torch.addmm(nodes.double(), chosen, pairs.double(), alpha=0.5)
        best.append((fields * chosen).sum(1).argmin())
    return every[torch.stack(best)]


@lru_cache(maxsize=8)
def _all_partners(n: int, m: int, allow_unmatched: bool) -> Tensor:
    """Return every matching (K, n) as the partners of the left nodes, m for none."""
    nulls = n if allow_unmatched else max(n - m, 0)
    partial: list[tuple[int, ...]] = [()]
    for _ in range(n):
        partial = [
            (*head, j)
            for head in partial
            for j in range(m + 1)
            if (head.count(m) < nulls if j == m else j not in head)
        ]
    return torch.tensor(partial)


def _milp(problem: Problem, nodes: np.ndarray, pairs: np.ndarray, time_limit: float) -> list[int]:
    """Return the best partners of one problem, by the local polytope of its edge pairs."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    n, m = problem.left, problem.right
    size = n * m
    table = pairs.reshape(n + 1, m + 1, n + 1, m + 1)[:n, :m, :n, :m].reshape(size, size)
    first, second = np.nonzero(np.triu(table))
    rows = _Rows(size + len(first))
    for i in range(n):
        low = 0 if problem.allow_unmatched or n > m else 1
        rows.add({i * m + j: 1.0 for j in range(m)}, low, 1)
    for j in range(m):
        low = 0 if problem.allow_unmatched or m > n else 1
        rows.add({i * m + j: 1.0 for i in range(n)}, low, 1)
    _couple(rows, first, second, size, m)
    costs = np.concatenate((nodes.reshape(n + 1, m + 1)[:n, :m].ravel(), table[first, second]))
    kinds = np.concatenate((np.ones(size), np.zeros(len(first))))
    result = milp(
        costs,
        integrality=kinds,
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(*rows.build()),
        options={"time_limit": time_limit, "mip_rel_gap": 0.0},
    )
    if result.status != 0:
        raise ConfigError(
            f"no proven optimum for {n} x {m} nodes in {time_limit:g} s: raise time_limit or take "
            "solver='search'."
        )
    matched = result.x[:size].reshape(n, m) > 0.5
    return np.where(matched.any(1), matched.argmax(1), m).tolist()


def _couple(rows: _Rows, first: np.ndarray, second: np.ndarray, size: int, m: int) -> None:
    """Tie every pair variable to its two assignments, grouped by the neighbour's node.

    For assignment u and the pairs whose other end is at one node w: sum of pairs <= x_u, and
    x_u - sum of pairs <= 1 - sum of x over those other ends (if u holds and w takes one of them,
    a pair must be paid). The same by w's right node.
    """
    groups: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for pair, (a, b) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        for one, other in ((a, b), (b, a)):
            groups.setdefault((one, 0, other // m), []).append((pair, other))
            groups.setdefault((one, 1, other % m), []).append((pair, other))
    for (one, _, _), members in groups.items():
        total = {size + pair: 1.0 for pair, _ in members}
        rows.add({**total, one: -1.0}, -np.inf, 0)
        others = {other: 1.0 for _, other in members}
        rows.add({**{v: -w for v, w in total.items()}, **others, one: 1.0}, -np.inf, 1)


class _Rows:
    """Rows of a sparse linear constraint."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.entries: list[tuple[int, int, float]] = []
        self.limits: list[tuple[float, float]] = []

    def add(self, row: dict[int, float], low: float, high: float) -> None:
        """Append low <= row . x <= high."""
        number = len(self.limits)
        self.entries += [(number, column, value) for column, value in row.items()]
        self.limits.append((low, high))

    def build(self) -> tuple:
        """Return matrix, lower and upper limits."""
        from scipy.sparse import csr_array

        row, column, value = zip(*self.entries, strict=True)
        shape = (len(self.limits), self.columns)
        low, high = zip(*self.limits, strict=True)
        return csr_array((value, (row, column)), shape=shape), np.array(low), np.array(high)
