import torch
from torch import nn

from crossband.shared.training.ema import WeightAverage


def test_average_follows_the_formula_and_is_applied_for_a_block():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    average = WeightAverage(model, decay=0.5)
    expected = 0.0
    for step in range(1, 12):
        nn.init.constant_(model.weight, float(step))
        average.update(model)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with average.applied_to(model):
        assert torch.allclose(model.weight, torch.tensor([[expected]]))
    assert float(model.weight.detach()) == 11.0


def test_state_goes_on_where_it_was():
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    one, two = WeightAverage(model, 0.9), WeightAverage(model, 0.9)
    nn.init.ones_(model.weight)
    one.update(model)
    two.load_state_dict(one.state_dict())
    nn.init.zeros_(model.weight)
    one.update(model)
    two.update(model)
    assert all(torch.equal(one.average[k], two.average[k]) for k in one.average)
