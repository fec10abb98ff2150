import pytest
import torch
from torch import nn

from crossband.shared.config import OptimizerConfig, ScheduleConfig
from crossband.shared.tasks.forecasting import ForecastingTask, masked_mse


def test_with_everything_observed_it_is_the_mean_squared_error():
    a, b = torch.randn(2, 3, 1, 4, 4), torch.randn(2, 3, 1, 4, 4)
    full = torch.ones_like(a, dtype=torch.bool)
    assert masked_mse(a, b, full) == pytest.approx(float(nn.functional.mse_loss(a, b)))


def test_what_is_not_observed_changes_nothing():
    a = torch.randn(2, 3, 1, 4, 4, requires_grad=True)
    b, mask = torch.randn(2, 3, 1, 4, 4), torch.rand(2, 3, 1, 4, 4) > 0.5
    loss = masked_mse(a, b, mask)
    assert float(loss.detach()) == pytest.approx(float((a - b)[mask].square().mean().detach()))
    loss.backward()
    assert torch.all(a.grad[~mask] == 0)
    assert masked_mse(a, b, torch.zeros_like(mask)) == 0


class Zero(nn.Module):
    error_scale = torch.tensor([1.0, 2.0])[:, None, None, None]

    def forward(self, image):
        return image * 0


def test_errors_count_in_units_of_the_networks_error_scale():
    task = ForecastingTask(Zero(), OptimizerConfig(), ScheduleConfig())
    target = torch.tensor([1.0, 4.0]).view(1, 2, 1, 1, 1)
    batch = {"image": torch.ones(1, 2, 1, 1, 1), "target": target, "mask": target > 0}
    assert float(task.loss(batch)) == pytest.approx((1 + 4) / 2)
