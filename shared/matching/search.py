"""Graph matching by simulated annealing of many chains at once, in PyTorch.

One step takes a left node i in every chain and lets it take any right node j, or none: the node
that held j gets i's old partner. The change of energy of all m + 1 choices follows from the field
g = c + WX, which each chain keeps, and two entries of W per choice,

    g[i,j] - g[i,a] + g[h,a] - g[h,j] + W[ij,ha] + W[ia,hj]     (a: partner of i, h: holder of j)

and one is drawn from its Boltzmann distribution (heat bath, by the Gumbel trick). At the end the
temperature is 0 and the steps descend to a local minimum. "No partner" is one more row and column
without costs, so that swaps, inserts and removals are the same step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from crossband.shared.errors import ConfigError
from crossband.shared.matching.problem import Matching, Problem, cost_tables, to_matching

# First and last temperature, in median absolute deviations of the field of random matchings.
_HOT, _COLD = 1.1, 0.4
_SAMPLE = 8  # chains that are looked at for it
_SURVIVORS = 4  # chains that descend to the end
_MOST_DESCENTS = 10
_BLOCK_BYTES = 8 * 2**20  # of pairwise costs: what stays in a CPU's cache
_MOST_BYTES = 2**32


def solve_search(
    problem: Problem,
    *,
    chains: int = 64,
    sweeps: int = 16,
    seconds: float | None = None,
    seed: int = 0,
) -> Matching:
    """Return the best matching that annealing finds; the same for the same seed.

    Args:
        problem: B problems, on any device; costs are read in their own precision.
        chains: independent runs per problem.
        sweeps: steps per left node while it cools.
        seconds: go on with new rounds of all chains until so much time has passed; the result
            then depends on the machine's speed.
        seed: of starts and choices.

    Raises:
        ConfigError: a budget that is not positive, or graphs too large for the dense cost table.
    """
    if chains < 1 or sweeps < 1 or (seconds is not None and seconds <= 0):
        raise ConfigError(
            f"chains={chains}, sweeps={sweeps}, seconds={seconds} is no budget: give positive "
            "numbers."
        )
    until = time.monotonic() + (seconds or 0)
    best = _round(problem, chains, sweeps, seed)
    while seconds and time.monotonic() < until:
        seed += 1_000_003
        best = _better(problem, best, _round(problem, chains, sweeps, seed))
    return to_matching(problem, best)


def _better(problem: Problem, old: Tensor, new: Tensor) -> Tensor:
    """Return the cheaper partners of each problem (B, n)."""
    gained = to_matching(problem, new).energy < to_matching(problem, old).energy
    return torch.where(gained[:, None], new, old)


def _round(problem: Problem, chains: int, sweeps: int, seed: int) -> Tensor:
    """Anneal all problems, on a CPU in blocks over its threads; partners (B, n)."""
    table = ((problem.left + 1) * (problem.right + 1)) ** 2 * problem.unary.element_size()
    if table > _MOST_BYTES:
        raise ConfigError(
            f"graphs of {problem.left} and {problem.right} nodes need a cost table of "
            f"{table / 2**30:.0f} GiB: take solver='pylibmgm', or smaller graphs."
        )
    if not len(problem):
        return problem.left_edges.new_zeros(0, problem.left)
    on_cpu = problem.unary.device.type == "cpu"
    size = max(1, _BLOCK_BYTES // table) if on_cpu else len(problem)
    blocks = [problem[start : start + size] for start in range(0, len(problem), size)]

    def run(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed + number)
        return _Annealing(blocks[number], chains, generator).run(sweeps)

    if not on_cpu:
        return run(0)
    with _one_thread_per_operator() as threads, ThreadPoolExecutor(threads) as pool:
        return torch.cat(list(pool.map(run, range(len(blocks)))))


@contextmanager
def _one_thread_per_operator() -> Iterator[int]:
    """Yield the number of threads, which are for whole blocks meanwhile.

    The operators here take microseconds: shared out, they wait for their slowest thread, which is
    a hundred times slower where other processes want the cores too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


