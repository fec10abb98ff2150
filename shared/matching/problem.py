"""Graph matching problems: costs, energy, and the table of pairwise costs that solvers read.

Minimise over partial matchings X in {0,1}^(n x m), every row and column sum at most 1,

    sum_ij c_ij X_ij + sum over left edges (i,k), right edges (j,l) of q X_ij X_kl

(the convention of LPMP, Swoboda et al. 2017). Edges are directed, repeated edges add up, and a
node may stay unmatched at cost 0 unless the problem says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crossband.shared.errors import ConfigError


@dataclass(frozen=True)
class Problem:
    """A batch of B problems of one size.

    Attributes:
        unary: node costs c (B, n, m), floating point.
        left_edges: directed edges (i, k) of the left graphs (B, E1, 2), integers in 0..n-1.
        right_edges: directed edges (j, l) of the right graphs (B, E2, 2), integers in 0..m-1.
        quadratic: costs q of edge pairs (B, E1, E2), floating point.
        allow_unmatched: nodes may stay unmatched at cost 0; else every node of the smaller graph
            is matched (one to one if n = m).

    Raises:
        ConfigError: shapes that do not fit, an edge that is a loop or leaves the graph, costs
            that are NaN or infinite.
    """

    unary: Tensor
    left_edges: Tensor
    right_edges: Tensor
    quadratic: Tensor
    allow_unmatched: bool = True

    def __post_init__(self) -> None:
        """Check everything once; costs below single precision are widened."""
        wide = torch.float64 if self.unary.dtype == torch.float64 else torch.float32
        for name in ("unary", "quadratic"):
            object.__setattr__(self, name, getattr(self, name).detach().to(wide))
        for name in ("left_edges", "right_edges"):
            object.__setattr__(self, name, getattr(self, name).detach().long())
        _check_shapes(self)
        for name, size in (("left_edges", self.left), ("right_edges", self.right)):
            _check_edges(name, getattr(self, name), size)
        for name in ("unary", "quadratic"):
            _check_costs(name, getattr(self, name))

    def __len__(self) -> int:
        """Return the number B of problems."""
        return len(self.unary)

    @property
    def left(self) -> int:
        """Number n of left nodes."""
        return self.unary.shape[1]

    @property
    def right(self) -> int:
        """Number m of right nodes."""
        return self.unary.shape[2]

    @property
    def is_linear(self) -> bool:
        """Whether no edge pair costs anything, so that the problem is a linear assignment."""
        return not self.quadratic.any()

    def __getitem__(self, part: slice) -> Problem:
        """Return some of the problems; what was checked is not checked again."""
        chosen = object.__new__(Problem)
        for name in ("unary", "left_edges", "right_edges", "quadratic"):
            object.__setattr__(chosen, name, getattr(self, name)[part])
        object.__setattr__(chosen, "allow_unmatched", self.allow_unmatched)
        return chosen

    def to(self, device: torch.device | str) -> Problem:
        """Return the problems on a device."""
        moved = self[:]
        for name in ("unary", "left_edges", "right_edges", "quadratic"):
            object.__setattr__(moved, name, getattr(self, name).to(device))
        return moved


@dataclass(frozen=True)
class Matching:
    """Solutions of a batch of problems, on the device and in the dtype of the node costs.

    Attributes:
        x: matching (B, n, m), 0 or 1.
        y: matched edge pairs (B, E1, E2), 1 iff both end points match in the same orientation.
        energy: the objective at x (B,), float64.
        bound: lower bound of the objective (B,), float64; equal to `energy` where the optimum is
            proven, None where no bound was computed.
    """

    x: Tensor
    y: Tensor
    energy: Tensor
    bound: Tensor | None = None

    @property
    def gap(self) -> Tensor | None:
        """Energy minus bound (B,): at most that much could still be gained; None without bound."""
        return None if self.bound is None else (self.energy - self.bound).clamp(min=0)


def to_matching(problem: Problem, partners: Tensor, bound: Tensor | None = None) -> Matching:
    """Return the matching in which left node i takes right node `partners[b, i]`, m for none."""
    x = torch.zeros(*problem.unary.shape[:2], problem.right + 1, dtype=problem.unary.dtype)
    x = x.to(problem.unary.device).scatter_(2, partners[..., None], 1)[..., : problem.right]
    y = edge_matching(problem, x)
    return Matching(x, y, energy(problem, x, y), bound)


def edge_matching(problem: Problem, x: Tensor) -> Tensor:
    """Return y (B, E1, E2): x[i, j] x[k, l] for left edge (i, k) and right edge (j, l)."""
    ends = [
        x.gather(1, problem.left_edges[..., end, None].expand(-1, -1, problem.right)).gather(
            2, problem.right_edges[:, None, :, end].expand(-1, problem.left_edges.shape[1], -1)
        )
        for end in (0, 1)
    ]
    return ends[0] * ends[1]


def energy(problem: Problem, x: Tensor, y: Tensor | None = None) -> Tensor:
    """Return the objective at x (B, n, m) as float64 (B,)."""
    y = edge_matching(problem, x) if y is None else y
    nodes = (problem.unary.double() * x).sum((1, 2))
    return nodes + (problem.quadratic.double() * y).sum((1, 2))


def cost_tables(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return node costs (B, N*M) and symmetric pairwise costs (B, N*M, N*M), N = n+1, M = m+1.

    Assignment (i, j) has the index i*M + j; the objective is c.x + x'Wx/2. The last row and
    column are a partner for nodes without one: everything about them costs 0.
    """
    batch, n, m = problem.unary.shape
    columns, size = m + 1, (n + 1) * (m + 1)
    nodes = torch.nn.functional.pad(problem.unary, (0, 1, 0, 1)).reshape(batch, size)
    first, second = (
        (problem.left_edges[..., end] * columns)[:, :, None] + problem.right_edges[:, None, :, end]
        for end in (0, 1)
    )
    pairs = problem.unary.new_zeros(batch, size * size)
    costs = problem.quadratic.to(pairs.dtype).flatten(1)
    pairs.scatter_add_(1, (first * size + second).flatten(1), costs)
    pairs.scatter_add_(1, (second * size + first).flatten(1), costs)
    return nodes, pairs.view(batch, size, size)


