from __future__ import annotations

import pytest
import torch

from crossband.medical.lvm_med.graphs import edge_features, knn_edges, split_batch
from crossband.shared.errors import ConfigError


@pytest.mark.parametrize(
    ("count", "size", "parts"),
    [
        (32, 16, [(2, 16)]),
        (35, 16, [(2, 16), (1, 3)]),
        (5, 16, [(1, 5)]),
        (1, 16, [(1, 1)]),
        (3, 1, [(3, 1)]),
    ],
)
def test_batches_are_cut_into_graphs(count: int, size: int, parts: list) -> None:
    assert split_batch(count, size) == parts


@pytest.mark.parametrize(("count", "size"), [(0, 16), (4, 0)])
def test_nothing_to_cut_is_refused(count: int, size: int) -> None:
    with pytest.raises(ConfigError, match="give"):
        split_batch(count, size)


def test_neighbours_on_a_line() -> None:
    z = torch.tensor([[[0.0], [1.0], [3.0], [7.0]]])
    assert knn_edges(z, 2)[0].tolist() == [
        *([0, 1], [0, 2]),
        *([1, 0], [1, 2]),
        *([2, 1], [2, 0]),
        *([3, 2], [3, 1]),
    ]


def test_equal_distances_go_to_the_lower_node() -> None:
    edges = knn_edges(torch.zeros(2, 4, 3), 2)
    assert edges[1].tolist() == [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1], [3, 0], [3, 1]]


def test_more_neighbours_than_nodes_join_all() -> None:
    edges = knn_edges(torch.randn(1, 4, 3), 9)[0]
    assert {tuple(edge) for edge in edges.tolist()} == {
        (i, j) for i in range(4) for j in range(4) if i != j
    }
    assert len(edges) == 12


def test_a_single_node_has_no_edges() -> None:
    assert knn_edges(torch.randn(3, 1, 5), 2).shape == (3, 0, 2)


def test_no_neighbours_are_refused() -> None:
    with pytest.raises(ConfigError, match="order 1"):
        knn_edges(torch.randn(1, 4, 3), 0)


def test_relabelling_nodes_relabels_edges() -> None:
    z, order = torch.randn(1, 9, 4), torch.randperm(9)
    plain = {tuple(edge) for edge in knn_edges(z, 3)[0].tolist()}
    moved = {tuple(order[edge].tolist()) for edge in knn_edges(z[:, order], 3)[0]}
    assert moved == plain


def test_edge_features_are_differences() -> None:
    nodes, edges = torch.randn(2, 5, 3), torch.tensor([[[0, 4], [3, 1]], [[2, 0], [1, 4]]])
    found = edge_features(nodes, edges)
    torch.testing.assert_close(found[1, 0], nodes[1, 2] - nodes[1, 0])
    torch.testing.assert_close(found[0, 1], nodes[0, 3] - nodes[0, 1])
    torch.testing.assert_close(edge_features(nodes, edges.flip(-1)), -found)
