from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from crossband.shared.config import OptimizerConfig, ScheduleConfig
from crossband.shared.errors import ConfigError
from crossband.shared.pretraining.mae import MAE, MAETask
from crossband.shared.pretraining.self_distillation import (
    SelfDistillationTask,
    hidden_state,
    next_round,
)

SIZE: dict[str, Any] = {
    **{"img_size": 16, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 2},
    **{"num_heads": 2, "decoder_embed_dim": 8, "decoder_depth": 1, "decoder_num_heads": 2},
}


def network(seed: int = 0, **changes: Any) -> MAE:
    torch.manual_seed(seed)
    return MAE(**{**SIZE, **changes})


def images(batch: int = 4) -> Tensor:
    return torch.randn(batch, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def task(model: MAE, teacher: MAE, weight: float = 1.0, **options: Any) -> SelfDistillationTask:
    return SelfDistillationTask(
        model,
        OptimizerConfig(),
        ScheduleConfig(),
        teacher=teacher,
        distillation_weight=weight,
        **options,
    )


def fit(trained: MAETask, steps: int) -> None:
    parameters = [p for p in trained.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 3e-3)
    for _ in range(steps):
        loss = trained.training_step({"image": images()}, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it() -> None:
    model = network()
    trained = task(model, copy.deepcopy(model))
    assert trained.distillation(images()) == 0
    plain = MAETask(model, OptimizerConfig(), ScheduleConfig())
    torch.manual_seed(2)
    wanted = plain.loss({"image": images()})
    torch.manual_seed(2)
    assert torch.equal(trained.loss({"image": images()}), wanted)


def test_the_distance_is_the_squared_norm_per_token() -> None:
    model, shift = network(), torch.randn(16, generator=torch.Generator().manual_seed(3))
    teacher = copy.deepcopy(model)
    with torch.no_grad():
        teacher.norm.bias += shift  # moves every token of the last hidden state
    trained = task(model, teacher, weight=0.5)
    torch.testing.assert_close(trained.distillation(images()), shift.square().sum())
    torch.manual_seed(2)
    both = trained.loss({"image": images()})
    torch.manual_seed(2)
    alone = MAETask(model, OptimizerConfig(), ScheduleConfig()).loss({"image": images()})
    torch.testing.assert_close(both, alone + 0.5 * shift.square().sum())
    trained.distillation(images()).backward()
    torch.testing.assert_close(model.norm.bias.grad, -2 * shift, rtol=1e-4, atol=1e-5)
    assert all(p.grad is None for p in teacher.parameters())


def test_it_compares_whole_images() -> None:
    model = network()
    x = hidden_state(model, images())
    assert x.shape == (4, 17, 16)
    torch.testing.assert_close(x.mean(-1), torch.zeros(4, 17), rtol=0, atol=1e-5)


def test_the_state_holds_the_student_alone() -> None:
    trained = task(network(), network(1))
    assert {k.removeprefix("model.") for k in trained.state_dict()} == network().state_dict().keys()


def test_a_round_starts_again_and_is_taught_by_the_one_before() -> None:
    start = network().state_dict()
    seen = []

    def augment(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(True)
        return batch

    first = task(network(), network(1), weight=0.3, augment=augment)
    fit(first, 2)
    last = {key: value.clone() for key, value in first.model.state_dict().items()}
    assert not torch.equal(last["norm.bias"], start["norm.bias"])
    second = next_round(first)
    for key, value in second.model.state_dict().items():
        assert torch.equal(value, start[key])
    for key, value in second._teacher[0].state_dict().items():
        assert torch.equal(value, last[key])
    assert second.distillation_weight == 0.3
    fit(second, 1)
    assert len(seen) == 3
    assert all(torch.equal(value, last[k]) for k, value in first.model.state_dict().items())
    assert any(p.requires_grad for p in second.model.parameters())
    assert next_round(second).model.state_dict()["norm.bias"].eq(start["norm.bias"]).all()


def test_the_teacher_holds_the_student_back() -> None:
    base = network()
    further = MAETask(copy.deepcopy(base), OptimizerConfig(), ScheduleConfig())
    torch.manual_seed(0)
    fit(further, 60)
    near = task(copy.deepcopy(base), further.model, weight=1.0)
    free = task(copy.deepcopy(base), further.model, weight=0.0)
    before = near.distillation(images())
    for trained in (near, free):
        torch.manual_seed(1)
        fit(trained, 60)
    assert near.distillation(images()) < 0.3 * before
    assert near.distillation(images()) < 0.5 * free.distillation(images())


def test_a_teacher_of_another_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="give both the same size"):
        task(network(), network(embed_dim=24))
