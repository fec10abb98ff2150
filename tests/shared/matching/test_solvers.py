from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from crossband.shared import conformance
from crossband.shared.errors import ConfigError
from crossband.shared.matching import SOLVERS, Problem, solve, solve_all, solve_problem
from crossband.shared.matching import exact as exact_module
from crossband.shared.matching.assignment import linear_assignment, lower_bound
from crossband.shared.matching.exact import count_matchings
from crossband.shared.matching.problem import energy

SIZES = ((1, 1, 1), (1, 4, 2), (3, 3, 1), (4, 6, 2), (5, 5, 4), (6, 4, 3), (6, 6, 3))
QUICK = {"chains": 8, "sweeps": 4}


def check_feasible(problem: Problem, x: torch.Tensor) -> None:
    assert set(x.unique().tolist()) <= {0, 1}
    assert x.sum(1).max() <= 1 and x.sum(2).max() <= 1
    if not problem.allow_unmatched:
        assert (x.sum((1, 2)) == min(problem.left, problem.right)).all()


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("allow_unmatched", [True, False])
@pytest.mark.parametrize(("n", "m", "k"), SIZES)
def test_search_finds_the_optimum_of_small_problems(n, m, k, allow_unmatched, random_problem):
    problem = random_problem(40, n, m, k, allow_unmatched=allow_unmatched)
    best = solve_problem(problem, solver="exact")
    found = solve_problem(problem, solver="search", seed=1)
    torch.testing.assert_close(found.energy, best.energy, rtol=0, atol=1e-9)
    for matching in (best, found):
        check_feasible(problem, matching.x)
        torch.testing.assert_close(matching.energy, energy(problem, matching.x))
    torch.testing.assert_close(best.bound, best.energy)
    assert best.gap.max() == 0


@pytest.mark.parametrize("allow_unmatched", [True, False])
@pytest.mark.parametrize(("n", "m"), [(4, 4), (5, 4), (3, 5)])
def test_programme_equals_enumeration(n, m, allow_unmatched, random_problem, monkeypatch):
    problem = random_problem(6, n, m, 3, seed=3, allow_unmatched=allow_unmatched)
    enumerated = solve_problem(problem, solver="exact")
    monkeypatch.setattr(exact_module, "_MOST_ENUMERATED", 0)
    programmed = solve_problem(problem, solver="exact")
    torch.testing.assert_close(programmed.energy, enumerated.energy, rtol=0, atol=1e-9)


@pytest.mark.parametrize("allow_unmatched", [True, False])
def test_search_finds_the_optimum_of_the_programme(allow_unmatched, random_problem):
    problem = random_problem(2, 7, 8, 3, seed=5, allow_unmatched=allow_unmatched)
    best = solve_problem(problem, solver="exact")
    found = solve_problem(problem, solver="search")
    torch.testing.assert_close(found.energy, best.energy, rtol=0, atol=1e-9)


def test_a_short_time_limit_is_told(random_problem):
    with pytest.raises(ConfigError, match="no proven optimum for 12 x 12 nodes in 0.01 s"):
        solve_problem(random_problem(1, 12, 12, 5), solver="exact", time_limit=0.01)


def test_number_of_matchings(random_problem):
    assert count_matchings(random_problem(1, 3, 3)) == 34  # 1 + 9 + 18 + 6
    assert count_matchings(random_problem(1, 3, 5, allow_unmatched=False)) == 60
    for shape in ((3, 3), (4, 2), (2, 4)):
        for free in (True, False):
            problem = random_problem(1, *shape, allow_unmatched=free)
            every = exact_module._all_partners(*shape, free)
            assert len(every) == len(every.unique(dim=0)) == count_matchings(problem)


@pytest.mark.parametrize("solver", ["exact", "search", "auto"])
def test_relabelled_nodes_relabel_the_solution(solver, random_problem):
    problem = random_problem(8, 6, 6, 3, seed=7)
    rows, columns = torch.randperm(6), torch.randperm(6)
    moved = Problem(
        problem.unary[:, rows][:, :, columns],
        rows.argsort()[problem.left_edges],
        columns.argsort()[problem.right_edges],
        problem.quadratic,
    )
    old, new = (solve_problem(p, solver=solver) for p in (problem, moved))
    torch.testing.assert_close(new.x, old.x[:, rows][:, :, columns])
    torch.testing.assert_close(new.y, old.y)
    torch.testing.assert_close(new.energy, old.energy)