def complete(partners: Tensor, right: int) -> Tensor:
    """Give unmatched left nodes free right nodes, in order, until one side is used up (B, n)."""
    partners = partners.clone()
    for row in partners:
        used = set(row.tolist())
        free = [j for j in range(right) if j not in used]
        for i, j in zip((row == right).nonzero().flatten().tolist(), free, strict=False):
            row[i] = j
    return partners


def _check_shapes(problem: Problem) -> None:
    unary, quadratic = problem.unary, problem.quadratic
    left, right = problem.left_edges, problem.right_edges
    batch = len(unary)
    fits = (
        unary.ndim == 3
        and min(unary.shape[1:]) > 0
        and left.ndim == right.ndim == 3
        and left.shape[2] == right.shape[2] == 2
        and quadratic.shape == (batch, left.shape[1], right.shape[1])
        and len(left) == len(right) == batch
    )
    if not fits:
        raise ConfigError(
            f"unary {tuple(unary.shape)}, left_edges {tuple(left.shape)}, right_edges "
            f"{tuple(right.shape)} and quadratic {tuple(quadratic.shape)} do not fit: give "
            "(B, n, m), (B, E1, 2), (B, E2, 2) and (B, E1, E2) with n, m > 0."
        )


def _check_edges(name: str, edges: Tensor, nodes: int) -> None:
    wrong = ((edges < 0) | (edges >= nodes)).any(-1)
    loop = edges[..., 0] == edges[..., 1]
    bad = wrong | loop
    if bad.any():
        graph, index = bad.nonzero()[0].tolist()
        start, end = edges[graph, index].tolist()
        fault = "leaves the graph" if wrong[graph, index] else "is a loop"
        raise ConfigError(
            f"edge {index} of graph {graph} in {name}, ({start}, {end}), {fault}: edges join two "
            f"different nodes of 0..{nodes - 1}."
        )


def _check_costs(name: str, costs: Tensor) -> None:
    bad = ~costs.isfinite()
    if bad.any():
        where = bad.nonzero()[0].tolist()
        raise ConfigError(
            f"{name} costs hold {costs[tuple(where)].item()} at {where}: costs must be finite, "
            "look for an overflow or a zero norm where they are computed."
        )
