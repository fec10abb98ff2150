"""Rivals of LVM-Med: lightly's losses around any backbone, teachers that follow, exact resumes."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import crossband.shared.compat  # noqa: F401 - before lightning

import pytest
import torch
from lightning import Callback
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from crossband.medical.pretraining.rivals import (
    BYOL,
    DINO,
    RIVALS,
    ContrastiveTask,
    create_rival,
    exact,
    pooled,
)
from crossband.shared.backbones.base import Backbone
from crossband.shared.checkpoints import load_checkpoint
from crossband.shared.config import (
    LoaderConfig,
    OptimizerConfig,
    RunOptions,
    ScheduleConfig,
    TrainerConfig,
)
from crossband.shared.errors import ConfigError, MissingExtraError
from crossband.shared.training import loop
from crossband.shared.training.optimizers import build_optimizer
from crossband.shared.training.run_folder import RunFolder

pytest.importorskip("lightly")
WIDTHS = {
    "simclr": {"hidden": 16, "out": 8, "temperature": 0.2},
    "byol": {"hidden": 16, "out": 8, "momentum": 0.9},
    "vicreg": {"hidden": 16, "out": 8},
    "dino": {"hidden": 16, "bottleneck": 8, "out": 32, "momentum": 0.9, "frozen": 1},
    "barlow-twins": {"hidden": 16, "out": 8},
}
TAUGHT = ("byol", "dino")


class Tiny(Backbone):
    """Two convolutions with batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1)
        )
        self.out_channels, self.strides = [8, 12], [2, 4]

    def forward(self, image: Tensor) -> list[Tensor]:
        first = self.stem[:3](image)
        return [first, self.stem[3](first)]


def make(method: str, seed: int = 0, **changes: Any):
    torch.manual_seed(seed)
    return create_rival(method, Tiny(), **{**WIDTHS[method], **changes})


class Stripes(Dataset):
    """Images of stripes, each with its own direction and colour; views are shifted and noisy."""

    def __init__(self, count: int, small: bool = True) -> None:
        self.count, self.small = count, small

    def __len__(self) -> int:
        return self.count

    def view(self, index: int, size: int, draw: torch.Generator) -> Tensor:
        angle, colour = 2.4 * index, torch.tensor([math.sin(index), math.cos(index), 0.3])
        axis = torch.arange(size) / 4
        phase = torch.rand(1, generator=draw)
        wave = torch.sin(math.cos(angle) * axis[:, None] + math.sin(angle) * axis + phase)
        noise = 0.1 * torch.randn(3, size, size, generator=draw)
        return wave * colour.view(3, 1, 1) + colour.flip(0).view(3, 1, 1) + noise

    def __getitem__(self, index: int) -> dict[str, list[Tensor]]:
        epoch = getattr(index, "epoch", 0)
        draw = torch.Generator().manual_seed(1000 * epoch + int(index))
        item = {"views": [self.view(int(index), 16, draw) for _ in range(2)]}
        if self.small:
            item["small"] = [self.view(int(index), 8, draw) for _ in range(2)]
        return item


def batch(count: int = 12, small: bool = True) -> dict[str, Any]:
    return torch.utils.data.default_collate([Stripes(count, small)[i] for i in range(count)])


def step(rival, optimizer, data) -> float:
    loss = rival(data)
    optimizer.zero_grad()
    loss.backward()
    rival.after_backward()
    optimizer.step()
    rival.after_step()
    return float(loss.detach())


@pytest.mark.parametrize("method", RIVALS)
def test_a_few_steps_lower_the_loss(method) -> None:
    rival = make(method).train()
    rival.epoch = 1  # DINO's last layer learns
    optimizer = torch.optim.Adam((p for p in rival.parameters() if p.requires_grad), 3e-3)
    data = batch()
    if method == "dino":  # its loss is of a target that moves: let the centre settle, hold the rest
        rival.progress = 1.0
        for _ in range(60):
            rival(data)
    losses = [step(rival, optimizer, data) for _ in range(40)]
    assert all(map(math.isfinite, losses))
    spread = max(abs(losses[0]), 0.2)
    assert sum(losses[-5:]) / 5 < losses[0] - 0.08 * spread


