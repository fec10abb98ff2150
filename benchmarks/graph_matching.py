"""Times our graph matching search against pylibmgm: energy, gap to the best known, and time.

    OMP_NUM_THREADS=2 python benchmarks/graph_matching.py --rounds 3

Instances as in LVM-Med's pre-training: two noisy views of 16 random features, graphs of the 5
nearest neighbours, a two-layer GCN, cosine affinities of nodes and edges plus Gumbel(0, 1) noise
(the first solve of IMLE), and the same with 80 (1 - 2I) taken from the node affinities (the
second).

- alone: one process, one thread; pool: `--workers` processes, equal shares of the batch (0: none).
- ours: chains x sweeps; pylibmgm: its default solver, model building included.
- best known: the lowest of all contenders and of one long search (64 x 96).

Contenders run in turn, `--rounds` times; times and ratios are medians over the rounds. Where other
work shares the cores, trust the processor's time of this process ("CPU", alone only) and the
ratios. "optimal": share of the instances where the energy is the best known one. Needs
`pip install pylibmgm` (GPL-3.0).
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from crossband.shared.environment import machine
from crossband.shared.matching import Matching, Problem, SolverPool, solve_problem

BUDGETS = ((32, 4), (48, 4), (64, 4), (96, 4), (64, 8), (64, 16))
ALPHA, LAMBDA, WIDTH, NOISE = 0.8, 80.0, 128, 0.5


def neighbours(features: Tensor, k: int) -> Tensor:
    """Return directed edges (B, n*k, 2) from every node to its k nearest."""
    distance = torch.cdist(features, features)
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    near = distance.topk(k, largest=False).indices
    start = torch.arange(features.shape[1])[None, :, None].expand_as(near)
    return torch.stack([start.flatten(1), near.flatten(1)], -1)


def message_passing(features: Tensor, edges: Tensor, weights: list[Tensor]) -> Tensor:
    """Return node features (B, n, F) after a GCN with symmetric normalisation."""
    batch, n, _ = features.shape
    adjacency = torch.eye(n).repeat(batch, 1, 1)
    adjacency[torch.arange(batch)[:, None], edges[..., 0], edges[..., 1]] = 1
    scale = adjacency.sum(2).rsqrt()
    adjacency = scale[:, :, None] * adjacency * scale[:, None]
    hidden = (adjacency @ features @ weights[0]).relu()
    return adjacency @ hidden @ weights[1]


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Return all cosines (B, n, m)."""
    return F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).transpose(1, 2)


def gumbel(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return Gumbel(0, 1) noise."""
    uniform = torch.rand(shape, generator=generator).clamp(1e-9, 1 - 1e-7)
    return -torch.log(-torch.log(uniform))


def instances(batch: int, n: int, k: int, seed: int) -> tuple[Problem, Problem]:
    """Return the problems of IMLE's first and second solve."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    base = normal(batch, n, WIDTH)
    views = [base + NOISE * normal(batch, n, WIDTH) for _ in range(2)]
    # Stands for the affinity of the feature maps, both ways.
    local = 2 * cosine(*(base + NOISE * normal(batch, n, WIDTH) for _ in range(2)))
    edges = [neighbours(view, k) for view in views]
    weights = [normal(WIDTH, WIDTH) / WIDTH**0.5 for _ in range(2)]
    nodes = [message_passing(view, e, weights) for view, e in zip(views, edges, strict=True)]
    pick = torch.arange(batch)[:, None]
    arms = [x[pick, e[..., 0]] - x[pick, e[..., 1]] for x, e in zip(nodes, edges, strict=True)]
    vertex = ALPHA * cosine(*nodes) + (1 - ALPHA) * local
    edge = cosine(*arms)
    vertex = vertex + gumbel(vertex.shape, generator)
    edge = edge + gumbel(edge.shape, generator)
    moved = vertex - LAMBDA * (1 - 2 * torch.eye(n))
    return Problem(-vertex, *edges, -edge), Problem(-moved, *edges, -edge)


Contenders = dict[str, Callable[[Problem], Matching]]


def alone(**options: object) -> Callable[[Problem], Matching]:
    """Return a contender in this process on one thread."""

    def run(problem: Problem) -> Matching:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return solve_problem(problem, **options)
        finally:
            torch.set_num_threads(threads)

    return run


def measure(problem: Problem, contenders: Contenders, rounds: int) -> None:
    """Print the table of one batch."""
    walls: dict[str, list[float]] = {name: [] for name in contenders}
    works: dict[str, list[float]] = {name: [] for name in contenders}
    energies: dict[str, Tensor] = {}
    for _ in range(rounds):
        for name, run in contenders.items():
            start, begun = time.perf_counter(), time.process_time()
            energies[name] = run(problem).energy
            walls[name].append(time.perf_counter() - start)
            works[name].append(time.process_time() - begun)
    long = solve_problem(problem, solver="search", chains=64, sweeps=96, seed=1)
    best = torch.stack([*energies.values(), long.energy]).amin(0)
    print("| solver | mean energy | gap | optimal % | wall ms | CPU ms | wall ratio | CPU ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for name, found in energies.items():
        base = f"pylibmgm, {name.rpartition(', ')[2]}"
        optimal = float((found <= best + 1e-4).double().mean()) * 100
        cells = [name, f"{float(found.mean()):.3f}", f"{float((found - best).mean()):.3f}"]
        cells += [f"{optimal:.0f}", f"{statistics.median(walls[name]) / len(problem) * 1e3:.1f}"]
        ratios = [_ratio(walls[base], walls[name]), "-"]
        if name.endswith("alone"):
            cells.append(f"{statistics.median(works[name]) / len(problem) * 1e3:.1f}")
            ratios[1] = _ratio(works[base], works[name])
        else:
            cells.append("-")
        print(f"| {' | '.join([*cells, *ratios])} |", flush=True)


def _ratio(theirs: list[float], ours: list[float]) -> str:
    return f"{statistics.median(t / o for t, o in zip(theirs, ours, strict=True)):.1f}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 200])
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--neighbours", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    print(machine())
    settings = {"pylibmgm": {"solver": "pylibmgm"}}
    for chains, sweeps in BUDGETS:
        budget = {"solver": "search", "chains": chains, "sweeps": sweeps}
        settings[f"ours {chains} x {sweeps}"] = budget
    pool = SolverPool(arguments.workers) if arguments.workers else None
    with pool or contextlib.nullcontext():
        contenders: Contenders = {}
        for name, options in settings.items():
            contenders[f"{name}, alone"] = alone(**options)
            if pool is not None:
                contenders[f"{name}, pool"] = partial(pool.solve, **options)
        warm = instances(4, arguments.nodes, arguments.neighbours, 99)[0]
        for run in contenders.values():
            run(warm)
        for batch in arguments.batch:
            pair = instances(batch, arguments.nodes, arguments.neighbours, batch)
            for title, problem in zip(("first", "second"), pair, strict=True):
                print(f"\n{batch} graphs, {title} solve\n", flush=True)
                measure(problem, contenders, arguments.rounds)


if __name__ == "__main__":
    main()
