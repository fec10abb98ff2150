from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import crossband.shared.compat  # noqa: F401

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg

import crossband.shared.plugins.timm as plugin
from crossband.shared.backbones.catalog import MODELS
from crossband.shared.backbones.hornet import HorNetClassifier
from crossband.shared.errors import CheckpointError
from crossband.shared.registry import create_model

SMALL: dict[str, dict[str, Any]] = {
    "transnext_micro": {"embed_dims": (16, 24, 32, 48), "depths": (1, 1, 1, 1),
                        "num_heads": (2, 3, 4, 6)},
    "unireplknet_a": {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1),
                      "kernel_sizes": ((3,), (7,), (7,), (7,))},
    "hornet_tiny_gf": {"base_dim": 16, "depths": (1, 1, 1, 1)},
}  # fmt: skip


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(1, 3, 64, 96, generator=torch.manual_seed(1))


def test_all_pyramids_are_registered() -> None:
    names = {e.name for e in MODELS if e.name.startswith(("transnext", "unireplknet", "hornet"))}
    assert len(names) == 26 and all(timm.is_model(name) for name in names)
    assert names <= set(plugin.__all__)
    assert set(timm.list_models("transnext*")) <= names
    assert callable(plugin.transnext_tiny)


def test_settings() -> None:
    cfg = get_pretrained_cfg("unireplknet_b")
    assert cfg.input_size == (3, 384, 384) and cfg.pool_size == (12, 12)
    assert cfg.mean == (0.485, 0.456, 0.406) and cfg.classifier == "head"
    assert cfg.license == "apache-2.0" and cfg.paper_ids == "arXiv:2311.15599"
    model = timm.create_model("transnext_micro", num_classes=3, **SMALL["transnext_micro"])
    data = timm.data.resolve_data_config(model=model)
    assert data["input_size"] == (3, 224, 224) and data["std"] == (0.229, 0.224, 0.225)
    for name in SMALL:
        model = timm.create_model(name, **SMALL[name])
        assert model.get_submodule(get_pretrained_cfg(name).first_conv).in_channels == 3


@pytest.mark.parametrize("name", SMALL)
class TestFeatures:
    def test_getter_and_hook_give_the_backbones_maps(self, name: str, x: torch.Tensor) -> None:
        torch.manual_seed(0)
        ours = create_model(name, features_only=True, **SMALL[name]).eval()
        maps = ours(x)
        for feature_cls in ("getter", "hook"):
            torch.manual_seed(0)
            model = timm.create_model(
                name, features_only=True, feature_cls=feature_cls, **SMALL[name]
            ).eval()
            assert model.feature_info.channels() == ours.out_channels
            assert model.feature_info.reduction() == ours.strides
            assert all(torch.equal(a, b) for a, b in zip(model(x), maps, strict=True))

    @pytest.mark.parametrize("feature_cls", ["getter", "hook"])
    def test_out_indices(self, name: str, feature_cls: str, x: torch.Tensor) -> None:
        torch.manual_seed(0)
        maps = create_model(name, features_only=True, **SMALL[name]).eval()(x)
        for indices in ((1, 3), (-1,)):
            torch.manual_seed(0)
            model = timm.create_model(
                name,
                features_only=True,
                out_indices=indices,
                feature_cls=feature_cls,
                **SMALL[name],
            ).eval()
            found = model(x)
            assert model.feature_info.channels() == [maps[i].shape[1] for i in indices]
            for index, y in zip(indices, found, strict=True):
                assert torch.equal(y, maps[index])

    def test_one_channel(self, name: str, x: torch.Tensor) -> None:
        model = timm.create_model(name, features_only=True, in_chans=1, **SMALL[name])
        assert len(model(x[:, :1])) == 4
        model = timm.create_model(name, in_chans=1, num_classes=2, **SMALL[name])
        assert model(x[:, :1]).shape == (1, 2)

    def test_checkpoint_path(self, name: str, x: torch.Tensor, tmp_path: Path) -> None:
        torch.manual_seed(0)
        source = create_model(name, num_classes=3, **SMALL[name]).eval()
        torch.save(source.state_dict(), tmp_path / "weights.pth")
        model = timm.create_model(
            name, num_classes=3, checkpoint_path=tmp_path / "weights.pth", **SMALL[name]
        )
        assert torch.equal(model.eval()(x), source(x))


def overlay(path: Path) -> dict[str, Any]:
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}


def test_a_classifier_file_fits_other_channels_and_classes(tmp_path: Path) -> None:
    small, path = SMALL["hornet_tiny_gf"], tmp_path / "weights.pth"
    source = HorNetClassifier(filter_sizes=(None, None, (14, 8), (7, 4)), **small)
    torch.save({"model": source.state_dict()}, path)
    grey = timm.create_model("hornet_tiny_gf", in_chans=1, num_classes=4, **small, **overlay(path))
    weight = source.downsample_layers[0][0].weight.sum(1, keepdim=True)
    torch.testing.assert_close(grey.downsample_layers[0][0].weight, weight)
    assert torch.equal(grey.norm.weight, source.norm.weight) and grey.head.out_features == 4
    with pytest.warns(UserWarning, match=r"head\.\*, norm\.\* of the file left out; norm0"):
        model = timm.create_model(
            "hornet_tiny_gf", features_only=True, in_chans=1, **small, **overlay(path)
        )
    state = model.model.state_dict()
    torch.testing.assert_close(state["downsample_layers.0.0.weight"], weight)
    key = "stages.2.0.gnconv.dwconv.complex_weight"
    assert torch.equal(state[key], source.state_dict()[key])


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    small, path = SMALL["hornet_tiny_gf"], tmp_path / "weights.pth"
    torch.save({"stages.0.0.gamma1": torch.zeros(16)}, path)
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="keys differ"):
        timm.create_model("hornet_tiny_gf", features_only=True, **small, **overlay(path))
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model("hornet_tiny_gf", pretrained=True, **small)


def test_a_taken_name_stays_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.reload(plugin)  # our own names are no conflict
    entry = next(e for e in MODELS if e.name == "hornet_tiny_7x7")
    object.__setattr__(entry, "name", "resnet18")
    try:
        monkeypatch.setattr(plugin, "_ENTRIES", [entry])
        before = timm.model_entrypoint("resnet18")
        with pytest.warns(UserWarning, match="timm has a model 'resnet18' already"):
            plugin._register()
        assert timm.model_entrypoint("resnet18") is before
    finally:
        object.__setattr__(entry, "name", "hornet_tiny_7x7")
