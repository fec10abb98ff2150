from __future__ import annotations

from itertools import product

import pytest
import torch

from crossband.shared.errors import ConfigError
from crossband.shared.matching import Problem
from crossband.shared.matching.problem import (
    complete,
    cost_tables,
    edge_matching,
    energy,
    to_matching,
)


def one(unary, left, right, quadratic) -> Problem:
    edges = (torch.tensor(e).reshape(1, -1, 2) for e in (left, right))
    shape = (1, len(left), len(right))
    return Problem(
        torch.tensor([unary], dtype=torch.float64),
        *edges,
        torch.tensor(quadratic, dtype=torch.float64).reshape(shape),
    )


def test_energy_of_directed_repeated_edges_by_hand():
    # Left (0,1) twice and (1,0); right (0,1). X = identity: the first two edges match, each once.
    problem = one(
        [[1.0, 5.0], [7.0, 2.0]], [[0, 1], [0, 1], [1, 0]], [[0, 1]], [[10.0], [20.0], [40.0]]
    )
    straight, crossed = torch.eye(2)[None].double(), torch.eye(2).flip(0)[None].double()
    assert energy(problem, straight).tolist() == [1 + 2 + 10 + 20]
    assert energy(problem, crossed).tolist() == [5 + 7 + 40]
    assert edge_matching(problem, straight).flatten().tolist() == [1, 1, 0]
    assert edge_matching(problem, crossed).flatten().tolist() == [0, 0, 1]
    assert energy(problem, torch.zeros(1, 2, 2)).tolist() == [0]


def test_tables_give_the_same_energy_as_the_definition(random_problem):
    problem = random_problem(4, 4, 5, 3)
    nodes, pairs = cost_tables(problem)
    torch.testing.assert_close(pairs, pairs.transpose(1, 2))
    partners = torch.tensor([[0, 5, 3, 1], [5, 5, 5, 5], [4, 3, 2, 1], [1, 0, 5, 4]])
    matching = to_matching(problem, partners)
    for graph in range(4):
        direct = 0.0
        x, y = matching.x[graph], 0.0
        direct += float((problem.unary[graph] * x).sum())
        for e, f in product(range(problem.left_edges.shape[1]), range(15)):
            (i, k), (j, l) = problem.left_edges[graph, e], problem.right_edges[graph, f]  # noqa: E741
            y = float(x[i, j] * x[k, l])
            assert matching.y[graph, e, f] == y
            direct += float(problem.quadratic[graph, e, f]) * y
        assert float(matching.energy[graph]) == pytest.approx(direct, abs=1e-12)
        index = torch.arange(4) * 6 + partners[graph]
        field = nodes[graph] + pairs[graph][index].sum(0) / 2
        assert float(field[index].sum()) == pytest.approx(direct, abs=1e-12)


def test_low_precision_is_widened_and_gradients_are_cut():
    unary = torch.zeros(1, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    edges = torch.tensor([[[0, 1]]], dtype=torch.int32)
    problem = Problem(unary, edges, edges, torch.ones(1, 1, 1, dtype=torch.float16))
    assert problem.unary.dtype == problem.quadratic.dtype == torch.float32
    assert not problem.unary.requires_grad


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"left_edges": [[[0, 1], [1, 1]]]},
            r"edge 1 of graph 0 in left_edges, \(1, 1\), is a loop",
        ),
        ({"right_edges": [[[0, 3]]]}, r"right_edges, \(0, 3\), leaves the graph"),
        ({"right_edges": [[[-1, 1]]]}, r"leaves the graph"),
        ({"unary": [[[0.0, float("nan")], [0.0, 0.0]]]}, r"unary costs hold nan at \[0, 0, 1\]"),
        ({"quadratic": [[[0.0], [float("inf")]]]}, r"quadratic costs hold inf at \[0, 1, 0\]"),
        ({"quadratic": [[[0.0]]]}, "do not fit"),
        ({"unary": [[[0.0], [0.0]], [[0.0], [0.0]]]}, "do not fit"),
    ],
)
def test_bad_problems_are_refused_in_one_sentence(change, words):
    fields = {
        "unary": [[[0.0, 1.0], [1.0, 0.0]]],
        "left_edges": [[[0, 1], [1, 0]]],
        "right_edges": [[[0, 1]]],
        "quadratic": [[[0.0], [0.0]]],
    }
    tensors = {name: torch.tensor(value) for name, value in (fields | change).items()}
    with pytest.raises(ConfigError, match=words):
        Problem(**tensors)


def test_complete_uses_up_the_smaller_side():
    partners = torch.tensor([[3, 1, 3], [3, 3, 3]])
    assert complete(partners, 3).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert complete(torch.tensor([[2, 1, 2]]), 2).tolist() == [[0, 1, 2]]
