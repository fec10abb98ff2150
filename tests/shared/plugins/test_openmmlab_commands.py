from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import pytest

for library in ("mmengine", "mmcv", "mmseg", "mmdet", "cv2"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: extra openmmlab", allow_module_level=True)

import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from openmmlab_tester import same, script, train, weights  # noqa: E402

import crossband.shared.plugins.openmmlab  # noqa: E402, F401
from crossband.shared.checkpoints import read_state_dict  # noqa: E402
from crossband.shared.errors import ConfigError  # noqa: E402
from crossband.shared.registry import create_model  # noqa: E402


class TestScripts:
    """mmseg's own scripts with nothing of ours but the config."""

    def test_trains_and_resumes_bitwise(self, config: Path, resumed: Path, tmp_path: Path) -> None:
        whole = train(config, tmp_path / "whole")
        assert same(weights(resumed / "iter_6.pth"), whole.model.state_dict())
        assert not same(weights(resumed / "iter_3.pth"), whole.model.state_dict())

    def test_run_folder(self, resumed: Path) -> None:
        with (resumed / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["step"] for row in rows] == ["3", "6"]
        assert {"minutes", "lr", "train_loss", "val_mIoU", "val_aAcc"} <= rows[0].keys()
        results = json.loads((resumed / "metrics.json").read_text())
        assert results["best"]["metric"] == "val_mIoU"
        assert results["best"]["val_mIoU"] == max(float(row["val_mIoU"]) for row in rows)
        assert results["protocol"]["engine"] == "mmengine"
        assert results["protocol"]["seed"] == 3
        assert "crossband.UniRepLKNet" in (resumed / "config.yaml").read_text()
        report = (resumed / "report.html").read_text()
        assert "val_mIoU" in report and "data:image/png" in report
        state, header = read_state_dict(resumed / "best.safetensors")
        assert any(key.startswith("backbone.stages.0.0.") for key in state)
        assert json.loads(header["crossband"])["classes"] == ["background", "disc", "square"]

    def test_test_script(self, config: Path, resumed: Path, tmp_path: Path) -> None:
        text = script("test.py", config, resumed / "iter_6.pth", "--work-dir", tmp_path)
        assert "mIoU" in text and "disc" in text
        found = json.loads((tmp_path / "metrics.json").read_text())
        trained = json.loads((resumed / "metrics.json").read_text())["history"][-1]
        assert found["test"]["mIoU"] == trained["val_mIoU"]
        assert found["test_protocol"]["weights"] == str(resumed / "iter_6.pth")


def test_the_loss_falls(config: Path, tmp_path: Path) -> None:
    options = {"train_cfg.max_iters": 30, "train_cfg.val_interval": 10}
    runner = train(config, tmp_path, **options, **{"optim_wrapper.optimizer.lr": 1e-2})
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train_loss"]) for row in rows]
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 0.6 * losses[0]
    assert runner.iter == 30


def test_a_run_starts_from_our_weights(config: Path, resumed: Path, tmp_path: Path) -> None:
    best = resumed / "best.safetensors"
    settings = Config.fromfile(config)
    settings.update(work_dir=str(tmp_path), load_from=str(best), experiment_name="start")
    runner = Runner.from_cfg(settings)
    runner.load_or_resume()
    assert same(dict(runner.model.state_dict()), weights(best))


class TestBuild:
    def test_models_of_the_libraries(self) -> None:
        small = {"embed_dims": 8, "num_layers": [1] * 4, "num_heads": [1] * 4}
        network = create_model("mmseg:MixVisionTransformer", **small)
        assert [y.shape[1] for y in network(torch.randn(1, 3, 64, 64))] == [8, 8, 8, 8]
        assert type(create_model("mmdet:ResNet", depth=18)).__module__.startswith("mmdet.")

    def test_mistakes(self) -> None:
        with pytest.raises(ConfigError, match="Did you mean 'FCNHead'"):
            create_model("mmseg:FCNHeadd")
        with pytest.raises(ConfigError, match="mmdet:ResNet does not take"):
            create_model("mmdet:ResNet")
