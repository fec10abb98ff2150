from __future__ import annotations

import pytest
import torch

from crossband.medical.lvm_med.graphs import knn_edges
from crossband.medical.lvm_med.message_passing import GCN, GraphConvs
from crossband.shared.errors import ConfigError

EDGES = torch.tensor([[[0, 1], [0, 2], [1, 2], [3, 0]]])


@pytest.mark.parametrize("degree", ["printed", "with_loops"])
def test_gcn_is_the_formula(degree: str) -> None:
    torch.manual_seed(0)
    network, nodes = GCN(3, 5, degree=degree), torch.randn(1, 4, 3)
    adjacency = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]).float()
    loops = adjacency + torch.eye(4)
    counts = torch.tensor([2, 1, 1, 1]) if degree == "printed" else loops.sum(1)
    mix = torch.diag(counts**-0.5) @ loops @ torch.diag(counts**-0.5)
    first, second = network.weights
    wanted = mix @ (mix @ nodes[0] @ first).relu() @ second
    torch.testing.assert_close(network(nodes, EDGES)[0], wanted)


def test_a_node_alone_keeps_itself() -> None:
    network, nodes = GCN(3, 4, layers=1), torch.randn(2, 1, 3)
    alone = network(nodes, torch.zeros(2, 0, 2, dtype=torch.long))
    torch.testing.assert_close(alone, nodes @ network.weights[0])


def test_graph_convs_sum_what_comes_in() -> None:
    torch.manual_seed(0)
    network, nodes = GraphConvs(3, 4, layers=1), torch.randn(1, 4, 3)
    (conv,) = network.convs
    x = nodes[0]
    heard = torch.stack([x[3], x[0], x[0] + x[1], torch.zeros(3)])
    wanted = heard @ conv.lin_rel.weight.T + conv.lin_rel.bias + x @ conv.lin_root.weight.T
    torch.testing.assert_close(network(nodes, EDGES)[0], wanted)


def test_keys_are_the_drafts() -> None:
    parts = ("lin_rel.weight", "lin_rel.bias", "lin_root.weight")
    assert set(GraphConvs(3, 3).state_dict()) == {f"convs.{i}.{p}" for i in (0, 1) for p in parts}


def test_dropout_is_between_layers_and_in_training_only() -> None:
    torch.manual_seed(0)
    network, nodes = GraphConvs(8, 8, dropout=1.0), torch.randn(1, 4, 8)
    dropped = network.train()(nodes, EDGES)
    torch.testing.assert_close(dropped, network.convs[1].lin_rel.bias.expand_as(dropped))
    assert not torch.equal(network.eval()(nodes, EDGES), dropped)
    single = GraphConvs(8, 8, layers=1, dropout=1.0)
    assert torch.equal(single.train()(nodes, EDGES), single.eval()(nodes, EDGES))


@pytest.mark.parametrize("network", [GCN(4, 6), GraphConvs(4, 6, dropout=0.0)])
def test_relabelling_nodes_relabels_features(network: torch.nn.Module) -> None:
    nodes, order = torch.randn(2, 8, 4), torch.randperm(8)
    plain = network(nodes, knn_edges(nodes, 3))
    moved = network(nodes[:, order], knn_edges(nodes[:, order], 3))
    torch.testing.assert_close(moved, plain[:, order])


@pytest.mark.parametrize("network", [GCN(3, 2), GraphConvs(3, 2, dropout=0.0)])
def test_gradients(network: torch.nn.Module) -> None:
    nodes = torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: network.double()(x, EDGES), nodes)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="layers"):
        GCN(3, layers=0)
    with pytest.raises(ConfigError, match="degree"):
        GCN(3, degree="both")
