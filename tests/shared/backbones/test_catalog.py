from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from crossband.shared.backbones.base import Backbone, ImageClassifier
from crossband.shared.backbones.catalog import MODELS
from crossband.shared.cli.domain import load_object
from crossband.shared.errors import ConfigError
from crossband.shared.registry import create_model, get_entry, list_models, model_info

PYRAMIDS = [e for e in MODELS if e.name.startswith(("transnext", "unireplknet", "hornet"))]
# Counted by the authors' code; UniRepLKNet in the training and the merged form.
PARAMETERS = {
    "transnext_micro": 12_809_304,
    "transnext_tiny": 28_258_960,
    "transnext_small": 49_741_564,
    "transnext_base": 89_721_496,
    "transnext_micro_aaaa": 13_114_008,
    "hornet_tiny_7x7": 22_409_512,
    "hornet_tiny_gf": 22_991_848,
    "hornet_small_7x7": 49_528_264,
    "hornet_small_gf": 50_401_768,
    "hornet_base_7x7": 87_256_680,
    "hornet_base_gf": 88_421_352,
    "hornet_base_gf_img384": 92_099_560,
    "hornet_large_7x7": 194_542_504,
    "hornet_large_gf": 196_289_512,
    "hornet_large_gf_img384": 201_806_824,
    "unireplknet_a": (4_649_060, 4_437_300),
    "unireplknet_f": (6_489_328, 6_235_216),
    "unireplknet_p": (11_080_520, 10_741_704),
    "unireplknet_n": (18_818_880, 18_318_560),
    "unireplknet_t": (31_693_420, 31_037_980),
    "unireplknet_s": (56_456_704, 55_645_984),
    "unireplknet_b": (99_089_416, 98_008_456),
    "unireplknet_l": (220_076_056, 218_454_616),
    "unireplknet_xl": (388_690_984, 386_529_064),
}
# Published multiply-adds in 1e9; Fourier transforms are not counted by either side.
MULTIPLY_ADDS = {
    "transnext_micro": 2.7,
    "transnext_tiny": 5.7,
    "transnext_micro_aaaa": 3.3,
    "hornet_tiny_7x7": 4.0,
    "hornet_tiny_gf": 3.9,
    "unireplknet_n": 2.8,
    "unireplknet_t": 4.9,
}
KEY_FILES = {
    "transnext_micro": "transnext_micro",
    "transnext_tiny": "transnext_tiny",
    "transnext_small": "transnext_small",
    "transnext_base": "transnext_base",
    "transnext_micro_aaaa": "transnext_micro_AAAA",
    "hornet_tiny_gf": "keys_hornet_tiny_gf",
    "unireplknet_a": "keys_unireplknet_a",
}


def on_meta(name: str, **arguments: Any) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **arguments)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_parameter_counts(name: str) -> None:
    published = PARAMETERS[name]
    if isinstance(published, tuple):
        train, deploy = published
        assert count(on_meta(name)) == train
        assert count(on_meta(name, deploy=True)) == deploy
    else:
        assert count(on_meta(name)) == published


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_published_multiply_adds(name: str) -> None:
    assert model_info(name)["flops"] / 2e9 == pytest.approx(MULTIPLY_ADDS[name], rel=0.03)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def published_shapes(text: str) -> dict[str, tuple[int, ...]]:
    found = re.findall(r"^(\S+)\s+(\([\d, ]*\))$", text, re.MULTILINE)
    return {key: tuple(map(int, re.findall(r"\d+", shape))) for key, shape in found}


@pytest.mark.parametrize("name", KEY_FILES)
def test_keys_are_the_authors(shared_dir: Path, name: str) -> None:
    text = (shared_dir / f"specs/backbones/keys/{KEY_FILES[name]}.txt").read_text("utf-8")
    train, _, deploy = text.partition(", deploy layout")
    assert len(published_shapes(train)) > 200
    assert shapes(on_meta(name)) == published_shapes(train)
    if deploy:
        assert shapes(on_meta(name, deploy=True)) == published_shapes(deploy)


def test_key_counts_of_both_layouts(shared_dir: Path) -> None:
    text = (shared_dir / "specs/backbones/keys/keys_unireplknet_a.txt").read_text("utf-8")
    rows = re.findall(r"^(unireplknet_\w+):.* train keys (\d+), deploy keys (\d+)", text, re.M)
    assert len(rows) == 9
    for name, train, deploy in rows:
        assert len(on_meta(name).state_dict()) == int(train)
        assert len(on_meta(name, deploy=True).state_dict()) == int(deploy)


@pytest.mark.parametrize("entry", PYRAMIDS, ids=lambda entry: entry.name)
def test_every_size_has_both_forms(entry: Any) -> None:
    classifier, backbone = on_meta(entry.name), on_meta(entry.name, features_only=True)
    assert isinstance(classifier, ImageClassifier) and isinstance(backbone, Backbone)
    assert backbone.strides == [4, 8, 16, 32]
    own = {k for k in backbone.state_dict() if not re.match(r"norm\d\.", k)}
    theirs = {k for k in classifier.state_dict() if not re.match(r"(norm\d?|head)\.", k)}
    assert own == theirs
    assert entry.mean and entry.std and entry.weights and entry.input_shape[0] == 3


def test_info_says_how_to_feed_a_model() -> None:
    info = model_info("transnext_small_384")
    assert info["input_shape"] == [3, 384, 384]
    assert info["mean"] == [0.485, 0.456, 0.406] and info["std"] == [0.229, 0.224, 0.225]
    assert "hornet_tiny_7x7" in list_models("hornet_*")


def test_a_model_without_maps_is_refused() -> None:
    entry = get_entry("transnext_tiny")
    assert load_object(entry.backbone).__name__ == "TransNeXt"
    with pytest.raises(ConfigError, match="takes no argument 'num_classes'"):
        create_model("transnext_tiny", features_only=True, num_classes=3)
    with pytest.raises(ConfigError, match=r"no argument 'drop_path'. Did you mean 'drop_path_rate"):
        create_model("transnext_tiny", drop_path=0.1)
    with pytest.raises(ConfigError, match="gives no feature maps, so features_only cannot be"):
        create_model("zero_dce", features_only=True)
