import json
import math

import pytest
import torch
from safetensors import safe_open
from torch import nn

from crossband.shared.config import OptimizerConfig, ScheduleConfig
from crossband.shared.errors import ConfigError
from crossband.shared.registry import create_model
from crossband.shared.training.optimizers import build_optimizer, build_schedule, parameter_groups


class Layered(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 3)
        self.block = nn.Linear(3, 3)
        self.head = nn.Linear(3, 1)

    def layer_index(self, name):
        return ["embed", "block", "head"].index(name.split(".")[0])


def test_layer_decay_scales_the_rate_from_the_head_down():
    groups = parameter_groups(Layered(), OptimizerConfig(lr=1.0, layer_decay=0.5))
    assert {g["lr"] for g in groups} == {0.25, 0.5, 1.0}
    assert sum(len(g["params"]) for g in groups) == 6


def test_norms_and_biases_can_be_spared_from_weight_decay():
    config = OptimizerConfig(weight_decay=0.3, decay_norm_and_bias=False)
    for group in parameter_groups(Layered(), config):
        assert {p.ndim for p in group["params"]} == ({1} if group["weight_decay"] == 0 else {2})


class Positioned(Layered):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, 4, 3))

    def no_weight_decay(self):
        return {"table", "cls_token"}


@pytest.mark.parametrize("norms", [True, False])
def test_parameters_that_the_network_names_take_no_weight_decay(norms):
    model, config = Positioned(), OptimizerConfig(weight_decay=0.3, decay_norm_and_bias=norms)
    decays = {
        id(p): g["weight_decay"] for g in parameter_groups(model, config) for p in g["params"]
    }
    assert decays[id(model.table)] == 0.0 and decays[id(model.head.weight)] == 0.3
    assert decays[id(model.head.bias)] == (0.3 if norms else 0.0)
    assert len(decays) == len(list(model.parameters()))


def test_layer_decay_needs_a_network_that_tells_its_layers():
    with pytest.raises(ConfigError, match="layer_decay"):
        parameter_groups(nn.Linear(2, 2), OptimizerConfig(layer_decay=0.7))


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lion", "lamb"])
def test_every_optimizer_lowers_a_quadratic(name):
    torch.manual_seed(0)
    model = nn.Linear(4, 1, bias=False)
    optimizer = build_optimizer(model, OptimizerConfig(name=name, lr=0.02, weight_decay=0.0))
    losses = []
    for _ in range(60):
        loss = model.weight.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


def rates(config, epochs=4, steps=5, lr=1.0):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=lr)
    schedule = build_schedule(optimizer, config, lr, epochs, steps)
    found = []
    for _ in range(epochs * steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_cosine_per_epoch_is_timms_closed_form():
    found = rates(ScheduleConfig(name="cosine", interval="epoch", min_lr=0.1))
    expected = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * e / 4)) for e in range(4)]
    assert found == pytest.approx([e for e in expected for _ in range(5)])


def test_warmup_rises_and_constant_stays():
    found = rates(ScheduleConfig(name="constant", warmup_fraction=0.25))
    assert found[:5] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert found[5:] == pytest.approx([1.0] * 15)


def test_onecycle_is_the_golden_curve(shared_dir):
    from safetensors.torch import load_file

    golden = load_file(shared_dir / "fixtures/spatiotemporal/metrics_and_data.safetensors")
    optimizer = torch.optim.AdamW(nn.Linear(1, 1).parameters(), lr=1e-3)
    schedule = build_schedule(optimizer, ScheduleConfig(name="onecycle"), 1e-3, 10, 10)
    for rate, beta in zip(
        golden["output.onecycle_lr"], golden["output.onecycle_beta1"], strict=True
    ):
        group = optimizer.param_groups[0]
        assert group["lr"] == pytest.approx(float(rate), rel=1e-9)
        assert group["betas"][0] == pytest.approx(float(beta), rel=1e-9)
        optimizer.step()
        if schedule.last_epoch < 99:
            schedule.step()


