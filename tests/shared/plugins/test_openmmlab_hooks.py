from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

for library in ("mmengine", "mmcv", "mmseg", "mmdet", "cv2"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: extra openmmlab", allow_module_level=True)

from openmmlab_tester import same, train  # noqa: E402

import crossband.shared.plugins.openmmlab as plugin  # noqa: E402
from crossband.shared.errors import ConfigError  # noqa: E402

EPOCHS = """
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=2)
train_dataloader.update(sampler=dict(type="DefaultSampler", shuffle=True))
train_dataloader["dataset"].update(indices=8)
val_cfg = val_dataloader = val_evaluator = None
default_hooks = dict(checkpoint=dict(type="CheckpointHook", interval=1))
"""


class TestReseed:
    """Resumed runs equal unbroken ones, with any number of loader processes."""

    def test_by_epochs(self, config: Path, tmp_path: Path) -> None:
        by_epochs = tmp_path / "by_epochs.py"
        by_epochs.write_text(config.read_text() + EPOCHS)
        whole = train(by_epochs, tmp_path / "whole")
        train(by_epochs, tmp_path / "parts", **{"train_cfg.max_epochs": 1})
        processes = {"train_dataloader.num_workers": 2}
        parts = train(by_epochs, tmp_path / "parts", resume=True, **processes)
        assert same(parts.model.state_dict(), whole.model.state_dict())
        loader = whole.train_dataloader
        assert loader.batch_sampler.sampler.epoch == 1  # each epoch has its own order
        loader.dataset.pipeline = None  # as hooks do that switch the augmentation off
        assert loader.dataset.dataset.pipeline is None

    @pytest.mark.slow  # ending an endless loader takes its time
    def test_by_steps(self, config: Path, tmp_path: Path) -> None:
        whole = train(config, tmp_path / "whole")
        processes = {"train_dataloader.num_workers": 2}
        train(config, tmp_path / "parts", **processes, **{"train_cfg.max_iters": 3})
        parts = train(config, tmp_path / "parts", resume=True, **processes)
        assert same(parts.model.state_dict(), whole.model.state_dict())

    def test_without_it_a_resumed_run_differs(self, config: Path, tmp_path: Path) -> None:
        plain = {"custom_hooks": []}
        whole = train(config, tmp_path / "whole", **plain)
        train(config, tmp_path / "parts", **plain, **{"train_cfg.max_iters": 3})
        parts = train(config, tmp_path / "parts", **plain, resume=True)
        assert not same(parts.model.state_dict(), whole.model.state_dict())


class TestRunFolderHook:
    def rows(self, worths: list[float], **options: Any) -> Any:
        hook = plugin.HOOKS.build({"type": "crossband.RunFolderHook", **options})
        return hook, [{"step": i, "val_a": 1.0, "val_b": worth} for i, worth in enumerate(worths)]

    @pytest.mark.parametrize(("larger", "best"), [(True, 2), (False, 1)])
    def test_the_best_row(self, larger: bool, best: int) -> None:
        nan = float("nan")
        hook, rows = self.rows([nan, 0.2, 0.7, nan], select="b", larger_is_better=larger)
        assert max(rows, key=hook._worth)["step"] == best

    def test_an_unknown_metric(self) -> None:
        hook, _ = self.rows([], select="mIou")
        with pytest.raises(ConfigError, match="Did you mean 'mIoU'"):
            hook._check_selection({"mIoU": 1.0, "aAcc": 2.0})


class TestStepSeed:
    """On any data set; tests/infrared has it against our own road."""

    SEEDED = {
        "train_dataloader.sampler": {"type": "crossband.EpochSampler"},
        "train_dataloader.dataset.pipeline": [
            {"type": "crossband.LoadThermalImage", "value_range": (0, 255)},
            {"type": "LoadAnnotations"},
            {"type": "PackSegInputs"},
        ],
        "custom_hooks": [{"type": "crossband.StepSeedHook"}],
    }

    def test_resumed_runs_are_exact_with_any_number_of_processes(
        self, config: Path, tmp_path: Path
    ) -> None:
        """5 of 6 steps: an epoch has 3, so it goes on in the middle of the second."""
        short = {"train_dataloader.batch_size": 5, "default_hooks.checkpoint.interval": 5}
        whole = train(config, tmp_path / "whole", **self.SEEDED, **short)
        processes = {"train_dataloader.num_workers": 1}
        parts = train(
            config, tmp_path / "whole", **self.SEEDED, **short, **processes, resume=True,
            load_from=str(tmp_path / "whole" / "iter_5.pth"),
        )  # fmt: skip
        assert parts.iter == 6
        assert same(parts.model.state_dict(), whole.model.state_dict())

    def test_another_sampler_is_an_error(self, config: Path, tmp_path: Path) -> None:
        options = self.SEEDED | {"train_dataloader.sampler": {"type": "InfiniteSampler"}}
        with pytest.raises(ConfigError, match="ordered by InfiniteSampler"):
            train(config, tmp_path, **options)
