import numpy as np
import pytest
import torch

from crossband.shared.errors import ConfigError
from crossband.spatiotemporal.augmentation import DailyCycle
from crossband.spatiotemporal.data.fitting import Fit
from crossband.spatiotemporal.data.grid import open_grid
from crossband.spatiotemporal.data.normalisation import Climatology, Normalisation
from crossband.spatiotemporal.data.synthetic import make_synthetic
from crossband.spatiotemporal.data.windows import GridWindows, Part


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    root = tmp_path_factory.mktemp("w")
    make_synthetic(root, hours=120, height=4, width=4)
    grid = open_grid([root])

    def make(climatology=True):
        background = Climatology.fit(grid, 0, 120) if climatology else None
        scaling = Normalisation.fit(grid, 0, 120)
        part = Part(0, 120, "", "")
        return GridWindows(grid, part, 3, 3, scaling, Fit((4, 4), (4, 4)), background)

    return make


def test_fields_gain_a_multiple_of_the_daily_cycle(windows):
    data = windows()
    batch = torch.utils.data.default_collate([data[i] for i in range(4)])
    torch.manual_seed(0)
    changed = DailyCycle(0.5, data)(batch)
    daily_mean = data.normalisation.apply(data.climatology.fields().mean(axis=0))
    cycle = batch["background"] - torch.from_numpy(daily_mean)
    change = torch.cat([changed["image"] - batch["image"], changed["target"] - batch["target"]], 1)
    factors = (change / cycle).flatten(1).median(dim=1).values
    assert torch.allclose(change, factors.view(-1, 1, 1, 1, 1) * cycle, atol=1e-5)
    assert len(np.unique(factors.numpy().round(5))) == 4 and factors.min() > -1
    assert changed["background"] is batch["background"]


def test_it_needs_a_background(windows):
    with pytest.raises(ConfigError, match="--background"):
        DailyCycle(0.5, windows(climatology=False))
