from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

for library in ("mmengine", "mmcv", "mmseg", "mmdet", "cv2"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: extra openmmlab", allow_module_level=True)

import cv2  # noqa: E402
from mmdet.registry import MODELS as MMDET  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.dataset import Compose  # noqa: E402
from mmengine.logging import HistoryBuffer  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from mmengine.runner.checkpoint import CheckpointLoader  # noqa: E402
from mmseg.registry import MODELS as MMSEG  # noqa: E402

import crossband.shared.plugins.openmmlab as plugin  # noqa: E402
from crossband.shared.checkpoints import read_state_dict, save_checkpoint  # noqa: E402
from crossband.shared.errors import CheckpointError, ConfigError, DataError  # noqa: E402
from crossband.shared.registry import create_model  # noqa: E402

SMALL = {
    "depths": (1, 1, 1, 1),
    "dims": (8, 16, 24, 32),
    "kernel_sizes": ((3,), (3,), (3,), (3,)),
    "drop_path_rate": 0.2,
}
CONFIG = """
custom_imports = dict(imports=["crossband.shared.plugins.openmmlab"])
default_scope = "mmseg"
randomness = dict(seed=3)
norm_cfg = dict(type="BN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor", mean=[100.0] * 3, std=[60.0] * 3,
                           size=(48, 48), seg_pad_val=255),
    backbone=dict(type="crossband.UniRepLKNet", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32),
                  kernel_sizes=((3,), (3,), (3,), (3,)), drop_path_rate=0.2),
    decode_head=dict(type="UPerHead", in_channels=[8, 16, 24, 32], in_index=[0, 1, 2, 3],
                     pool_scales=(1, 2), channels=16, dropout_ratio=0.1, num_classes=3,
                     norm_cfg=norm_cfg, align_corners=False,
                     loss_decode=dict(type="CrossEntropyLoss", avg_non_ignore=True)),
    auxiliary_head=dict(type="FCNHead", in_channels=24, in_index=2, channels=8, num_convs=1,
                        num_classes=3, norm_cfg=norm_cfg, align_corners=False,
                        loss_decode=dict(type="CrossEntropyLoss", loss_weight=0.4)),
    train_cfg=dict(), test_cfg=dict(mode="whole"))
train_pipeline = [
    dict(type="crossband.LoadThermalImage", value_range=(0, 255)),
    dict(type="LoadAnnotations"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs")]
test_pipeline = [
    dict(type="crossband.LoadThermalImage", value_range=(0, 255)),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs")]
data = dict(type="crossband.FolderSegDataset", data_root="DATA")
train_dataloader = dict(batch_size=4, num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(ann_file="train.txt", pipeline=train_pipeline, **data))
val_dataloader = dict(batch_size=1, num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(ann_file="val.txt", pipeline=test_pipeline, **data))
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3))
param_scheduler = [dict(type="PolyLR", eta_min=0, power=0.9, begin=0, end=40, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=6, val_interval=3)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=3))
custom_hooks = [dict(type="crossband.RunFolderHook", select="mIoU"),
                dict(type="crossband.ReseedHook")]
log_processor = dict(by_epoch=False)
env_cfg = dict(dist_cfg=dict(backend="gloo"))
visualizer = dict(type="SegLocalVisualizer", vis_backends=[])
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright discs (class 1) and dark squares (class 2) on noise, 48 x 48."""
    folder = tmp_path_factory.mktemp("thermal")
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    generator = np.random.default_rng(0)
    for index in range(16):
        image = generator.normal(120, 8, (48, 48))
        mask = np.zeros((48, 48), np.uint8)
        y, x = generator.integers(12, 36, 2)
        disc = np.hypot(*(np.mgrid[:48, :48] - np.array([y, x])[:, None, None])) < 9
        image[disc], mask[disc] = 220, 1
        top, left = generator.integers(0, 36, 2)
        square = np.s_[top : top + 10, left : left + 10]
        image[square], mask[square] = 30, 2
        cv2.imwrite(str(folder / "images" / f"{index:02d}.png"), image.clip(0, 255).astype("u1"))
        cv2.imwrite(str(folder / "masks" / f"{index:02d}.png"), mask)
    (folder / "classes.txt").write_text("background\ndisc\nsquare\n")
    (folder / "train.txt").write_text("".join(f"{i:02d}\n" for i in range(12)))
    (folder / "val.txt").write_text("".join(f"{i:02d}\n" for i in range(12, 16)))
    return folder


@pytest.fixture(scope="module")
def config(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "unireplknet_toy.py"
    path.write_text(CONFIG.replace("DATA", str(data)))
    return path


def script(name: str, *arguments: str | Path, library: str = "mmseg") -> str:
    """Run a tool of the library itself, by its path, and return what it says."""
    tools = Path(importlib.util.find_spec(library).origin).parent / ".mim" / "tools"
    return run(str(tools / name), *arguments)


def run(*arguments: str | Path) -> str:
    """Run Python in a process of its own."""
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def train(config: Path, folder: Path, **options: Any) -> Runner:
    """Train in this process."""
    settings = Config.fromfile(config)
    settings.work_dir = str(folder)
    settings.merge_from_dict({"experiment_name": folder.name, **options})
    settings.log_level = "ERROR"
    runner = Runner.from_cfg(settings)
    runner.train()
    return runner


def weights(path: Path) -> dict[str, Tensor]:
    content = CheckpointLoader.load_checkpoint(str(path), "cpu")
    return content["state_dict"]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def resumed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of mmseg's own train.py that was stopped after step 3 and resumed up to 6."""
    folder = tmp_path_factory.mktemp("resumed")
    script("train.py", config, "--work-dir", folder, "--cfg-options", "train_cfg.max_iters=3")
    script("train.py", config, "--work-dir", folder, "--resume")
    return folder


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
        assert found["protocol"]["weights"] == str(resumed / "iter_6.pth")


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


class TestBackbones:
    @pytest.mark.parametrize("scope", ["mmseg", "mmdet", "mmengine", "crossband"])
    def test_is_found_from_every_scope(self, scope: str) -> None:
        registries = {"mmseg": MMSEG, "mmdet": MMDET, "crossband": plugin.MODELS}
        with DefaultScope.overwrite_default_scope(scope):
            registry = registries.get(scope, plugin.roots.MODELS)
            network = registry.build({"type": "crossband.UniRepLKNet", **SMALL})
        assert network.out_channels == [8, 16, 24, 32]

    def test_every_family_and_size(self) -> None:
        names = {"TransNeXt": "micro", "UniRepLKNet": "a", "HorNet": "tiny_7x7"}
        for family, variant in names.items():
            with torch.device("meta"):
                network = MMSEG.build({"type": f"crossband.{family}", "variant": variant})
            assert network.strides == [4, 8, 16, 32]
        with pytest.raises(ConfigError, match=r"no variant 'tin'.*tiny"):
            MMSEG.build({"type": "crossband.TransNeXt", "variant": "tin"})

    def test_equals_the_network_itself(self) -> None:
        torch.manual_seed(0)
        ours = create_model("unireplknet_a", features_only=True, **SMALL).eval()
        torch.manual_seed(0)
        theirs = MMSEG.build({"type": "crossband.UniRepLKNet", "variant": "a", **SMALL}).eval()
        x = torch.randn(1, 3, 64, 96)
        assert all(torch.equal(a, b) for a, b in zip(ours(x), theirs(x), strict=True))

    def test_out_indices(self) -> None:
        network = MMSEG.build({"type": "crossband.UniRepLKNet", "out_indices": (1, 3), **SMALL})
        assert network.out_channels == [16, 32]
        assert [y.shape[1] for y in network(torch.randn(1, 3, 64, 64))] == [16, 32]

    def test_frozen_stages_and_norms(self) -> None:
        network = MMSEG.build({"type": "crossband.UniRepLKNet", "frozen_stages": 2, **SMALL})
        network.train()
        x = torch.randn(2, 3, 64, 64)
        before = {k: v.clone() for k, v in network.state_dict().items()}
        sum(y.square().mean() for y in network(x)).backward()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.grad is not None:
                    parameter -= parameter.grad
        changed = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
        moved = re.compile(r"(stages|downsample_layers)\.(\d)\.|norm\d\.")
        stages = {match[2] for key in changed if (match := moved.match(key))}
        assert stages == {"2", "3", None}
        assert any("running_mean" in key for key in changed)

    def test_norm_eval(self) -> None:
        network = MMSEG.build({"type": "crossband.UniRepLKNet", "norm_eval": True, **SMALL})
        norms = [m for m in network.train().modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms and not any(norm.training for norm in norms)
        assert network.training and not network.eval().training

    def test_of_the_registry(self) -> None:
        network = MMSEG.build({"type": "crossband.Backbone", "name": "timm:resnet18"})
        maps = network(torch.randn(1, 3, 64, 64))
        assert [y.shape[1] for y in maps] == network.out_channels
        assert [64 // y.shape[2] for y in maps] == network.strides
        with pytest.raises(ConfigError, match="frozen_stages 1"):
            MMSEG.build({"type": "crossband.Backbone", "name": "timm:resnet18", "frozen_stages": 1})

    def test_timm_registered_names_in_mmsegs_own_wrapper(self) -> None:
        import crossband.shared.plugins.timm  # noqa: F401

        network = MMSEG.build(
            {"type": "TIMMBackbone", "model_name": "unireplknet_a", "pretrained": False}
        )
        maps = network(torch.randn(1, 3, 64, 64))
        assert [y.shape[1:] for y in maps] == [(40, 16, 16), (80, 8, 8), (160, 4, 4), (320, 2, 2)]


class TestPretrained:
    @pytest.fixture
    def source(self) -> nn.Module:
        torch.manual_seed(5)
        return create_model("unireplknet_a", features_only=True, **SMALL)

    def load(self, path: Path, **config: Any) -> nn.Module:
        init = {"type": "Pretrained", "checkpoint": str(path), **config}
        network = MMSEG.build({"type": "crossband.UniRepLKNet", "init_cfg": init, **SMALL})
        network.init_weights()
        return network

    @pytest.mark.parametrize("form", ["authors", "mmseg", "parallel", "ours", "best"])
    def test_files(self, source: nn.Module, tmp_path: Path, form: str) -> None:
        state = source.state_dict()
        head = {"decode_head.conv_seg.weight": torch.zeros(3, 8, 1, 1)}
        inside = {f"backbone.{k}": v for k, v in state.items()} | head
        path = tmp_path / "weights.pth"
        if form == "authors":
            torch.save({"model": state, "epoch": 3}, path)
        elif form == "mmseg":
            history = {"message_hub": {"log_scalars": {"loss": HistoryBuffer([1.0], [1])}}}
            torch.save({"state_dict": inside, "meta": {"epoch": np.int64(3)}, **history}, path)
        elif form == "parallel":
            torch.save({f"module.backbone.{k}": v for k, v in state.items()}, path)
        else:
            path = tmp_path / "weights.safetensors"
            save_checkpoint(path, state if form == "ours" else inside, {"model": {}})
        assert same(self.load(path).state_dict(), state)

    def test_below_a_prefix(self, source: nn.Module, tmp_path: Path) -> None:
        state = source.state_dict()
        torch.save({f"student.{k}": v for k, v in state.items()}, tmp_path / "x.pth")
        assert same(self.load(tmp_path / "x.pth", prefix="student").state_dict(), state)
        with pytest.raises(CheckpointError, match="no weights under 'teacher.'"):
            self.load(tmp_path / "x.pth", prefix="teacher.")

    def test_a_classifier_says_what_it_left(self, tmp_path: Path) -> None:
        classifier = create_model("unireplknet_a", **SMALL)
        torch.save({"model": classifier.state_dict()}, tmp_path / "x.pth")
        with pytest.warns(UserWarning, match=r"head\.\*.* left out"):
            network = self.load(tmp_path / "x.pth")
        key = "downsample_layers.0.0.weight"
        assert torch.equal(network.state_dict()[key], classifier.state_dict()[key])

    def test_another_size_is_an_error(self, source: nn.Module, tmp_path: Path) -> None:
        state = {k: v for k, v in source.state_dict().items() if not k.startswith("stages.3.")}
        torch.save(state, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match="missing"):
            self.load(tmp_path / "x.pth")

    @pytest.mark.parametrize("form", ["whole", "run"])
    @pytest.mark.parametrize("name", ["timm:resnet10t", "unireplknet_a"])
    def test_networks_of_the_registry(self, tmp_path: Path, name: str, form: str) -> None:
        options = {} if name.startswith("timm:") else SMALL
        wanted = {"type": "crossband.Backbone", "name": name, **options}
        source = MMSEG.build({**wanted, "out_indices": (0, 1, 2)})
        state = {f"backbone.{k}": v for k, v in source.state_dict().items()}
        if form == "whole":
            state = create_model(name, **options).state_dict()
        torch.save({"state_dict": state}, tmp_path / "x.pth")
        init = {"type": "Pretrained", "checkpoint": str(tmp_path / "x.pth")}
        network = MMSEG.build({**wanted, "out_indices": (0, 1, 2), "init_cfg": init})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a classifier has beside the stages
            network.init_weights()
        inside = re.compile(r"backbone\.|network\.|net\.")
        expected = {inside.sub("", k): v for k, v in state.items()}
        found = {inside.sub("", k): v for k, v in network.state_dict().items()}
        common = found.keys() & expected.keys()
        assert len(common) > 20 and all(torch.equal(found[k], expected[k]) for k in common)
        assert {k for k in found if not k.startswith("norm")} <= common

    def test_other_forms_of_init_cfg(self) -> None:
        init = {"type": "Kaiming", "layer": "Conv2d"}
        network = MMSEG.build({"type": "crossband.UniRepLKNet", "init_cfg": init, **SMALL})
        with pytest.raises(ConfigError, match="initialise themselves"):
            network.init_weights()

    def test_inside_a_segmenter(self, source: nn.Module, tmp_path: Path, config: Path) -> None:
        torch.save(source.state_dict(), tmp_path / "x.pth")
        model = Config.fromfile(config).model
        model.backbone.init_cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "x.pth")}
        with DefaultScope.overwrite_default_scope("mmseg"):
            segmenter = MMSEG.build(model)
        segmenter.init_weights()
        assert same(segmenter.backbone.state_dict(), source.state_dict())


class Runs:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


class Reaches:
    """Asks for an attribute when it is unpickled."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name

    def __reduce__(self) -> Any:
        return getattr, (self.owner, self.name)


class TestSafeLoading:
    @pytest.mark.parametrize("way", ["load_from", "resume", "init_cfg", "prefix"])
    def test_no_code_runs(self, config: Path, tmp_path: Path, way: str) -> None:
        mark, path = tmp_path / "ran", tmp_path / "evil.pth"
        torch.save({"state_dict": {"w": torch.zeros(1)}, "meta": {}, "x": Runs(mark)}, path)
        settings = Config.fromfile(config)
        settings.update(work_dir=str(tmp_path), experiment_name=f"evil_{way}")
        init = {"type": "Pretrained", "checkpoint": str(path)}
        with pytest.raises(CheckpointError, match="would run code"):
            if way == "init_cfg":
                settings.model.backbone.init_cfg = init
                MMSEG.build(settings.model).init_weights()
            elif way == "prefix":
                settings.model.decode_head.init_cfg = {**init, "prefix": "decode_head."}
                MMSEG.build(settings.model).init_weights()
            else:
                settings.update(load_from=str(path), resume=way == "resume")
                Runner.from_cfg(settings).load_or_resume()
        assert not mark.exists()
        torch.load(path, weights_only=False)  # the trap works
        assert mark.exists()

    @pytest.mark.parametrize(
        ("owner", "name"),
        [
            (Tensor, "__class__"),
            (HistoryBuffer, "__init__"),
            (HistoryBuffer, "register_statistics"),
        ],
    )
    def test_no_attribute_is_handed_out(self, tmp_path: Path, owner: Any, name: str) -> None:
        path = tmp_path / "x.pth"
        torch.save({"state_dict": {"w": torch.zeros(1)}, "x": Reaches(owner, name)}, path)
        with pytest.raises(CheckpointError, match="would run code"):
            CheckpointLoader.load_checkpoint(str(path), "cpu")

    def test_getattr_is_not_allowed(self) -> None:
        assert getattr not in plugin.ALLOWED
        assert all(part[0] is not getattr for part in plugin.ALLOWED if isinstance(part, tuple))

    def test_what_mmengine_stores(self, tmp_path: Path) -> None:
        numbers = [np.float64(3), np.float32(1), np.int64(2), np.bool_(True), np.arange(3)]
        history = HistoryBuffer([1.0, 2.0], [1, 1])
        torch.save({"state_dict": {}, "history": history, "numbers": numbers}, tmp_path / "x.pth")
        found = CheckpointLoader.load_checkpoint(str(tmp_path / "x.pth"), "cpu")
        assert found["history"].mean() == 1.5 and found["history"].statistics("max") == 2.0
        for a, b in zip(found["numbers"], numbers, strict=True):
            assert type(a) is type(b) and np.array_equal(a, b)

    @pytest.mark.parametrize("way", ["address", "torchvision", "mmcls"])
    def test_downloads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
        torch.save({"state_dict": {"backbone.w": torch.ones(1)}}, tmp_path / "good.pth")
        torch.save({"state_dict": {}, "x": Runs(tmp_path / "ran")}, tmp_path / "evil.pth")
        handler = partial(QuietHandler, directory=str(tmp_path))
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            root = f"http://127.0.0.1:{server.server_port}"
            names = {name: f"{root}/{name}.pth?key=1" for name in ("good", "evil", "absent")}
            monkeypatch.setattr(plugin.checkpoint, f"get_{way}_models", lambda: names, False)
            where = names if way == "address" else {name: f"{way}://{name}" for name in names}
            found = CheckpointLoader.load_checkpoint(where["good"], "cpu")["state_dict"]
            assert found == {"w" if way == "mmcls" else "backbone.w": torch.ones(1)}
            with pytest.raises(CheckpointError, match="would run code"):
                CheckpointLoader.load_checkpoint(where["evil"], "cpu")
            with pytest.raises(CheckpointError, match="cannot be downloaded"):
                CheckpointLoader.load_checkpoint(where["absent"], "cpu")
            server.shutdown()
            again = CheckpointLoader.load_checkpoint(where["good"], "cpu")  # from the cache
            assert again["state_dict"].keys() == found.keys()
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("path", ["s3://bucket/x.pth", "a:petrel://b/x.pth", "pavi://x"])
    def test_storage_that_cannot_be_checked(self, path: str) -> None:
        with pytest.raises(CheckpointError, match="copy it to a local file"):
            CheckpointLoader.load_checkpoint(path, "cpu")

    def test_a_local_file_of_the_users_zoo(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MMENGINE_HOME", str(tmp_path))
        (tmp_path / "open_mmlab.json").write_text(json.dumps({"mine": "x.pth"}))
        torch.save({"x": Runs(tmp_path / "ran")}, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match="would run code"):
            CheckpointLoader.load_checkpoint("open-mmlab://mine", "cpu")
        assert not (tmp_path / "ran").exists()


class TestData:
    def make(self, root: Path, **options: Any) -> Any:
        pipeline = [
            {"type": "crossband.LoadThermalImage"},
            {"type": "mmseg.LoadAnnotations"},
            {"type": "mmseg.PackSegInputs"},
        ]
        return plugin.DATASETS.build(
            {
                "type": "crossband.FolderSegDataset",
                "data_root": str(root),
                **{"pipeline": pipeline, "max_refetch": 0, **options},
            }
        )

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        for index in range(3):
            (tmp_path / "images").mkdir(exist_ok=True)
            (tmp_path / "masks").mkdir(exist_ok=True)
            image = np.full((5, 7), 1000 * index, np.uint16)
            cv2.imwrite(str(tmp_path / "images" / f"{index}.a.png"), image)
            mask = np.full((5, 7), index, np.uint8)
            mask[0, 0] = 255
            cv2.imwrite(str(tmp_path / "masks" / f"{index}.a.png"), mask)
        (tmp_path / "classes.txt").write_text("sky\nroad\n\ncar\n")
        return tmp_path

    def test_items(self, root: Path) -> None:
        data = self.make(root)
        assert data.metainfo["classes"] == ["sky", "road", "car"]
        assert len({tuple(colour) for colour in data.metainfo["palette"]}) == 3
        item = data[2]
        assert item["inputs"].shape == (3, 5, 7)
        labels = item["data_samples"].gt_sem_seg.data
        assert labels.unique().tolist() == [2, 255] and labels[0, 0, 0] == 255

    def test_lists_of_stems_or_file_names(self, root: Path) -> None:
        (root / "val.txt").write_text("2.a\n0.a.png\n")
        data = self.make(root, ann_file="val.txt")
        assert [Path(data.get_data_info(i)["img_path"]).name for i in (0, 1)] == [
            "2.a.png",
            "0.a.png",
        ]

    def test_zero_label(self, root: Path) -> None:
        (root / "classes.txt").write_text("road\ncar\n")
        labels = self.make(root, reduce_zero_label=True)[2]["data_samples"].gt_sem_seg.data
        assert labels.unique().tolist() == [1, 255]

    def test_what_is_wrong_is_named(self, root: Path) -> None:
        (root / "classes.txt").write_text("sky\nroad\n")
        with pytest.raises(DataError, match=r"2\.a\.png has pixels of class 2.*2 classes"):
            self.make(root)[2]
        (root / "masks" / "1.a.png").unlink()
        with pytest.raises(DataError, match=r"1\.a\.png has no mask"):
            self.make(root)
        (root / "val.txt").write_text("9\n")
        with pytest.raises(DataError, match="lists '9'"):
            self.make(root, ann_file="val.txt")
        (root / "classes.txt").unlink()
        with pytest.raises(DataError, match=r"classes\.txt cannot be read"):
            self.make(root)


class TestThermalImage:
    def load(self, path: Path, **options: Any) -> np.ndarray:
        pipeline = Compose([{"type": "crossband.LoadThermalImage", **options}])
        result = pipeline({"img_path": str(path)})
        assert result["img_shape"] == result["ori_shape"] == result["img"].shape[:2]
        assert result["img"].dtype == np.float32
        return result["img"]

    def write(self, path: Path, pixels: np.ndarray) -> Path:
        assert cv2.imwrite(str(path), pixels)
        return path

    def test_depth_is_kept(self, tmp_path: Path) -> None:
        counts = np.arange(7200, 7200 + 600, dtype=np.uint16).reshape(20, 30)
        for suffix in (".png", ".tif"):
            path = self.write(tmp_path / f"x{suffix}", counts)
            image = self.load(path, channels=1, value_range=(7200, 7799))
            assert image.shape == (20, 30, 1)
            expected = (counts - 7200.0) * 255 / 599
            np.testing.assert_allclose(image[..., 0], expected, atol=1e-3)
            assert len(np.unique(image)) == 600

    def test_automatic_range(self, tmp_path: Path) -> None:
        counts = np.linspace(7200, 7799, 1000).round().astype(np.uint16).reshape(20, 50)
        counts[0, 0] = 65535  # a dead pixel
        image = self.load(self.write(tmp_path / "x.png", counts))
        assert image.min() == 0 and image.max() == 255
        assert 126 < np.median(image) < 129
        assert np.array_equal(image[..., 0], image[..., 2])

    def test_eight_bits_keep_their_values(self, tmp_path: Path) -> None:
        pixels = np.arange(200, dtype=np.uint8).reshape(10, 20)
        assert np.array_equal(self.load(self.write(tmp_path / "x.png", pixels))[..., 1], pixels)

    def test_colours(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
        path = self.write(tmp_path / "x.png", pixels)
        assert np.array_equal(self.load(path), cv2.imread(str(path)))  # BGR, as mmcv reads
        with pytest.raises(DataError, match="has colours"):
            self.load(path, channels=1)

    def test_a_uniform_image(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "x.png", np.full((4, 4), 9000, np.uint16))
        assert np.array_equal(self.load(path), np.zeros((4, 4, 3)))

    def test_settings_are_checked(self) -> None:
        for wrong in ({"value_range": (5, 5)}, {"channels": 2}):
            with pytest.raises(ConfigError):
                plugin.TRANSFORMS.build({"type": "crossband.LoadThermalImage", **wrong})

    def test_real_frames(self, shared_dir: Path) -> None:
        frames = sorted((shared_dir / "data" / "infrared" / "msrs_pairs" / "ir").glob("*.png"))
        image = self.load(frames[0])
        assert image.shape[2] == 3 and image.std() > 5


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


# ---------------------------------------------------------------------------------------------
# Detection


def detector(name: str) -> Any:
    """Return a stock config of mmdet's with a small backbone of ours and small heads."""
    configs = Path(importlib.util.find_spec("mmdet").origin).parent / ".mim" / "configs"
    model = Config.fromfile(configs / name).model
    model.backbone = {"type": "crossband.UniRepLKNet", **SMALL}
    if name.startswith("detr"):
        model.backbone["out_indices"] = (3,)
        model.neck.update(in_channels=[32], out_channels=32)
        model.num_queries = model.test_cfg.max_per_img = 8
        model.positional_encoding.num_feats = 16
        for part, attentions in (
            ("encoder", ["self_attn_cfg"]),
            ("decoder", ["self_attn_cfg", "cross_attn_cfg"]),
        ):
            model[part].num_layers = 1
            for attention in attentions:
                model[part].layer_cfg[attention].update(embed_dims=32, num_heads=4)
            model[part].layer_cfg.ffn_cfg.update(embed_dims=32, feedforward_channels=32)
        model.bbox_head.embed_dims = 32
        return model
    model.neck.update(in_channels=[8, 16, 24, 32], out_channels=16)
    if "bbox_head" in model:
        model.neck.update(start_level=0)
        model.bbox_head.update(in_channels=16, feat_channels=16)
        return model
    model.rpn_head.update(in_channels=16, feat_channels=16)
    model.train_cfg.rpn_proposal.update(nms_pre=200, max_per_img=100)
    model.test_cfg.rpn.update(nms_pre=200, max_per_img=100)
    model.roi_head.bbox_roi_extractor.out_channels = 16
    model.roi_head.bbox_head.update(in_channels=16, fc_out_channels=32)
    if "mask_head" in model.roi_head:
        model.roi_head.mask_roi_extractor.out_channels = 16
        model.roi_head.mask_head.update(in_channels=16, conv_out_channels=16, num_convs=1)
    return model


@pytest.mark.parametrize(
    "name",
    [
        "_base_/models/faster-rcnn_r50_fpn.py",
        "_base_/models/mask-rcnn_r50_fpn.py",
        "_base_/models/retinanet_r50_fpn.py",
        "detr/detr_r50_8xb2-150e_coco.py",
    ],
)
def test_detectors(name: str) -> None:
    """Losses, gradients and predictions of stock detectors, without compiled operators."""
    from mmdet.testing import demo_mm_inputs

    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MMDET.build(detector(name))
        shapes = [(3, 96, 128), (3, 128, 96)]
        batch = demo_mm_inputs(2, image_shapes=shapes, num_classes=80, with_mask="mask" in name)
        data = model.data_preprocessor(batch, training=True)
        model.train()
        losses = model.loss(data["inputs"], data["data_samples"])
        loss, _ = model.parse_losses(losses)
        loss.backward()
        assert loss.isfinite() and len(losses) >= 2
        for key, parameter in model.backbone.named_parameters():
            if parameter.grad is not None:
                assert parameter.grad.isfinite().all(), key
        reached = [p for p in model.backbone.parameters() if p.grad is not None]
        assert len(reached) > 0.8 * len(list(model.backbone.parameters()))
        model.eval()
        with torch.no_grad():
            data = model.data_preprocessor(batch, training=False)
            found = model.predict(data["inputs"], data["data_samples"])
    assert len(found) == 2
    for sample in found:
        boxes = sample.pred_instances.bboxes
        assert boxes.shape[1] == 4 and boxes.isfinite().all()
        assert sample.pred_instances.scores.diff().le(0).all() or "retinanet" not in name


DETECTION = """
_base_ = "BASE"
custom_imports = dict(imports=["crossband.shared.plugins.openmmlab"])
default_scope = "mmdet"
randomness = dict(seed=1)
model = dict(
    backbone=dict(_delete_=True, type="crossband.UniRepLKNet", depths=(1, 1, 1, 1),
                  dims=(8, 16, 24, 32), kernel_sizes=((3,), (3,), (3,), (3,))),
    neck=dict(in_channels=[8, 16, 24, 32], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(bbox_roi_extractor=dict(out_channels=16),
                  bbox_head=dict(in_channels=16, fc_out_channels=32, num_classes=2)))
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(96, 96), keep_ratio=True),
    dict(type="PackDetInputs",
         meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"))]
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="CocoDataset", ann_file="DATA/boxes.json", pipeline=pipeline,
                 data_prefix=dict(img="DATA/images/"),
                 metainfo=dict(classes=("disc", "square"))))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="CocoDataset", ann_file="DATA/boxes.json", pipeline=pipeline,
                 data_prefix=dict(img="DATA/images/"), test_mode=True,
                 metainfo=dict(classes=("disc", "square"))))
val_evaluator = dict(type="CocoMetric", ann_file="DATA/boxes.json", metric="bbox")
test_dataloader, test_evaluator = val_dataloader, val_evaluator
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=1)
val_cfg, test_cfg = dict(type="ValLoop"), dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3))
custom_hooks = [dict(type="crossband.RunFolderHook", select="coco/bbox_mAP_50")]
env_cfg = dict(dist_cfg=dict(backend="gloo"))
"""


@pytest.mark.slow
def test_mmdets_own_script(data: Path, tmp_path: Path) -> None:
    images, boxes = [], []
    for index in range(16):
        images.append({"id": index, "file_name": f"{index:02d}.png", "width": 48, "height": 48})
        mask = cv2.imread(str(data / "masks" / f"{index:02d}.png"), cv2.IMREAD_UNCHANGED)
        for kind in (1, 2):
            if (mask == kind).any():
                x, y, width, height = cv2.boundingRect((mask == kind).astype("u1"))
                box = {"id": len(boxes), "image_id": index, "category_id": kind, "iscrowd": 0}
                boxes.append(box | {"bbox": [x, y, width, height], "area": width * height})
    kinds = [{"id": 1, "name": "disc"}, {"id": 2, "name": "square"}]
    content = {"images": images, "annotations": boxes, "categories": kinds}
    (data / "boxes.json").write_text(json.dumps(content))
    library = Path(importlib.util.find_spec("mmdet").origin).parent / ".mim"
    base = library / "configs" / "_base_" / "models" / "faster-rcnn_r50_fpn.py"
    config = tmp_path / "config.py"
    config.write_text(DETECTION.replace("BASE", str(base)).replace("DATA", str(data)))
    script("train.py", config, "--work-dir", tmp_path / "run", library="mmdet")
    checkpoint = tmp_path / "run" / "epoch_1.pth"
    # This script imports detectors before it reads the config.
    launcher = ["-m", "crossband.shared.plugins.mmcv_ext", "mmdet:test"]
    text = run(*launcher, config, checkpoint, "--work-dir", tmp_path / "test")
    assert "coco/bbox_mAP" in text
    trained = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert trained["best"]["metric"] == "val_coco/bbox_mAP_50"
    tested = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert tested["test"]["coco/bbox_mAP_50"] == trained["best"]["val_coco/bbox_mAP_50"]
