from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from crossband.shared.config import (
    LoaderConfig,
    OptimizerConfig,
    RunOptions,
    ScheduleConfig,
    TrainerConfig,
)
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.metrics.ranking import auroc, mean_auroc
from crossband.shared.tasks.classification import ClassificationTask, asymmetric_loss
from crossband.shared.training.loop import Data, fit
from crossband.shared.training.run_folder import RunFolder

NAN = math.nan


def _task(model: nn.Module | None = None, **options: object) -> ClassificationTask:
    model = model or nn.Identity()
    return ClassificationTask(model, OptimizerConfig(lr=0.1), ScheduleConfig(), **options)


def _findings(unknown: bool) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    logits, label = torch.randn(6, 4), torch.randint(0, 2, (6, 4)).float()
    if unknown:
        label[0, 1] = label[2] = label[:5, 3] = NAN
    return logits.requires_grad_(), label


@pytest.mark.parametrize("pos_weight", [(), (1.0, 2.0, 0.5, 7.0)])
def test_loss_of_findings_is_torchs_over_the_known_labels(pos_weight: tuple[float, ...]) -> None:
    task = _task(pos_weight=pos_weight)
    weight = torch.tensor(pos_weight) if pos_weight else None
    logits, label = _findings(unknown=False)
    wanted = F.binary_cross_entropy_with_logits(logits, label, pos_weight=weight)
    torch.testing.assert_close(task.objective(logits, label), wanted)
    logits, label = _findings(unknown=True)
    known = ~label.isnan()
    every = F.binary_cross_entropy_with_logits(
        logits, label.nan_to_num(), pos_weight=weight, reduction="none"
    )
    loss = task.objective(logits, label)
    torch.testing.assert_close(loss, every[known].mean())
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[~known] == 0).all() and (gradient[known] != 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("class_weights", [(), (0.2, 1.0, 3.0)])
def test_loss_of_classes_is_torchs(class_weights: tuple[float, ...], smoothing: float) -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(8, 3), torch.randint(0, 3, (8,))
    label[:2] = -1
    options = {"class_weights": class_weights, "label_smoothing": smoothing}
    weight = torch.tensor(class_weights) if class_weights else None
    wanted = F.cross_entropy(logits[2:], label[2:], weight, label_smoothing=smoothing)
    torch.testing.assert_close(_task(exclusive=True, **options).objective(logits, label), wanted)


def test_smoothed_findings_are_torchs_soft_targets() -> None:
    logits, label = _findings(unknown=False)
    wanted = F.binary_cross_entropy_with_logits(logits, label * 0.8 + 0.1)
    torch.testing.assert_close(_task(label_smoothing=0.2).objective(logits, label), wanted)


@pytest.mark.parametrize("loss", ["bce", "focal", "asymmetric", "ce"])
def test_a_batch_of_unknown_labels_gives_a_loss_of_zero_without_gradient(loss: str) -> None:
    exclusive = loss == "ce"
    label = torch.full((5,), -1) if exclusive else torch.full((5, 3), NAN)
    logits = torch.randn(5, 3, requires_grad=True)
    weights = {"class_weights" if exclusive else "pos_weight": (1.0, 2.0, 3.0)}
    value = _task(exclusive=exclusive, loss=loss, **weights).objective(logits, label)
    value.backward()
    assert value == 0 and (logits.grad == 0).all()


def test_focal_loss_is_torchvisions() -> None:
    import crossband.shared.compat  # noqa: F401 - before torchvision

    from torchvision.ops import sigmoid_focal_loss

    logits, label = _findings(unknown=False)
    wanted = sigmoid_focal_loss(logits, label, alpha=-1, gamma=2.0, reduction="mean")
    torch.testing.assert_close(_task(loss="focal").objective(logits, label), wanted)


def test_asymmetric_loss_by_hand_and_by_its_gradient() -> None:
    p = torch.tensor([0.3, 0.04, 0.9], dtype=torch.float64)
    logits = torch.logit(p).requires_grad_()
    found = asymmetric_loss(logits, torch.tensor([1.0, 0.0, 0.0]), 1.0, 4.0, 0.05)
    wanted = [-0.7 * math.log(0.3), 0.0, -(0.85**4) * math.log(0.15)]
    assert found.tolist() == pytest.approx(wanted)
    target = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: asymmetric_loss(z, target, 1.0, 4.0, 0.02), logits)
    plain = asymmetric_loss(logits, target, 0.0, 0.0, 0.0)
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    torch.testing.assert_close(plain, bce)


def test_losses_stay_finite_for_very_sure_logits() -> None:
    logits = torch.tensor([[200.0, -200.0, 200.0, -200.0]], requires_grad=True)
    label = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    for loss in ("bce", "focal", "asymmetric"):
        value = _task(loss=loss).objective(logits, label)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.isfinite() and gradient.isfinite().all(), loss


