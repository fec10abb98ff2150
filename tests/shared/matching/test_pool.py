from __future__ import annotations

import pytest
import torch

from crossband.shared.errors import ConfigError
from crossband.shared.matching import SolverPool, solve_problem


def test_processes_give_the_same_optimum_and_close(random_problem):
    problem = random_problem(5, 5, 5, 2)
    alone = solve_problem(problem, solver="exact")
    with SolverPool(2, solver="exact") as pool:
        pending = pool.submit(problem)
        second = pool.submit(problem[:1])  # while the first is being solved
        matching = pending.result(timeout=120)
        assert pending.done()
        assert torch.equal(matching.x, alone.x) and torch.equal(matching.y, alone.y)
        torch.testing.assert_close(matching.energy, alone.energy)
        torch.testing.assert_close(matching.bound, alone.bound)
        torch.testing.assert_close(second.result(timeout=120).energy, alone.energy[:1])
        none = pool.solve(problem[:0])
        assert none.x.shape == (0, 5, 5) and none.energy.shape == (0,)
        processes = list(pool._pool._processes.values())
    assert len(processes) == 2 and not any(process.is_alive() for process in processes)


def test_what_a_process_refuses_is_told_here(random_problem):
    with SolverPool(1, solver="search", chains=2) as pool:
        with pytest.raises(ConfigError, match="chains=0.* is no budget"):
            pool.solve(random_problem(1, 7, 7), chains=0)


def test_a_bad_pool_is_refused():
    with pytest.raises(ConfigError, match="0 workers"):
        SolverPool(0)
    with pytest.raises(ConfigError, match="'fusion'"):
        SolverPool(1, solver="fusion")


def test_an_error_ends_what_is_under_way(random_problem):
    with pytest.raises(KeyboardInterrupt):
        with SolverPool(1, solver="search", seconds=600) as pool:
            pending = pool.submit(random_problem(1, 7, 7))
            processes = list(pool._pool._processes.values())
            raise KeyboardInterrupt
    assert processes and not any(process.is_alive() for process in processes)
    assert pending.done()