class _Annealing:
    """The state of R chains for each of B problems: C = B*R matchings.

    Attributes:
        partner: right node of each left node (C, N), m for none; column n is a stand-in.
        holder: left node of each right node (C, M), n for none, times M (the index of its
            first assignment); column m is a stand-in.
        field: c + WX of each chain (C, N*M).
    """

    def __init__(self, problem: Problem, chains: int, generator: torch.Generator) -> None:
        self.problem, self.chains, self.generator = problem, chains, generator
        self.n, self.m = problem.left, problem.right
        self.columns, self.size = self.m + 1, (self.n + 1) * (self.m + 1)
        self.device = problem.unary.device
        self.nodes, pairs = cost_tables(problem)
        self.rows = pairs.view(-1, self.size)
        self.flat = pairs.view(-1)
        count = len(problem) * chains
        graph = torch.arange(len(problem), device=self.device).repeat_interleave(chains)
        self.first_row = graph * self.size
        self.offset = (self.first_row * self.size)[:, None]
        self.right = torch.arange(self.columns, device=self.device)
        self.signs = self.rows.new_tensor([1, -1, 1, -1]).expand(count, 4).contiguous()
        self.everyone = torch.arange(count, device=self.device)
        self._start(count)

    def _start(self, count: int) -> None:
        """Random matchings that use up the smaller side."""
        n, m = self.n, self.m
        order = torch.rand(count, max(n, m), generator=self.generator).argsort(1)
        partner = order[:, :n].clamp(max=m).to(self.device)
        left = torch.arange(n, device=self.device)
        taken = self.first_row[:, None] + left * self.columns + partner
        self.field = F.embedding_bag(taken, self.rows, mode="sum")
        self.field += self.nodes.repeat_interleave(self.chains, 0)
        self.partner = F.pad(partner, (0, 1), value=m)
        self.holder = torch.full((count, self.columns), n * self.columns, device=self.device)
        self.holder.scatter_(1, partner, (left * self.columns).expand(count, n))
        self.holder[:, m] = n * self.columns

    def run(self, sweeps: int) -> Tensor:
        """Cool, descend, and return the best partners (B, n)."""
        count = len(self.partner) * self.columns
        uniform = torch.rand(2 * count + 1, generator=self.generator).clamp(1e-9, 1 - 1e-7)
        noise = -torch.log(-torch.log(uniform)).to(self.field)
        scale = self._scale()
        for sweep in range(sweeps):
            heat = _HOT * (_COLD / _HOT) ** (sweep / max(1, sweeps - 1)) * scale
            for i in self._order():
                start = int(torch.randint(count + 1, (), generator=self.generator))
                drawn = noise[start : start + count].view(-1, self.columns)
                self._step(i, drawn, heat)
        self._descend(1)
        self._keep(min(self.chains, _SURVIVORS))
        self._descend(_MOST_DESCENTS)
        return self._best()

    def _descend(self, most: int) -> None:
        """Take every node's cheapest choice until none is cheaper, or `most` times."""
        for _ in range(most):
            before = self.partner.clone()
            for i in self._order():
                self._step(i)
            if torch.equal(before, self.partner):
                break

    def _order(self) -> list[int]:
        return torch.randperm(self.n, generator=self.generator).tolist()

    def _scale(self) -> Tensor:
        """Return the spread of each problem's field (C, 1): robust, costs may hold outliers."""
        real = self.field.view(len(self.problem), self.chains, self.n + 1, self.columns)
        real = real[:, :_SAMPLE, : self.n, : self.m].flatten(1)
        spread = (real - real.median(1, keepdim=True).values).abs().median(1, keepdim=True).values
        return spread.repeat_interleave(self.chains, 0)

    def _step(self, i: int, noise: Tensor | None = None, heat: Tensor | None = None) -> None:
        """Let node i take the partner with the lowest energy minus heat x noise, in every chain."""
        change = self._changes(i)
        if noise is not None:
            change.addcmul_(noise, heat, value=-1)
        if not self.problem.allow_unmatched:
            change[:, self.m].masked_fill_(self.partner[:, i] != self.m, torch.inf)
        chosen = change.argmin(1)
        if self.device.type == "cpu":  # few move when it is cold; elsewhere asking costs more
            moved = (chosen != self.partner[:, i]).nonzero()[:, 0]
            if len(moved):
                self._move(i, chosen[moved], moved)
        else:
            self._move(i, chosen, self.everyone)

    def _changes(self, i: int) -> Tensor:
        """Return the energy of each choice (C, M) up to a constant of the chain."""
        row = i * self.columns
        old = self.partner[:, i, None]
        held = self.holder + self.right  # (h, j)
        change = self.field[:, row : row + self.columns] - self.field.gather(1, held)
        change += self.field.gather(1, self.holder + old)  # (h, a)
        crossed = self.holder + (old + self.offset)
        crossed += (row + self.right) * self.size
        held += (row + old) * self.size + self.offset
        for index in (crossed, held):
            change += self.flat.index_select(0, index.view(-1)).view_as(change)
        return change

    def _move(self, i: int, new: Tensor, chains: Tensor) -> None:
        """Give node i of these chains its new partner; the holder of that gets the old one."""
        old, holder = self.partner[chains, i], self.holder[chains, new]
        mine = self.first_row[chains] + i * self.columns
        other = self.first_row[chains] + holder
        taken = torch.stack([mine + new, mine + old, other + old, other + new], 1)
        gain = F.embedding_bag(
            taken, self.rows, mode="sum", per_sample_weights=self.signs[: len(chains)]
        )
        self.field.index_add_(0, chains, gain)
        self.partner[chains, holder // self.columns] = old
        self.partner[chains, i] = new
        self.partner[:, self.n] = self.m
        self.holder[chains, old] = holder
        self.holder[chains, new] = i * self.columns
        self.holder[:, self.m] = self.n * self.columns

    def _energies(self) -> Tensor:
        """Return the energy of every chain (B, R)."""
        index = torch.arange(self.n, device=self.device) * self.columns
        both = self.field + self.nodes.repeat_interleave(self.chains, 0)
        return both.gather(1, index + self.partner[:, : self.n]).sum(1).view(-1, self.chains) / 2

    def _keep(self, chains: int) -> None:
        """Go on with the best chains of each problem only."""
        best = self._energies().topk(chains, largest=False).indices
        first = torch.arange(len(best), device=self.device) * self.chains
        kept = (best + first[:, None]).flatten()
        for name in ("partner", "holder", "field", "first_row", "offset"):
            setattr(self, name, getattr(self, name)[kept])
        self.chains, self.everyone = chains, self.everyone[: len(kept)]

    def _best(self) -> Tensor:
        """Return the partners of the chain with the lowest energy of each problem (B, n)."""
        self._keep(1)
        return self.partner[:, : self.n]
