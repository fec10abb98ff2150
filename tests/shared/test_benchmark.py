from __future__ import annotations

import sys
import time

import pytest
import torch
from torch import Tensor, nn

from crossband.shared import benchmark
from crossband.shared.benchmark import Case, interleave, measure


class Sleepy(nn.Module):
    """Sleeps, then multiplies by a matrix."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.linear = nn.Linear(8, 8, bias=False)
        self.calls: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(self.training)
        time.sleep(self.seconds)
        return self.linear(x)


def test_median_throughput_and_counts() -> None:
    fast, slow = Sleepy(0.0), Sleepy(0.02)
    cases = [Case("a", fast, torch.zeros(4, 8)), Case("b", slow, torch.zeros(2, 8))]
    quick, long = measure(cases, 3)
    assert long.milliseconds >= 20
    assert quick.milliseconds < long.milliseconds
    assert long.samples_per_second == 2 / (long.milliseconds / 1e3)
    assert (long.batch, long.parameters, long.gigaflops) == (2, 64, 2 * 64 / 1e9)
    assert not any(fast.calls)
    assert (long.shape, long.rounds, long.training_milliseconds) == ([8], 3, None)


def test_training_runs_backward_in_training_mode() -> None:
    model = Sleepy(0.005)
    (result,) = measure([Case("a", model, torch.ones(4, 8), training=True)], 2)
    inference, training = 2 + 2 + 1 + 1, 2 + 2 + 2 + 1  # warm-up, rounds, memory; FLOPs, fit
    assert model.calls in (
        [False] * inference + [True] * training,
        [False] * inference + [True] * (training - 2),  # where memory cannot be told
    )
    assert model.linear.weight.grad.abs().sum() > 0
    assert result.training_milliseconds >= 5 and result.milliseconds >= 5


def test_time_limit_leaves_one_round_of_each() -> None:
    calls = []
    for repeats, seconds, expected in ((5, 0.0, 1), (3, float("inf"), 3)):
        calls.clear()
        steps = [lambda: calls.append("a"), lambda: calls.append("b")]
        times = interleave(steps, repeats, torch.device("cpu"), seconds)
        assert [len(taken) for taken in times] == [expected] * 2
        assert calls == ["a", "b"] * (len(calls) // 2)


def test_peak_memory_sees_what_a_step_allocates() -> None:
    class Big(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(64, 2**20).sum() + x  # 256 MB

    (result,) = measure([Case("big", Big(), torch.zeros(1))], 1)
    assert result.peak_megabytes is None or 200 < result.peak_megabytes < 400


def test_a_training_step_without_room_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "peak_megabytes", lambda step, device: next(held))
    monkeypatch.setattr(benchmark, "_available_megabytes", lambda: 310.0)
    cases = [Case("a", Sleepy(0.0), torch.ones(size, 8), training=True) for size in (6, 7)]
    # Two of inference; steps of one and two samples, twice: 260 for 6 of them, 300 for 7; a step.
    held = iter([1.0, 1.0, 60.0, 100.0, 60.0, 100.0, 1.0])
    six, seven = measure(cases, 1)
    if sys.platform.startswith("linux"):
        assert six.training_milliseconds is not None and seven.training_milliseconds is None
