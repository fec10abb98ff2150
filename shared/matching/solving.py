"""One entry for all solvers: the choice by name or by size, for batches and for mixed sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from crossband.shared.errors import ConfigError, did_you_mean
from crossband.shared.matching.assignment import linear_assignment, lower_bound
from crossband.shared.matching.exact import count_matchings, solve_exact
from crossband.shared.matching.problem import Matching, Problem, to_matching
from crossband.shared.matching.pylibmgm_solver import solve_pylibmgm
from crossband.shared.matching.search import solve_search

# All matchings of a batch together; more are left to the search.
_MOST_ENUMERATED = 500_000


def solve(
    unary: Tensor,
    left_edges: Tensor,
    right_edges: Tensor,
    quadratic: Tensor,
    *,
    solver: str = "auto",
    allow_unmatched: bool = True,
    bound: bool = False,
    **options: Any,
) -> Matching:
    """Match a batch of graph pairs at the lowest cost found; no gradient flows.

    Args:
        unary: node costs (B, n, m).
        left_edges: directed edges (i, k) (B, E1, 2).
        right_edges: directed edges (j, l) (B, E2, 2).
        quadratic: edge-pair costs (B, E1, E2).
        solver: "auto": proven optimum where it is cheap (no pair costs, few matchings), else
            "search". "exact": proven optimum, small graphs only. "search": annealing and local
            search, on any device. "pylibmgm": the package's fusion moves. "lap": the best
            matching by node costs alone (first order).
        allow_unmatched: nodes may stay unmatched at cost 0.
        bound: also compute a lower bound (a linear assignment on the CPU) where none is known.
        options: of the solver: `chains`, `sweeps`, `seconds`, `seed` of the search, `time_limit`
            of the exact one.

    Raises:
        ConfigError: costs, edges or options that cannot work.
    """
    problem = Problem(unary, left_edges, right_edges, quadratic, allow_unmatched)
    return solve_problem(problem, solver=solver, bound=bound, **options)


@torch.no_grad()
def solve_problem(
    problem: Problem, *, solver: str = "auto", bound: bool = False, **options: Any
) -> Matching:
    """Solve a checked problem; see `solve`."""
    if solver not in SOLVERS:
        known = did_you_mean(solver, SOLVERS) or f" There are: {', '.join(SOLVERS)}."
        raise ConfigError(f"no graph matching solver is called {solver!r}.{known}")
    try:
        matching = SOLVERS[solver](problem, **options)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise ConfigError(
            f"solver {solver!r} does not take one of the options {', '.join(sorted(options))}: "
            "leave it out or choose the solver that has it."
        ) from error
    if bound and matching.bound is None:
        # Rounding must not turn an optimum into a violation of its bound.
        matching = replace(matching, bound=lower_bound(problem).minimum(matching.energy))
    return matching


def solve_all(problems: Sequence[Problem], **options: Any) -> list[Matching]:
    """Solve problems of any sizes; those of one shape are solved together. See `solve`."""
    groups: dict[tuple, list[int]] = {}
    for index, problem in enumerate(problems):
        shapes = (problem.unary.shape[1:], problem.quadratic.shape[1:], problem.unary.dtype)
        groups.setdefault((*shapes, problem.allow_unmatched), []).append(index)
    solved: dict[int, Matching] = {}
    for members in groups.values():
        matching = solve_problem(_join([problems[i] for i in members]), **options)
        start = 0
        for index in members:
            part = slice(start, start + len(problems[index]))
            start = part.stop
            fields = (matching.x, matching.y, matching.energy, matching.bound)
            solved[index] = Matching(*(f if f is None else f[part] for f in fields))
    return [solved[index] for index in range(len(problems))]


def join_matchings(parts: Sequence[Matching]) -> Matching:
    """Return the matchings of several batches as one."""
    bounds = [part.bound for part in parts]
    known = [bound for bound in bounds if bound is not None]
    return Matching(
        torch.cat([part.x for part in parts]),
        torch.cat([part.y for part in parts]),
        torch.cat([part.energy for part in parts]),
        torch.cat(known) if len(known) == len(bounds) else None,
    )


def _join(problems: Sequence[Problem]) -> Problem:
    names = ("unary", "left_edges", "right_edges", "quadratic")
    stacked = (torch.cat([getattr(problem, name) for problem in problems]) for name in names)
    return Problem(*stacked, problems[0].allow_unmatched)


def _auto(problem: Problem, **options: Any) -> Matching:
    few = count_matchings(problem) * len(problem) <= _MOST_ENUMERATED
    if problem.is_linear or (few and count_matchings(problem) <= 20_000):
        return solve_exact(problem)
    return solve_search(problem, **options)


def _first_order(problem: Problem) -> Matching:
    partners = linear_assignment(problem.unary, allow_unmatched=problem.allow_unmatched)
    matching = to_matching(problem, partners)
    return replace(matching, bound=matching.energy.clone()) if problem.is_linear else matching


SOLVERS: dict[str, Callable[..., Matching]] = {
    "auto": _auto,
    "exact": solve_exact,
    "search": solve_search,
    "pylibmgm": solve_pylibmgm,
    "lap": _first_order,
}