@pytest.mark.parametrize(
    "options, message",
    [
        ({"loss": "ce"}, "'ce' does not fit findings"),
        ({"exclusive": True, "loss": "focal"}, "'focal' does not fit classes"),
        ({"exclusive": True, "pos_weight": [1.0]}, "give class_weights"),
        ({"class_weights": [1.0]}, "give pos_weight"),
    ],
)
def test_options_that_do_not_go_together(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _task(**options)


def test_weights_of_another_number_of_findings_are_named() -> None:
    with pytest.raises(ConfigError, match="pos_weight has 3 numbers and the network 4 outputs"):
        _task(pos_weight=[1.0, 2.0, 3.0]).objective(*_findings(unknown=False))


class Pictures(Dataset):
    """Brightness of the upper and the lower half are the findings; the brighter one the class."""

    def __init__(self, items: int, exclusive: bool, unknown: bool = True) -> None:
        generator = torch.Generator().manual_seed(items)
        self.values = torch.rand(items, 2, generator=generator)
        self.noise = 0.1 * torch.randn(items, 1, 4, 4, generator=generator)
        self.exclusive, self.unknown = exclusive, unknown

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        index = int(index)
        values = self.values[index]
        image = values.repeat_interleave(8).view(1, 4, 4) + self.noise[index]
        if self.exclusive:
            label = values.argmax()
            return {"image": image, "label": label if index % 7 else torch.tensor(-1)}
        label = (values > 0.5).float()
        if self.unknown and index % 3 == 0:
            label[index % 2] = NAN
        return {"image": image, "label": label}


def _fit(folder, exclusive: bool, val: Dataset | None = None, **options: object):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    task = _task(network, exclusive=exclusive, **options)
    data = Data(
        Pictures(96, exclusive), val or Pictures(41, exclusive), LoaderConfig(batch_size=8), seed=0
    )
    settings = RunOptions(device="cpu", quiet=True)
    book = fit(task, data, RunFolder(folder), TrainerConfig(max_epochs=12), settings, describe=dict)
    return task, book


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_learnable_task_is_learned_and_its_scores_are_those_of_the_whole_set(
    tmp_path, exclusive: bool
) -> None:
    task, book = _fit(tmp_path, exclusive)
    row = book.history[-1]
    assert row["val_auroc"] > 0.95 and row["val_accuracy"] > 0.85
    assert book.best["val_auroc"] == max(row["val_auroc"] for row in book.history)
    items = [Pictures(41, exclusive)[i] for i in range(41)]
    image, label = (torch.stack([item[key] for item in items]) for key in ("image", "label"))
    with torch.no_grad():
        logits = task.model(image)
    assert row["val_loss"] == pytest.approx(float(task.objective(logits, label)), rel=1e-5)
    if exclusive:
        known = label >= 0
        chance = logits.softmax(1)[known].numpy()
        wanted = sum(auroc(chance[:, k], (label[known] == k).numpy()) for k in range(2)) / 2
        right = (logits.argmax(1) == label)[known]
    else:
        wanted = mean_auroc(logits.numpy(), label.numpy())
        right = ((logits > 0) == (label > 0.5))[~label.isnan()]
    assert row["val_auroc"] == pytest.approx(wanted)
    assert row["val_accuracy"] == pytest.approx(float(right.float().mean()))


def test_what_monitors_is_logged_and_has_its_direction(tmp_path) -> None:
    for monitor, wanted in (("auroc", -1), ("accuracy", -1), ("loss", 1)):
        assert _task(monitor=monitor).monitor == (f"val_{monitor}", wanted)
    _, book = _fit(tmp_path, False, monitor="loss")
    assert book.best["val_loss"] == min(row["val_loss"] for row in book.history)


def test_a_validation_set_of_one_value_cannot_choose_by_the_auroc(tmp_path) -> None:
    same = Pictures(5, False, unknown=False)
    same.values[:] = 0.9
    with pytest.raises(DataError, match="None of the findings is both present and absent"):
        _fit(tmp_path / "auroc", False, val=same)
    _, book = _fit(tmp_path / "loss", False, val=same, monitor="loss")
    assert math.isnan(book.history[-1]["val_auroc"])


def test_processes_give_the_scores_of_the_set_each_item_once(monkeypatch) -> None:
    # Two ranks of a set of five: 0 2 4 and 1 3 0, the first item again.
    task, values = _task(), torch.arange(5.0)
    ranks = torch.stack([values[[0, 2, 4]], values[[1, 3, 0]]])
    monkeypatch.setattr(task, "all_gather", lambda _: ranks)

    class Loaders:
        val_dataloaders = torch.utils.data.DataLoader(range(5))

    monkeypatch.setattr(ClassificationTask, "trainer", Loaders, raising=False)
    assert task._whole(ranks[0]).tolist() == values.tolist()
