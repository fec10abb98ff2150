from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

for library in ("mmengine", "mmcv", "mmseg", "mmdet", "cv2"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: extra openmmlab", allow_module_level=True)

import numpy as np  # noqa: E402
from mmdet.registry import MODELS as MMDET  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.logging import HistoryBuffer  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402
from mmseg.registry import MODELS as MMSEG  # noqa: E402
from openmmlab_tester import SMALL, same  # noqa: E402

import crossband.shared.plugins.openmmlab as plugin  # noqa: E402
from crossband.shared.checkpoints import save_checkpoint  # noqa: E402
from crossband.shared.errors import CheckpointError, ConfigError  # noqa: E402
from crossband.shared.registry import create_model  # noqa: E402


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
