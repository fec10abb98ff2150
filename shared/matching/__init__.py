"""Quadratic assignment (graph matching) solvers behind one interface, batched over graphs.

`solve` matches two graphs so that the sum of node costs and edge-pair costs is smallest;
`SolverPool` does the same in processes, also while other work goes on.
"""

from crossband.shared.matching.pool import SolverPool
from crossband.shared.matching.problem import Matching, Problem
from crossband.shared.matching.solving import SOLVERS, solve, solve_all, solve_problem

__all__ = [
    "SOLVERS",
    "Matching",
    "Problem",
    "SolverPool",
    "solve",
    "solve_all",
    "solve_problem",
]
