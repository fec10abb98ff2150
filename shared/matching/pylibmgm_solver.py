"""Fusion moves of the package pylibmgm (C++; Hutschenreiter et al. 2021), if it is installed."""

from __future__ import annotations

import numpy as np
import torch

from crossband.shared.errors import ConfigError
from crossband.shared.matching.problem import (
    Matching,
    Problem,
    complete,
    cost_tables,
    to_matching,
)


def solve_pylibmgm(problem: Problem) -> Matching:
    """Solve one problem after the other with pylibmgm's default solver.

    Raises:
        ConfigError: pylibmgm is not installed. It is under the GPL-3.0, so no extra brings it.
    """
    try:
        import pylibmgm
    except ImportError as error:
        raise ConfigError(
            "solver 'pylibmgm' needs the package pylibmgm (GPL-3.0), which is not installed: run "
            "`pip install pylibmgm`, or take solver='search'."
        ) from error
    pylibmgm._LOGGER.disabled = True  # it prints a line for every problem
    tables = (table.double().cpu().numpy() for table in cost_tables(problem))
    found = [_solve_one(problem, nodes, pairs) for nodes, pairs in zip(*tables, strict=True)]
    partners = torch.tensor(found).view(len(found), problem.left)
    if not problem.allow_unmatched:
        partners = complete(partners, problem.right)
    return to_matching(problem, partners.to(problem.unary.device))


def _solve_one(problem: Problem, nodes: np.ndarray, pairs: np.ndarray) -> list[int]:
    from pylibmgm import GmModel, Graph, solver

    n, m = problem.left, problem.right
    costs = nodes.reshape(n + 1, m + 1)[:n, :m]
    if not problem.allow_unmatched:  # so much below 0 that no node is left out for its cost
        costs = costs - (np.abs(costs).max() + np.abs(pairs).sum(1).max() + 1)
    # The table holds the sum of both directions, and the model takes a pair of assignments once.
    first, second = np.nonzero(np.triu(pairs))
    model = GmModel(Graph(0, n), Graph(1, m), n * m, len(first))
    for i, row in enumerate(costs.tolist()):
        for j, cost in enumerate(row):
            model.add_assignment(i, j, cost)
    ends = (*np.divmod(first, m + 1), *np.divmod(second, m + 1))
    values = pairs[first, second].tolist()
    for i, j, k, l, cost in zip(*(end.tolist() for end in ends), values, strict=True):  # noqa: E741
        model.add_edge(i, j, k, l, cost)
    labels = solver.solve_gm(model).to_list_with_none()
    return [m if label is None else int(label) for label in labels]