def test_positions_can_be_decayed_as_the_unip_code_does():
    model = Positioned()
    config = OptimizerConfig(weight_decay=0.3, decay_positions=True)
    decays = {
        id(p): g["weight_decay"] for g in parameter_groups(model, config) for p in g["params"]
    }
    assert decays[id(model.table)] == 0.3


def test_poly_is_mmsegs_linear_fall_times_warm_up():
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, OptimizerConfig(lr=2.0))
    config = ScheduleConfig(name="poly", warmup_fraction=0.1)
    schedule = build_schedule(optimizer, config, 2.0, epochs=10, steps_per_epoch=10)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(2e-6)
    assert rates[5] == pytest.approx(2 * 0.95 * (1 - 0.5 * (1 - 1e-6)))
    assert rates[10] == pytest.approx(2 * 0.9) and rates[99] == pytest.approx(2 * 0.01)


def test_betas_reach_adam_and_are_two():
    made = build_optimizer(nn.Linear(2, 2), OptimizerConfig(betas=[0.8, 0.95]))
    assert made.param_groups[0]["betas"] == (0.8, 0.95)
    with pytest.raises(ConfigError, match="give two numbers"):
        build_optimizer(nn.Linear(2, 2), OptimizerConfig(betas=[0.8]))


def recipe(shared_dir):
    """Return the published fine-tuning recipe: its settings, the epochs and the rates of them."""
    path = shared_dir / "fixtures/medical/mae_recipe.safetensors"
    if not path.is_file():
        pytest.skip("no fixture of the recipe")
    with safe_open(path, "pt") as file:
        settings = json.loads(file.metadata()["config"])
        return settings, file.get_tensor("input.epochs"), file.get_tensor("output.lr")


def test_the_trainer_follows_maes_published_curve(shared_dir):
    settings, epochs, wanted = recipe(shared_dir)
    lr, length = settings["schedule"]["lr"], settings["schedule"]["epochs"]
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": p, "lr": lr * s} for p, s in zip(parameters, (1.0, 0.55), strict=True)]
    optimizer = torch.optim.SGD(groups, lr=lr)
    config = ScheduleConfig(
        warmup_fraction=settings["schedule"]["warmup_epochs"] / length,
        warmup_from_zero=True,
        min_lr=settings["schedule"]["min_lr"],
    )
    steps = 10  # per epoch; the fixture has every half of an epoch
    schedule = build_schedule(optimizer, config, lr, length, steps)
    found = {}
    for step in range(length * steps + 1):
        found[step] = [group["lr"] for group in optimizer.param_groups]
        optimizer.step()
        schedule.step()
    for epoch, rate in zip(epochs.tolist(), wanted.tolist(), strict=True):
        step = round(epoch * steps)
        assert step == pytest.approx(epoch * steps)
        assert found[step] == pytest.approx([rate, 0.55 * rate], rel=1e-9, abs=1e-15)
    assert found[0] == [0.0, 0.0] and found[length * steps][1] == pytest.approx(0.55e-5)


@pytest.mark.parametrize("name, interval", [("poly", "step"), ("cosine", "epoch")])
def test_a_warm_up_from_zero_goes_with_the_cosine_only(name, interval):
    config = ScheduleConfig(name=name, interval=interval, warmup_from_zero=True)
    with pytest.raises(ConfigError, match="warmup_from_zero"):
        rates(config)


def test_groups_and_drop_paths_of_vit_small_are_those_of_the_recipe(shared_dir):
    settings, _, _ = recipe(shared_dir)
    model = create_model("vit_small_patch16", num_classes=14, global_pool="avg", drop_path_rate=0.2)
    config = OptimizerConfig(
        lr=1.0, weight_decay=0.05, decay_norm_and_bias=False, layer_decay=settings["layer_decay"]
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in parameter_groups(model, config)
        for parameter in group["params"]
    }
    wanted = {
        name: (group["lr_scale"], group["weight_decay"])
        for group in settings["groups"]
        for name in group["names"]
    }
    assert found.keys() == wanted.keys()
    for name, (scale, decay) in wanted.items():
        assert found[name] == (pytest.approx(scale, rel=1e-12), decay), name
    rates = [block.drop_path.rate for block in model.blocks]
    assert rates == pytest.approx(settings["drop_path"], abs=1e-7)
