import pytest
import torch
from torch import nn

from crossband.shared.errors import ConfigError
from crossband.spatiotemporal.forecast_network import ForecastNetwork, LinearSkip


class Shift(nn.Module):
    """Continues a ramp: each output frame is the input frame of the same place plus T."""

    def forward(self, x):
        return x[:, :, :1] + x.shape[1]


def ramp(length):
    return torch.arange(float(length)).view(1, length, 1, 1, 1)


@pytest.mark.parametrize("horizon", [1, 3, 4, 9])
def test_shorter_horizons_are_cut_and_longer_ones_rolled_out(horizon):
    forecast = ForecastNetwork(Shift(), 4, horizon)(ramp(4))
    assert forecast.flatten().tolist() == list(range(4, 4 + horizon))


def windows(count=40, history=3, horizon=2):
    """Fields that obey x[t+1] = 0.5 x[t] + 0.3 x[t-1] + 1, one item per cell."""
    generator = torch.Generator().manual_seed(0)
    frames = [torch.randn(count, 1, 4, 5, generator=generator) for _ in range(2)]
    for _ in range(history + horizon):
        frames.append(0.5 * frames[-1] + 0.3 * frames[-2] + 1)
    series = torch.stack(frames[-history - horizon :], dim=1)
    mask = torch.ones(count, horizon, 1, 4, 5, dtype=torch.bool)
    return [
        {"image": s[:history], "target": s[history:], "mask": m}
        for s, m in zip(series, mask, strict=True)
    ]


def test_the_skip_finds_a_linear_law_but_for_the_penalty():
    skip = LinearSkip(3, 2, 1)
    data = windows()
    skip.fit(data)
    image, target = (torch.stack([item[k] for item in data]) for k in ("image", "target"))
    assert torch.allclose(skip(image), target, atol=0.05)
    error = (skip(image) - target).square().mean(dim=(0, 2, 3, 4)).sqrt()
    assert torch.allclose(skip.error[:, 0], error, rtol=0.05)


def test_cells_not_observed_do_not_count():
    data = windows()
    clean, dirty = LinearSkip(3, 2, 1), LinearSkip(3, 2, 1)
    for item in data:
        item["mask"][..., 0, 0] = False
    clean.fit(data)
    for item in data:
        item["target"][..., 0, 0] = 1e6
    dirty.fit(data)
    assert torch.equal(clean.weight, dirty.weight)


def test_with_a_skip_the_network_starts_at_zero():
    skip = LinearSkip(3, 2, 1)
    skip.fit(windows())
    network = ForecastNetwork(nn.Sequential(nn.Linear(5, 5)), 3, 2, skip=skip)
    image = torch.randn(2, 3, 1, 4, 5)
    assert torch.equal(network(image), skip(image))
    assert network.error_scale.shape == (2, 1, 1, 1)


class Spy(nn.Module):
    def forward(self, x):
        self.seen = x
        return x[:, :, :1] * 0


def test_the_background_is_taken_off_and_shown_for_past_and_future():
    spy = Spy()
    network = ForecastNetwork(spy, 3, 3, climatology=torch.zeros(24, 1, 2, 2))
    frames, background = torch.randn(1, 3, 1, 2, 2), torch.randn(1, 6, 1, 2, 2)
    network(frames, background)
    assert torch.equal(spy.seen[:, :, :1], frames - background[:, :3])
    assert torch.equal(spy.seen[:, :, 1:2], background[:, :3])
    assert torch.equal(spy.seen[:, :, 2:], background[:, 3:])
    with pytest.raises(ConfigError, match="climatology"):
        network(frames)


@pytest.mark.parametrize("horizon", [2, 3, 7])
def test_only_the_frames_that_were_trained_are_fed_back(horizon):
    network = ForecastNetwork(Shift(), 4, horizon, leads=2, climatology=torch.zeros(1, 1, 1, 1))
    background = torch.zeros(1, 4 + network.frames_ahead, 1, 1, 1)
    assert network(ramp(4), background).flatten().tolist() == list(range(4, 4 + horizon))
