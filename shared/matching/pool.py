"""Solves batches in processes: several cores for solvers of the CPU, beside other work."""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from threading import Thread
from types import TracebackType
from typing import Any

import torch

from crossband.shared.errors import ConfigError
from crossband.shared.matching.problem import Matching, Problem, edge_matching, energy
from crossband.shared.matching.solving import SOLVERS, solve_problem

_NAMES = ("unary", "left_edges", "right_edges", "quadratic")


@dataclass(frozen=True)
class PendingMatching:
    """A batch that is being solved."""

    problem: Problem
    parts: tuple[Future, ...]

    def done(self) -> bool:
        """Return whether `result` would not wait."""
        return all(part.done() for part in self.parts)

    def result(self, timeout: float | None = None) -> Matching:
        """Wait for the solution, on the device of the problem.

        Raises:
            ConfigError: the solver refused the problem or its options.
            TimeoutError: a part takes longer than `timeout` seconds.
        """
        found = [part.result(timeout) for part in self.parts]
        x = torch.cat([torch.from_numpy(x) for x, _ in found]).to(self.problem.unary)
        bounds = [bound for _, bound in found]
        bound = None
        if all(b is not None for b in bounds):
            bound = torch.cat([torch.from_numpy(b) for b in bounds]).to(x.device)
        y = edge_matching(self.problem, x)
        return Matching(x, y, energy(self.problem, x, y), bound)


class SolverPool:
    """A pool of processes with one solver; a context manager.

    Processes are spawned, not forked: a fork of a process that holds threads or a GPU may hang.
    Ctrl-C ends the caller, and leaving the `with` block ends the processes.

        with SolverPool(2, solver="search", seed=1) as pool:
            pending = pool.submit(problem)     # returns at once
            ...                                # other work, on the GPU for example
            matching = pending.result()
    """

    def __init__(self, workers: int, *, solver: str = "auto", **options: Any) -> None:
        """Start `workers` processes for a solver and its options (see `solve`)."""
        if workers < 1:
            raise ConfigError(f"a pool of {workers} workers cannot solve: give 1 or more.")
        if solver not in SOLVERS:
            raise ConfigError(
                f"no graph matching solver is called {solver!r}. There are: {', '.join(SOLVERS)}."
            )
        self._workers, self._options = workers, {"solver": solver, **options}
        self._pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_prepare_worker
        )

    def submit(self, problem: Problem, **options: Any) -> PendingMatching:
        """Hand a batch to the processes in equal shares and return at once.

        `options` go before those of the pool.
        """
        size = max(1, -(-len(problem) // self._workers))
        host = problem.to("cpu")
        shares = [host[start : start + size] for start in range(0, max(1, len(problem)), size)]
        parts = tuple(
            self._pool.submit(_solve_share, _pack(share), {**self._options, **options})
            for share in shares
        )
        return PendingMatching(problem, parts)

    def solve(self, problem: Problem, **options: Any) -> Matching:
        """Solve a batch and wait for it; see `submit`."""
        return self.submit(problem, **options).result()

    def close(self) -> None:
        """Drop what has not begun and end the processes."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> SolverPool:
        """Return the pool."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the pool; after an error (Ctrl-C too) without waiting for what is under way."""
        if kind is not None:
            for process in list((self._pool._processes or {}).values()):
                process.terminate()
        self.close()


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides what Ctrl-C ends
    Thread(target=_leave_with_caller, daemon=True).start()
    torch.set_num_threads(1)


def _leave_with_caller() -> None:
    """End this process when its caller has been killed: nobody would close the pool then."""
    caller = multiprocessing.parent_process()
    if caller is not None:
        caller.join()
        os._exit(1)


def _pack(problem: Problem) -> dict[str, Any]:
    """Return arrays: tensors between processes would take file descriptors."""
    arrays: dict[str, Any] = {name: getattr(problem, name).numpy() for name in _NAMES}
    return arrays | {"allow_unmatched": problem.allow_unmatched}


def _solve_share(packed: dict[str, Any], options: dict[str, Any]) -> tuple:
    tensors = {name: torch.from_numpy(packed[name]) for name in _NAMES}
    problem = Problem(**tensors, allow_unmatched=packed["allow_unmatched"])
    matching = solve_problem(problem, **options)
    bound = None if matching.bound is None else matching.bound.numpy()
    return matching.x.numpy(), bound
