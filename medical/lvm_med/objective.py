"""Second-order graph matching between two views of a batch (LVM-Med, section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.medical.lvm_med.affinities import (
    cosine_affinity,
    full_precision,
    gumbel_like,
    softplus_affinity,
    vertex_affinity,
)
from crossband.medical.lvm_med.graphs import edge_features, knn_edges, split_batch
from crossband.medical.lvm_med.local import local_affinity, local_distance, regrid
from crossband.medical.lvm_med.matching import MatchingLoss, matching_loss
from crossband.medical.lvm_med.message_passing import GCN, GraphConvs
from crossband.medical.lvm_med.projector import Projector
from crossband.shared.errors import ConfigError
from crossband.shared.matching import SolverPool

Variant = Literal["paper", "draft"]
Gradient = Literal["imle", "blackbox"]
_CHOICES = {"variant": ("paper", "draft"), "gradient": ("imle", "blackbox"), "order": (1, 2)}


@dataclass(frozen=True)
class View:
    """One view of a batch, projected (`GraphMatchingObjective.describe`).

    Attributes:
        z: Node features (B, F).
        maps: Features of places (B, P, D'); None if maps do not count.
        locations: Of the places in the original images (B, P, 2); None likewise.
        gamma: Pairs of places that count.
    """

    z: Tensor
    maps: Tensor | None
    locations: Tensor | None
    gamma: int | None

    def graphs(self, start: int, shape: tuple[int, int]) -> View:
        """Return graphs (G, n, ...) of the images from `start` on."""
        parts = (self.z, self.maps, self.locations)
        stop = start + shape[0] * shape[1]
        z, maps, places = (p if p is None else p[start:stop].unflatten(0, shape) for p in parts)
        return View(z, maps, places, self.gamma)


@dataclass(frozen=True)
class Costs:
    """Matching problems of G pairs of graphs, as `shared.matching.solve` takes them."""

    unary: Tensor
    left_edges: Tensor
    right_edges: Tensor
    quadratic: Tensor


@dataclass(frozen=True)
class ObjectiveOutput:
    """Loss and statistics of a batch.

    Attributes:
        loss: Hamming loss, mean over graphs, a scalar.
        statistics: `matched`, share of images that found their other view; `energy`, mean cost of
            a matching; `gap`, mean distance to the lower bound: in evaluation, and in training
            where the solver gives one.
    """

    loss: Tensor
    statistics: dict[str, Tensor]


class GraphMatchingObjective(nn.Module):
    """Matches the images of one view with those of another, as graphs.

    | | paper | draft |
    |---|---|---|
    | projector | 128 | 1024-1024-1024, of maps 512-512-512 |
    | message passing | `GCN` | `GraphConvs` |
    | affinity | cosine; of nodes alpha cos + (1 - alpha) local | softplus(x.y) - 0.5 |
    | costs | -affinity | -affinity + I (+ local distances), -0.5 affinity |
    | matching | one to one | nodes may stay unmatched |

    A batch that is no multiple of `graph_size` ends in one smaller graph; a batch smaller than a
    graph is one graph. With `k` of at least the number of nodes all nodes are joined. A graph of
    one node has loss 0 (paper). Identical images are matched by the order of the solver: every
    distance is 0 then, edges have no direction and affinity 0, and nothing is NaN. All but the
    projectors computes in float32, under autocast too.

    Args:
        dim: Channels of the maps.
        variant: `paper`, or the authors' unreleased `draft`.
        order: 2, or 1 for nodes alone: an assignment problem.
        gradient: `imle` adds Gumbel noise to the affinities in training; `blackbox` none.
        noise: Factor of that noise. Affinities are in [-1, 1], so Gumbel(0, 1) drowns them at
            first; where there are few steps less noise teaches faster.
        graph_size: Images of a graph.
        k: Neighbours of an image in its graph.
        alpha: Weight of the global cosine against the local similarity (paper).
        lam: lambda of the gradient.
        gamma: Pairs of places that count, in maps of large crops and of small ones.
        local: Compare maps too.
        message_passing: Let neighbours exchange features.
        projector: Widths; empty: the variant's.
        map_size: Maps larger than this are pooled to so many rows and columns.
        margin: On the right match (draft).
        edge_scale: Weight of edges (draft).
        degree: Of `GCN` (paper).
        solver: Of `shared.matching.solve`; order 1 takes `lap`.
        solver_options: Of that solver.

    Attributes:
        pool: Processes that solve in its place (order 2); None: this one does.

    Raises:
        ConfigError: a value that cannot work.
    """

    def __init__(
        self,
        dim: int,
        *,
        variant: Variant = "paper",
        order: int = 2,
        gradient: Gradient = "imle",
        noise: float = 1.0,
        graph_size: int = 16,
        k: int = 5,
        alpha: float = 0.8,
        lam: float = 80.0,
        gamma: Sequence[int] = (20, 4),
        local: bool = True,
        message_passing: bool = True,
        projector: str = "",
        map_size: int = 7,
        margin: float = 1.0,
        edge_scale: float = 0.5,
        degree: Literal["printed", "with_loops"] = "printed",
        solver: str = "auto",
        solver_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Build projectors and message passing."""
        super().__init__()
        for name, value in (("variant", variant), ("gradient", gradient), ("order", order)):
            if value not in _CHOICES[name]:
                known = " or ".join(str(choice) for choice in _CHOICES[name])
                raise ConfigError(f"{name} {value!r} is not known: give {known}.")
        if not 0 <= alpha <= 1:
            raise ConfigError(f"alpha {alpha:g} must be in [0, 1]: the paper takes 0.8.")
        if len(gamma) != 2 or min(gamma) < 1:
            raise ConfigError(f"gamma {list(gamma)}: give two numbers of at least 1, as 20 and 4.")
        for name, number in (("graph_size", graph_size), ("k", k), ("map_size", map_size)):
            if number < 1:
                raise ConfigError(f"{name} {number} must be at least 1.")
        if not lam > 0:
            raise ConfigError(f"lambda {lam:g} must be positive: the paper takes 80.")
        if noise < 0:
            raise ConfigError(f"noise {noise:g} must be at least 0: the paper takes 1.")
        self.paper, self.order = variant == "paper", order
        self.noise = noise if gradient == "imle" else 0.0
        self.graph_size, self.k, self.alpha, self.lam = graph_size, k, alpha, lam
        self.gamma, self.map_size = tuple(gamma), map_size
        self.margin, self.edge_scale = margin, edge_scale
        self.solver = "lap" if order == 1 else solver
        self.solver_options = dict(solver_options or {})
        self.pool: SolverPool | None = None
        self.local = local and not (self.paper and alpha == 1)
        self.projector = Projector(dim, projector or ("128" if self.paper else "1024-1024-1024"))
        width = self.projector.width
        self.map_projector: nn.Module = nn.Identity()
        if self.local and not self.paper:
            self.map_projector = Projector(dim, "512-512-512")
        self.message_passing: nn.Module | None = None
        if message_passing:
            paper = self.paper
            self.message_passing = (
                GCN(width, width, degree=degree) if paper else GraphConvs(width, width)
            )

    def describe(
        self, pooled: Tensor, maps: Tensor, grid: Tensor | None, *, small: bool = False
    ) -> View:
        """Project one view of a batch.

        Args:
            pooled: Pooled features (B, dim).
            maps: Feature maps (B, dim, R, S).
            grid: Centres of the cells in the original images (B, R', S', 2), row and column in
                pixels; fitted to the maps. None if maps do not count.
            small: The view is a small crop, so the second `gamma` holds.

        Raises:
            ConfigError: no grid where maps count.
        """
        z = self.projector(pooled)
        if not self.local:
            return View(z, None, None, None)
        if grid is None:
            raise ConfigError(
                "Maps are compared by location, and the batch has no grids: give them, or set "
                "local False."
            )
        size = [min(side, self.map_size) for side in maps.shape[-2:]]
        if list(maps.shape[-2:]) != size:
            maps = F.adaptive_avg_pool2d(maps, size)
        places = maps.flatten(2).transpose(1, 2)
        features = self.map_projector(places.flatten(0, 1)).unflatten(0, places.shape[:2])
        locations = regrid(grid.float(), (size[0], size[1])).flatten(1, 2)
        return View(z, features, locations, self.gamma[small])

    def forward(
        self,
        pairs: Sequence[tuple[View, View]],
        generator: torch.Generator | None = None,
    ) -> ObjectiveOutput:
        """Match both views of every pair; problems of one size are solved in one call.

        Args:
            pairs: Views of the same images.
            generator: Of the noise in training, on the CPU; None: the global one.

        Raises:
            ConfigError: no image, or features that are not finite.
        """
        with torch.autocast(pairs[0][0].z.device.type, enabled=False):
            problems = [costs for pair in pairs for costs in self.costs(*pair, generator)]
            found = [self._solve(alike) for alike in _by_size(problems)]
        return _summary(found)

    def costs(
        self, first: View, second: View, generator: torch.Generator | None = None
    ) -> list[Costs]:
        """Return the problems of two views, with noise in training: one per size."""
        problems, start = [], 0
        for shape in split_batch(len(first.z), self.graph_size):
            problems.append(
                self._costs(first.graphs(start, shape), second.graphs(start, shape), generator)
            )
            start += shape[0] * shape[1]
        return problems

    def _costs(self, first: View, second: View, generator: torch.Generator | None) -> Costs:
        nodes, edges = zip(*(self._exchange(view.z) for view in (first, second)), strict=True)
        affinity = cosine_affinity if self.paper else softplus_affinity
        vertex = affinity(*nodes)
        if self.paper:
            vertex = vertex_affinity(vertex, self._local(first, second), self.alpha)
        if self.order == 1:
            edges = tuple(pairs[:, :0] for pairs in edges)
        edge = affinity(*(edge_features(x, pairs) for x, pairs in zip(nodes, edges, strict=True)))
        if self.noise and self.training:
            vertex = vertex + self.noise * gumbel_like(vertex, generator)
            edge = edge + self.noise * gumbel_like(edge, generator)
        if self.paper:
            return Costs(-vertex, *edges, -edge)
        unary = -vertex + self.margin * torch.eye(vertex.shape[-1], device=vertex.device)
        if self.local:
            places = (first.maps, second.maps, first.locations, second.locations)
            unary = unary + local_distance(*places, min(first.gamma, second.gamma))
        return Costs(unary, *edges, -self.edge_scale * edge)

    def _exchange(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return node features after message passing, and edges."""
        z = full_precision(z)
        edges = knn_edges(z, self.k)
        return (z if self.message_passing is None else self.message_passing(z, edges)), edges

    def _local(self, first: View, second: View) -> Tensor | None:
        if not self.local:
            return None
        places = (first.maps, second.maps, first.locations, second.locations)
        return local_affinity(*places, (first.gamma, second.gamma))

    def _solve(self, problems: list[Costs]) -> MatchingLoss:
        names = ("unary", "quadratic", "left_edges", "right_edges")
        return matching_loss(
            *(torch.cat([getattr(costs, name) for costs in problems]) for name in names),
            lam=self.lam,
            allow_unmatched=not self.paper,
            solver=self.solver,
            bound=not self.training,  # costs time and teaches nothing
            pool=self.pool if self.order == 2 else None,
            options=self.solver_options,
        )


def _by_size(problems: list[Costs]) -> list[list[Costs]]:
    groups: dict[int, list[Costs]] = {}
    for costs in problems:
        groups.setdefault(costs.unary.shape[-1], []).append(costs)
    return list(groups.values())


def _summary(found: list[MatchingLoss]) -> ObjectiveOutput:
    right = torch.cat([part.x.diagonal(dim1=1, dim2=2).flatten() for part in found])
    energy = torch.cat([part.energy for part in found])
    statistics = {"matched": right.mean(), "energy": energy.float().mean()}
    bounds = [part.bound for part in found if part.bound is not None]
    if len(bounds) == len(found):
        statistics["gap"] = (energy - torch.cat(bounds)).float().mean()
    return ObjectiveOutput(torch.cat([part.loss for part in found]).mean(), statistics)
