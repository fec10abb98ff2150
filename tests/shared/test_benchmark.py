from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from crossband.shared.benchmark import Case, measure


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


def test_training_runs_backward_in_training_mode() -> None:
    model = Sleepy(0.0)
    measure([Case("a", model, torch.ones(4, 8), training=True)], 1)
    assert all(model.calls)
    assert model.linear.weight.grad.abs().sum() > 0


def test_peak_memory_sees_what_a_step_allocates() -> None:
    class Big(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(64, 2**20).sum() + x  # 256 MB

    (result,) = measure([Case("big", Big(), torch.zeros(1))], 1)
    assert result.peak_megabytes is None or 200 < result.peak_megabytes < 400