def features(seed: int, count: int = 6, width: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(count, width, generator=generator)
    return first, first + 0.3 * torch.randn(count, width, generator=generator)


def by_hand(method: str, a: Tensor, b: Tensor) -> Tensor:
    """The papers' equations."""
    count, width = a.shape
    if method == "simclr":
        z = F.normalize(torch.cat([a, b]), dim=1)
        logits = z @ z.T / 0.2
        logits.fill_diagonal_(-math.inf)
        partner = torch.arange(2 * count).roll(count)
        return -(logits[torch.arange(2 * count), partner] - logits.logsumexp(1)).mean()
    if method == "vicreg":
        variance = sum((1 - (x.var(0) + 1e-4).sqrt()).relu().mean() for x in (a, b)) / 2
        covariance = sum(torch.cov(x.T).fill_diagonal_(0).square().sum() / width for x in (a, b))
        return 25 * (a - b).square().mean() + 25 * variance + covariance
    normal = [(x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() for x in (a, b)]
    correlation = normal[0].T @ normal[1] / count
    diagonal = correlation.diagonal()
    rest = correlation.square().sum() - diagonal.square().sum()
    return (diagonal - 1).square().sum() + 5e-3 * rest


@pytest.mark.parametrize("method", ["simclr", "vicreg", "barlow-twins"])
def test_losses_of_two_views_are_lightlys_and_the_papers(method, monkeypatch) -> None:
    import lightly.loss as losses

    theirs = {
        "simclr": losses.NTXentLoss(0.2),
        "vicreg": losses.VICRegLoss(),
        "barlow-twins": losses.BarlowTwinsLoss(),
    }[method]
    rival = make(method)
    first, second = features(1)
    rival.head = nn.Identity()
    given = {1.0: first, 2.0: second}
    monkeypatch.setattr(
        "crossband.medical.pretraining.rivals.pooled",
        lambda backbone, image: given[float(image.flatten()[0])],
    )
    views = [torch.full((6, 3, 4, 4), value) for value in given]
    found = rival({"views": views})
    torch.testing.assert_close(found, theirs(first, second))
    torch.testing.assert_close(found, by_hand(method, first, second))


def test_byols_loss_is_both_ways_negative_cosine_to_the_teacher() -> None:
    rival = make("byol").eval()
    data = batch(5)
    first, second = data["views"]

    def student(x: Tensor) -> Tensor:
        return rival.predictor(rival.head(pooled(rival.backbone, x)))

    def teacher(x: Tensor) -> Tensor:
        return rival.teacher["head"](pooled(rival.teacher["backbone"], x))

    wanted = -sum(
        F.cosine_similarity(student(a), teacher(b)).mean() / 2
        for a, b in ((first, second), (second, first))
    )
    torch.testing.assert_close(rival(data), wanted)


@pytest.mark.parametrize("small", [True, False])
def test_dinos_loss_is_the_cross_entropy_of_all_other_views(small) -> None:
    rival = make("dino").eval()
    rival.objective.center += 0.1 * torch.randn(1, 1, 32)
    rival.epoch = 15
    data = batch(5, small)
    views = [*data["views"], *data.get("small", [])]
    student = [rival.head(pooled(rival.backbone, v)) for v in views]
    teacher = [rival.taught(v) for v in views[:2]]
    temperature = 0.04 + 0.03 * 15 / 29
    terms = [
        -(((t - rival.objective.center[0]) / temperature).softmax(-1) * (s / 0.1).log_softmax(-1))
        .sum(-1)
        .mean()
        for i, t in enumerate(teacher)
        for j, s in enumerate(student)
        if i != j
    ]
    assert len(terms) == (6 if small else 2)
    torch.testing.assert_close(rival(data), sum(terms) / len(terms))


def test_dinos_centre_moves_in_training_alone() -> None:
    rival = make("dino")
    before = rival.objective.center.clone()
    rival.eval()(batch())
    assert torch.equal(rival.objective.center, before)
    rival.train()
    out = torch.stack([rival.taught(v) for v in batch()["views"]])
    rival(batch())
    torch.testing.assert_close(rival.objective.center, 0.1 * out.mean((0, 1), keepdim=True))


def test_dinos_last_layer_waits() -> None:
    rival = make("dino", frozen=2).train()
    last = rival.head.last_layer.weight_v
    optimizer = torch.optim.SGD((p for p in rival.parameters() if p.requires_grad), 0.1)
    for epoch, still in ((0, True), (1, True), (2, False)):
        rival.epoch = epoch
        before = last.detach().clone()
        first = rival.head.layers[0].weight.detach().clone()
        step(rival, optimizer, batch())
        assert torch.equal(last, before) == still
        assert not torch.equal(rival.head.layers[0].weight, first)


@pytest.mark.parametrize("method", TAUGHT)
def test_teachers_begin_as_the_student_and_get_no_gradient(method) -> None:
    rival = make(method).train()
    rival.epoch = 1
    for own, mine in (("backbone", rival.backbone), ("head", rival.head)):
        theirs = rival.teacher[own].state_dict()
        assert all(torch.equal(v, theirs[k]) for k, v in mine.state_dict().items())
        assert not {*map(id, rival.teacher[own].parameters())} & {*map(id, mine.parameters())}
    rival(batch()).backward()
    assert all(p.grad is None and not p.requires_grad for p in rival.teacher.parameters())
    assert all(p.grad is not None for p in rival.backbone.parameters())
    taken = build_optimizer(rival, OptimizerConfig()).param_groups
    ids = {id(p) for group in taken for p in group["params"]}
    assert not ids & {id(p) for p in rival.teacher.parameters()}
    assert {id(p) for p in rival.backbone.parameters()} <= ids


@pytest.mark.parametrize("method", TAUGHT)
@pytest.mark.parametrize("progress, momentum", [(0.0, 0.9), (0.5, 0.95), (1.0, 1.0)])
def test_teachers_follow_on_a_cosine(method, progress, momentum) -> None:
    rival = make(method)
    rival.progress = progress
    with torch.no_grad():
        for parameter in rival.backbone.parameters():
            parameter += torch.randn_like(parameter)
    before = copy.deepcopy(rival.teacher["backbone"])
    rival.after_step()
    for old, new, student in zip(
        before.parameters(),
        rival.teacher["backbone"].parameters(),
        rival.backbone.parameters(),
        strict=True,
    ):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * student)


@pytest.mark.parametrize("method", RIVALS)
def test_a_state_dict_holds_everything(method) -> None:
    rival, other = make(method).train(), make(method, seed=1).train()
    rival.epoch = other.epoch = 1
    optimizer = torch.optim.SGD((p for p in rival.parameters() if p.requires_grad), 0.1)
    for _ in range(3):
        step(rival, optimizer, batch())
    other.load_state_dict(rival.state_dict())
    assert torch.equal(rival.eval()(batch()), other.eval()(batch()))
    assert all(key in rival.state_dict() for key in ("backbone.stem.0.weight",))
    teacher = [key for key in rival.state_dict() if key.startswith("teacher.")]
    assert bool(teacher) == (method in TAUGHT)
    assert ("objective.center" in rival.state_dict()) == (method == "dino")


class StopAt(Callback):
    """Dies after some steps."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.at:
            raise RuntimeError("killed")


def fit(folder: Path, method: str, monkeypatch, *, stop: int = 0, resume: bool = False) -> Any:
    task = ContrastiveTask(make(method), OptimizerConfig(lr=3e-3), ScheduleConfig())
    data = loop.Data(Stripes(14), Stripes(9), LoaderConfig(batch_size=4), 3, smallest_batch=2)
    settings = TrainerConfig(max_epochs=3, save_every_n_steps=1, accumulate_grad_batches=2)
    with monkeypatch.context() as patch:
        if stop:
            plain = loop.Trainer
            patch.setattr(
                loop, "Trainer",
                lambda *, callbacks, **kw: plain(callbacks=[*callbacks, StopAt(stop)], **kw),
            )  # fmt: skip
        options = RunOptions(seed=3, device="cpu", quiet=True)
        describe = dict
        arguments = (task, data, RunFolder(folder), settings, options)
        book = loop.fit(*arguments, describe=describe, resume=resume)
    return task, book


@pytest.mark.parametrize("method", TAUGHT)
def test_a_killed_run_goes_on_exactly(method, tmp_path, monkeypatch) -> None:
    whole, book = fit(tmp_path / "whole", method, monkeypatch)
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path / "parts", method, monkeypatch, stop=3)
    parts, again = fit(tmp_path / "parts", method, monkeypatch, resume=True)
    wanted, found = whole.model.state_dict(), parts.model.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    assert [r["val_loss"] for r in book.history] == [r["val_loss"] for r in again.history]
    best = load_checkpoint(tmp_path / "whole" / "best.safetensors").state_dict
    assert any(key.startswith("teacher.") for key in best)
    # Six steps of the optimiser: the last one's momentum is that of five sixths.
    assert whole.model.progress == pytest.approx(5 / 6)
    assert book.history[-1]["step"] == 6


def test_the_teacher_moves_once_per_step_of_the_optimiser(tmp_path, monkeypatch) -> None:
    moves = []
    monkeypatch.setattr(BYOL, "after_step", lambda self: moves.append(self.progress))
    fit(tmp_path, "byol", monkeypatch)
    assert moves == pytest.approx([n / 6 for n in range(6)])


def test_one_image_to_validate_on_is_not_enough(tmp_path, monkeypatch) -> None:
    task = ContrastiveTask(make("vicreg"), OptimizerConfig(), ScheduleConfig())
    data = loop.Data(Stripes(4), Stripes(1), LoaderConfig(batch_size=4), 0)
    with pytest.raises(ConfigError, match="2 views of 1 images: VICReg compares"):
        loop.fit(
            task, data, RunFolder(tmp_path), TrainerConfig(max_epochs=1),
            RunOptions(device="cpu", quiet=True), describe=dict,
        )  # fmt: skip


def test_losses_are_in_float32_under_autocast() -> None:
    rival = make("dino").eval()
    data = batch(4)
    with torch.autocast("cpu", torch.bfloat16):
        loss = rival(data)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(rival(data).detach()), rel=0.05)
    seen = []

    class Seen(nn.Module):
        def forward(self, a: list[Tensor], b: Tensor) -> Tensor:
            seen.append((a[0].dtype, b.dtype, torch.is_autocast_enabled("cpu")))
            return b.sum()

    with torch.autocast("cpu", torch.bfloat16):
        exact(Seen(), [torch.ones(2).bfloat16()], torch.ones(2).bfloat16())
    assert seen == [(torch.float32, torch.float32, False)]


def test_wrong_methods_arguments_and_batches_are_named(monkeypatch) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'simclr'"):
        create_rival("simclear", Tiny())
    with pytest.raises(ConfigError, match="--method byol does not take"):
        create_rival("byol", Tiny(), colour=3)
    with pytest.raises(ConfigError, match="momentum 2 must be"):
        create_rival("byol", Tiny(), momentum=2.0)
    for views in ([torch.ones(1, 3, 8, 8)] * 2, [torch.ones(4, 3, 8, 8)]):
        with pytest.raises(ConfigError, match="compares at least two of each"):
            make("simclr")({"views": views})
    monkeypatch.setitem(__import__("sys").modules, "lightly.loss", None)
    with pytest.raises(MissingExtraError, match="crossband\\[medical\\]"):
        create_rival("dino", Tiny())


def test_the_papers_widths_are_the_defaults() -> None:
    rival = create_rival("byol", Tiny())
    assert [m.out_features for m in rival.head.layers if isinstance(m, nn.Linear)] == [4096, 256]
    dino = DINO(Tiny(), out=100)
    assert dino.head.layers[0].out_features == 2048
    assert dino.head.last_layer.weight_v.shape == (100, 256)
