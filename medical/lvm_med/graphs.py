"""Graphs of a batch: what is a graph, and which nodes it joins (LVM-Med, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from crossband.shared.errors import ConfigError


def split_batch(count: int, size: int) -> list[tuple[int, int]]:
    """Cut a batch into graphs; what is left over makes one smaller graph.

    A batch of fewer images than a graph is one graph of all of them.

    Args:
        count: Images of the batch.
        size: Nodes of a graph.

    Returns:
        (number of graphs, nodes of each), in the order of the images: one pair or two.

    Raises:
        ConfigError: no image, or graphs without nodes.
    """
    if size < 1:
        raise ConfigError(f"A graph of {size} nodes has none: give graph_size 16, as the paper.")
    if count < 1:
        raise ConfigError("A batch without images cannot be matched: give at least one image.")
    parts = [(count // size, size), (1, count % size)]
    return [(graphs, nodes) for graphs, nodes in parts if graphs and nodes]


@torch.no_grad()
def knn_edges(z: Tensor, k: int) -> Tensor:
    """Join every node with its `k` nearest others, by Euclidean distance.

    Among equal distances the lower node comes first, so identical images give a graph too. With
    `k >= n` every node is joined with all others, and a single node with none.

    Args:
        z: Node features (G, n, F).
        k: Neighbours of a node.

    Returns:
        Directed edges (G, n min(k, n - 1), 2), int64: node, neighbour; nearest first. There are
        no loops.

    Raises:
        ConfigError: `k` below 1.
    """
    if k < 1:
        raise ConfigError(f"A graph of {k} neighbours has no edges: give k 5, or order 1.")
    graphs, nodes, _ = z.shape
    neighbours = min(k, nodes - 1)
    # Not by matrix products: equal nodes have the distance 0 then, and ties stay ties.
    distance = torch.cdist(z.float(), z.float(), compute_mode="donot_use_mm_for_euclid_dist")
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    nearest = distance.sort(dim=-1, stable=True).indices[..., :neighbours]
    nodes_of = torch.arange(nodes, device=z.device)[:, None].expand(graphs, nodes, neighbours)
    return torch.stack((nodes_of, nearest), -1).flatten(1, 2)


def end_points(nodes: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features of both ends of every edge, (G, E, F) each.

    Args:
        nodes: Features (G, n, F).
        edges: (G, E, 2).
    """
    width = nodes.shape[-1]
    first, second = (edges[..., end, None].expand(-1, -1, width) for end in (0, 1))
    return nodes.gather(1, first), nodes.gather(1, second)


def edge_features(nodes: Tensor, edges: Tensor) -> Tensor:
    """Return h_i - h_j of every edge (i, j), (G, E, F).

    Args:
        nodes: Features (G, n, F).
        edges: (G, E, 2).
    """
    first, second = end_points(nodes, edges)
    return first - second
