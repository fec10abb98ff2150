from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from crossband.medical.lvm_med import training
from crossband.medical.lvm_med.local import location_grid
from crossband.medical.lvm_med.model import LVMMed
from crossband.medical.lvm_med.training import LVMMedTask
from crossband.shared.backbones.base import Backbone
from crossband.shared.config import OptimizerConfig, ScheduleConfig
from crossband.shared.errors import ConfigError
from crossband.shared.matching import Matching, Problem, solve_problem


class Small(Backbone):
    """One convolution and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8))
        self.out_channels, self.strides = [8], [8]

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.net(image)]


class Items(Dataset):
    """Noise, with everything that an item may have."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        grid = location_grid((index, 0, 30, 20), 7)
        return {
            "views": [torch.randn(3, 32, 32, generator=generator) for _ in range(2)],
            "grids": [grid, grid.flip(1)],
            "small": [torch.randn(3, 16, 16, generator=generator)],
            "small_grids": [grid],
        }


def task(**settings: Any) -> LVMMedTask:
    torch.manual_seed(0)
    model = LVMMed(Small(), objective={"graph_size": 4, "k": 2, "gamma": (3, 2), "lam": 2.0})
    return LVMMedTask(model, OptimizerConfig(lr=1e-2), ScheduleConfig(), **settings)


@pytest.fixture
def batch() -> dict[str, Any]:
    return default_collate([Items()[i] for i in range(5)])


def test_validation_has_no_noise(batch: dict[str, Any]) -> None:
    own = task().eval()
    torch.manual_seed(1)
    energies = [own.output(batch).statistics["energy"].item() for _ in range(2)]
    assert energies[0] == energies[1]
    own.train()
    drawn = [own.output(batch).statistics["energy"].item() for _ in range(2)]
    assert drawn[0] != drawn[1]


def test_noise_of_training_follows_the_global_seed(batch: dict[str, Any]) -> None:
    own, losses = task(), []
    for _ in range(2):
        torch.manual_seed(3)
        own.zero_grad()
        own.loss(batch).backward()
        losses.append(own.model.backbone.net[0].weight.grad.clone())
    assert torch.equal(*losses)


def fit(own: LVMMedTask, folder: Path) -> dict[str, Tensor]:
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", default_root_dir=folder, **dict.fromkeys(quiet, False)
    )
    loader = DataLoader(Items(), 5)
    trainer.fit(own, loader, loader)
    return trainer.callback_metrics


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[LVMMedTask, dict[str, Tensor]]:
    own = task()
    return own, fit(own, tmp_path_factory.mktemp("run"))


def test_a_run_logs_what_was_matched(trained: tuple[LVMMedTask, dict[str, Tensor]]) -> None:
    _, logged = trained
    assert {"val_loss", "val_matched", "val_energy", "val_gap", "train_matched"} <= set(logged)
    # One-to-one matchings: loss = 2 x misplaced images per graph, of graphs of 4 and 1.
    assert 0 <= logged["val_matched"] <= 1
    assert 0 <= logged["val_loss"] <= 8


def test_a_run_changes_the_backbone(trained: tuple[LVMMedTask, dict[str, Tensor]]) -> None:
    own, _ = trained
    fresh = task().model
    for name in ("backbone.net.0.weight", "objective.projector.0.weight"):
        assert not torch.equal(own.model.state_dict()[name], fresh.state_dict()[name])


def test_only_the_backbone_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: ("compiled", function))
    own = task(compile=True)
    assert own.model.feature_map[0] == "compiled"
    assert own._forward == (own.model,)
    assert set(own.model.state_dict()) == set(task().model.state_dict())


def test_processes_live_as_long_as_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[object] = []

    class Pool:
        def __init__(self, workers: int, **options: Any) -> None:
            seen.extend((workers, options))

        def solve(self, problem: Problem) -> Matching:
            seen.append(len(problem))
            return solve_problem(problem)

        def close(self) -> None:
            seen.append("closed")

    monkeypatch.setattr(training, "SolverPool", Pool)
    own = task(workers=2)
    fit(own, tmp_path)
    assert seen[:2] == [2, {"solver": "auto"}]
    # Three pairs of views make one graph of 4 and one of 1 each; gradients double that.
    assert seen.count(6) == 4
    assert seen[-1] == "closed"
    assert own.model.objective.pool is None
    with pytest.raises(ConfigError, match="processes"):
        task(workers=-1)
