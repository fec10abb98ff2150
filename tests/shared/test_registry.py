from __future__ import annotations

import inspect
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
import torch

import crossband.shared
from crossband.shared import registry
from crossband.shared.checkpoints import save_checkpoint
from crossband.shared.cli.domain import load_object
from crossband.shared.errors import CheckpointError, ConfigError, MissingExtraError
from crossband.shared.registry import (
    create_model,
    domain_packages,
    get_entry,
    list_models,
    missing_arguments,
    model_info,
)


@pytest.mark.usefixtures("toy_domain")
class TestToyCatalog:
    def test_list_by_pattern(self) -> None:
        assert list_models("toy*") == ["toy", "toy_small"]
        assert {"toy", "transnext_tiny"} <= set(list_models())  # and the shared backbones
        assert list_models("toy*small") == ["toy_small"]
        assert list_models("TOY") == []

    def test_unknown_name_lists_near_names(self) -> None:
        with pytest.raises(ConfigError, match=r"unknown model 'toy_smal'. Did you mean 'toy_sm"):
            get_entry("toy_smal")
        with pytest.raises(ConfigError, match="crossband models list"):
            get_entry("qqqqqq")

    def test_arguments_override_the_catalog(self) -> None:
        model = create_model("toy_small", depth=3, gain=2.0)
        assert (len(model.layers), model.gain) == (3, 2.0)
        assert get_entry("toy_small").arguments == {"width": 4, "depth": 2}

    def test_unused_keyword_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match=r"no argument 'dept'. Did you mean 'depth'\?"):
            create_model("toy_small", dept=3)

    def test_missing_size_is_named(self) -> None:
        assert missing_arguments("toy", {}) == ["width"]
        with pytest.raises(ConfigError, match="give width as arguments"):
            create_model("toy")

    def test_info_counts_without_allocating(self) -> None:
        info = model_info("toy_small")
        assert info["parameters"] == 2 * 4 * 4
        assert info["flops"] == 2 * 3 * 4 * 4 * 2  # rows x width^2 x 2 layers, 2 per multiply-add
        # 4e12 parameters would not fit anywhere.
        assert model_info("toy", width=2_000_000)["parameters"] == 4 * 10**12
        assert model_info("toy")["required_arguments"] == ["width"]

    def test_weights_of_ours_and_of_the_authors(self, tmp_path: Path) -> None:
        source = create_model("toy", width=3)
        ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.pth"
        save_checkpoint(ours, source.state_dict(), {"model": {"name": "toy", "arguments": {}}})
        official = {f"module.{k}": v for k, v in source.state_dict().items()}
        torch.save({"state_dict": official}, theirs)
        for path in (ours, theirs):
            loaded = create_model("toy", weights=path, width=3)
            assert torch.equal(loaded.layers[0].weight, source.layers[0].weight)
        with pytest.raises(CheckpointError, match="does not fit"):
            create_model("toy", weights=ours, width=2)


def test_timm_models_by_prefix() -> None:
    model = create_model("timm:resnet18", num_classes=3, in_chans=1)
    assert model.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 3)
    with pytest.raises(ConfigError, match=r"timm has no model 'resnet81'. Did you mean 'resnet"):
        create_model("timm:resnet81")
    with pytest.raises(ConfigError, match="does not take these arguments"):
        create_model("timm:resnet18", no_such=1)


@pytest.mark.parametrize("name", ["mmseg:UNet", "mmdet:ResNet", "monai:UNet"])
def test_other_libraries_by_prefix(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = name.partition(":")[0]
    module, extra = registry._PLUGINS[prefix]
    plugin = ModuleType(module)
    plugin.build = lambda name, **arguments: torch.nn.Linear(**arguments)
    monkeypatch.setitem(sys.modules, module, plugin)
    assert create_model(name, in_features=2, out_features=3).weight.shape == (3, 2)
    with pytest.raises(ConfigError, match=f"{name} cannot be built with features_only"):
        create_model(name, features_only=True)

    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{prefix}'", name=f"{prefix}.models")

    plugin.build = absent
    with pytest.raises(MissingExtraError, match=rf"'{prefix}'.*crossband\[{extra}\]"):
        create_model(name)


def test_keywords_that_are_passed_on_are_checked() -> None:
    class Base:
        def __init__(self, *, width: int, depth: int = 1) -> None: ...

    class Child(Base):
        def __init__(self, *, depth: int = 2, head: int = 3, **others: int) -> None: ...

    found = registry._parameters(Child)
    assert {name: p.default for name, p in found.items()} == {
        "width": inspect.Parameter.empty, "depth": 2, "head": 3,
    }  # fmt: skip


def test_absent_installation_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(registry, "entry_points", lambda group: ())
    monkeypatch.setattr(registry, "distribution", absent)
    with pytest.raises(ConfigError, match=r"not installed.*pip install -e \."):
        domain_packages()


def test_what_a_translator_leaves_out_is_found_by_keys() -> None:
    state = {"image_encoder.a": torch.ones(1), "mask_decoder.b": torch.ones(1)}
    official = "crossband.shared.backbones.sam:from_official"
    assert registry.left_out(state, official) == ["mask_decoder.b"]
    state = {"module.backbone.a": torch.ones(1), "module.head.b": torch.ones(1)}
    official = "crossband.shared.backbones.official:from_official"
    assert registry.left_out(state, official) == ["module.head.b"]


def test_public_names_are_exported() -> None:
    assert crossband.shared.create_model is create_model
    assert {"load", "list_models", "model_info"} <= set(crossband.shared.__all__)


def test_catalogs_agree_with_the_code() -> None:
    """Every entry of every installed domain imports, builds on no memory and is documented."""
    for name in list_models():
        entry = get_entry(name)
        assert entry.task and entry.summary and entry.paper and entry.licence, name
        if entry.official:
            load_object(entry.official)
            load_object(entry.official.partition(":")[0] + ":to_official")
        if not missing_arguments(name, {}):
            with torch.device("meta"):
                model = create_model(name)
                if entry.backbone:
                    assert create_model(name, features_only=True).out_channels
            if entry.input_shape:
                assert next(model.parameters()).is_meta
    for target in registry.conformance_adapters().values():
        load_object(target)
