from __future__ import annotations

import pytest
import torch

from crossband.shared.cli.domain import load_object
from crossband.shared.registry import create_model
from crossband.spatiotemporal.catalog import CONFORMANCE, MODELS
from crossband.spatiotemporal.predformer.model import VARIANTS

BY_NAME = {entry.name: entry for entry in MODELS}
# T, C, H, W of the published experiments.
SHAPES = {
    "mmnist": (10, 1, 64, 64),
    "taxibj": (4, 2, 32, 32),
    "human": (4, 3, 256, 256),
    "t2m": (12, 1, 32, 64),
    "r": (12, 1, 32, 64),
    "tcc": (12, 1, 32, 64),
    "uv10": (12, 2, 32, 64),
}


def test_every_variant_of_every_data_set_is_there() -> None:
    published = {f"predformer_{v}_{data}" for v in VARIANTS for data in SHAPES}
    any_size = {"predformer", *(f"predformer_{v}" for v in VARIANTS)}
    names = {name for name in BY_NAME if name.startswith("predformer")}
    assert names >= published | any_size
    assert len(BY_NAME) == len(MODELS)


@pytest.mark.parametrize("data", SHAPES)
def test_published_sizes_build_and_run(data: str) -> None:
    for variant in VARIANTS:
        entry = BY_NAME[f"predformer_{variant}_{data}"]
        assert entry.input_shape == SHAPES[data]
        with torch.device("meta"):
            model = create_model(entry.name)
            assert model(torch.empty(2, *entry.input_shape)).shape == (2, *entry.input_shape)
        assert (model.variant, model.input_shape) == (variant, entry.input_shape)


def test_published_depths() -> None:
    # Transformers in all: 24 for Moving MNIST, 12 for Human3.6M, 8 and for triplets 6 elsewhere.
    for data, total, of_triplets in (("mmnist", 24, 24), ("human", 12, 12), ("t2m", 8, 6)):
        for variant in VARIANTS:
            with torch.device("meta"):
                model = create_model(f"predformer_{variant}_{data}")
            layers = sum(name.endswith("to_qkv") for name, _ in model.named_modules())
            assert layers == (of_triplets if "triplet" in variant else total), (data, variant)


@pytest.mark.parametrize("name", ["predformer", *(f"predformer_{v}" for v in VARIANTS)])
def test_any_size_by_arguments(name: str) -> None:
    model = create_model(
        name, history=2, in_channels=3, height=4, width=8, dim=16, heads=2, dim_head=8, depth=1
    )
    assert model.variant == (name.removeprefix("predformer_") if "_" in name else "fac_ts")
    assert model(torch.randn(1, 2, 3, 4, 8)).shape == (1, 2, 3, 4, 8)


def test_entries_name_what_exists_and_say_what_it_is() -> None:
    for entry in MODELS:
        assert isinstance(load_object(entry.target), type), entry.name
        assert entry.official is None or callable(load_object(entry.official)), entry.name
        for fact in (entry.task, entry.summary, entry.paper, entry.licence, entry.weights):
            assert fact, entry.name


def test_adapters_exist() -> None:
    assert "predformer" in CONFORMANCE
    for target in CONFORMANCE.values():
        assert callable(load_object(target))