def test_the_same_seed_gives_the_same_matching_on_any_number_of_threads(random_problem):
    problem = random_problem(70, 16, 16, 5)
    problem = Problem(
        problem.unary.float(), problem.left_edges, problem.right_edges, problem.quadratic.float()
    )
    once = solve_problem(problem, solver="search", seed=4, **QUICK)
    torch.set_num_threads(2)
    again = solve_problem(problem, solver="search", seed=4, **QUICK)
    assert torch.get_num_threads() == 2
    assert once.x.dtype == torch.float32 and torch.equal(once.x, again.x)
    other = solve_problem(problem, solver="search", seed=5, **QUICK)
    assert not torch.equal(once.x, other.x)


def test_more_effort_does_not_raise_the_energy(random_problem):
    problem = random_problem(6, 14, 14, 5, seed=11)
    little = solve_problem(problem, solver="search", chains=2, sweeps=1)
    much = solve_problem(problem, solver="search", chains=2, sweeps=1, seconds=0.5)
    assert (much.energy <= little.energy).all() and (much.energy < little.energy).any()


@pytest.mark.parametrize("solver", ["exact", "search", "auto", "lap", "pylibmgm"])
@pytest.mark.parametrize("allow_unmatched", [True, False])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (4, 4), (3, 5), (5, 3)])
def test_without_edges_it_is_linear_assignment(solver, n, m, allow_unmatched):
    if solver == "pylibmgm":
        pytest.importorskip("pylibmgm")
    unary = torch.randn(5, n, m, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    edges, quadratic = torch.zeros(5, 0, 2), torch.zeros(5, 0, 0)
    found = solve(
        unary, edges, edges, quadratic, solver=solver, allow_unmatched=allow_unmatched, bound=True
    )
    usable = unary.clamp(max=0) if allow_unmatched else unary
    best = [usable[b].numpy()[linear_sum_assignment(usable[b].numpy())].sum() for b in range(5)]
    torch.testing.assert_close(found.energy, torch.tensor(best))
    torch.testing.assert_close(found.bound, found.energy)
    assert found.y.shape == (5, 0, 0)


def test_first_order_ignores_pairs_but_counts_them(random_problem):
    problem = random_problem(5, 5, 5, 2)
    found = solve_problem(problem, solver="lap")
    assert found.bound is None and found.gap is None
    torch.testing.assert_close(found.energy, energy(problem, found.x))
    partners = linear_assignment(problem.unary)
    assert torch.equal(found.x.sum(2) > 0, partners < 5)


@pytest.mark.parametrize("allow_unmatched", [True, False])
@pytest.mark.parametrize(("n", "m"), [(5, 5), (4, 6), (6, 4)])
def test_bound_is_below_the_optimum(n, m, allow_unmatched, random_problem):
    problem = random_problem(30, n, m, 2, seed=9, allow_unmatched=allow_unmatched)
    best = solve_problem(problem, solver="exact").energy
    bound = lower_bound(problem)
    assert (bound <= best + 1e-9).all()
    found = solve_problem(problem, solver="search", bound=True, **QUICK)
    assert (found.gap >= 0).all()


@pytest.mark.parametrize("strength", [2.0, 80.0])
def test_the_perturbed_problem_of_the_loss_is_solved(strength, random_problem):
    problem = random_problem(20, 6, 6, 4, seed=13)
    shift = strength * (1 - 2 * torch.eye(6, dtype=torch.float64))
    moved = Problem(
        problem.unary + shift, problem.left_edges, problem.right_edges, problem.quadratic
    )
    best = solve_problem(moved, solver="exact")
    found = solve_problem(moved, solver="search")
    torch.testing.assert_close(found.energy, best.energy, rtol=0, atol=1e-9)
    if strength == 80:
        torch.testing.assert_close(best.x, torch.eye(6, dtype=torch.float64).expand(20, 6, 6))


@pytest.mark.parametrize("solver", ["exact", "search"])
def test_equal_costs_and_positive_costs_are_defined(solver):
    edges = torch.tensor([[[0, 1], [1, 2], [2, 0]]])
    same = solve(torch.zeros(1, 3, 3), edges, edges, torch.zeros(1, 3, 3), solver=solver)
    assert same.energy.tolist() == [0]
    dear = solve(torch.ones(1, 3, 3), edges, edges, torch.ones(1, 3, 3), solver=solver)
    assert dear.energy.tolist() == [0] and dear.x.sum() == 0
    forced = solve(
        torch.ones(1, 3, 3), edges, edges, torch.ones(1, 3, 3), solver=solver, allow_unmatched=False
    )
    assert forced.energy.tolist() == [3]  # the triangle reversed: no directed edge matches


def test_complete_graphs_and_an_empty_batch(random_problem):
    problem = random_problem(3, 4, 4, 9)  # more neighbours than nodes: all others
    assert problem.left_edges.shape[1] == 12
    best, found = (solve_problem(problem, solver=s) for s in ("exact", "search"))
    torch.testing.assert_close(found.energy, best.energy)
    for solver in ("search", "lap"):
        none = solve_problem(problem[:0], solver=solver)
        assert none.x.shape == (0, 4, 4) and none.energy.shape == (0,)


def test_mixed_sizes_keep_their_order(random_problem):
    sizes = ((2, 3, 4), (1, 5, 5), (3, 3, 4))
    problems = [random_problem(*size, 2, seed=seed) for seed, size in enumerate(sizes)]
    together = solve_all(problems, solver="exact")
    for problem, matching in zip(problems, together, strict=True):
        alone = solve_problem(problem, solver="exact")
        torch.testing.assert_close(matching.energy, alone.energy)
        torch.testing.assert_close(matching.x, alone.x)


def test_pylibmgm_comes_near_the_optimum(random_problem):
    pytest.importorskip("pylibmgm")
    for free in (True, False):
        problem = random_problem(10, 5, 5, 2, allow_unmatched=free)
        best = solve_problem(problem, solver="exact")
        found = solve_problem(problem, solver="pylibmgm")
        check_feasible(problem, found.x)
        assert (found.energy >= best.energy - 1e-9).all()
        assert (found.energy - best.energy).mean() < 0.1


def test_unknown_names_and_options_are_refused(random_problem):
    problem = random_problem(1, 7, 7)
    with pytest.raises(ConfigError, match="Did you mean 'search'"):
        solve_problem(problem, solver="serch")
    with pytest.raises(ConfigError, match="'search' does not take one of the options restarts"):
        solve_problem(problem, solver="search", restarts=2)
    with pytest.raises(ConfigError, match="no budget"):
        solve_problem(problem, solver="search", chains=0)
    assert set(SOLVERS) == {"auto", "exact", "search", "pylibmgm", "lap"}


def test_too_large_graphs_are_refused():
    edges, none = torch.zeros(1, 0, 2), torch.zeros(1, 0, 0)
    with pytest.raises(ConfigError, match="cost table of"):
        solve(torch.zeros(1, 300, 300), edges, edges, none, solver="search")


def _fixture(shared_fixtures):
    return conformance.read_fixture(shared_fixtures / "gm_solver_instances.safetensors")


@pytest.mark.parametrize("solver", ["auto", "exact", "search"])
def test_golden_instances_reach_the_proven_optimum(solver, shared_fixtures):
    fixture = _fixture(shared_fixtures)
    for index in range(fixture.config["count"]):
        parts = [
            fixture.inputs[f"{index}.{name}"][None]
            for name in ("unary", "edges_left", "edges_right", "quadratic")
        ]
        found = solve(*parts, solver=solver)
        torch.testing.assert_close(
            found.energy, fixture.outputs[f"{index}.energy"], rtol=1e-6, atol=1e-6
        )
        for strength in (2, 80):
            eye = torch.eye(parts[0].shape[1], dtype=torch.float64)
            moved = Problem(parts[0] + strength * (1 - 2 * eye), *parts[1:])
            stored = fixture.outputs[f"{index}.matching_lambda{strength}"][None]
            found = solve_problem(moved, solver=solver)
            assert float(found.energy - energy(moved, stored)) <= 1e-6


def test_golden_file_passes_verification(shared_fixtures):
    report = conformance.verify_file(shared_fixtures / "gm_solver_instances.safetensors")
    assert report.passed, report
    assert len(report.checks) == 8


@pytest.fixture
def shared_fixtures(request):
    folder = request.config.rootpath.parent / "shared" / "fixtures" / "medical"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder
