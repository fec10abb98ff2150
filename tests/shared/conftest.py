from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from crossband.shared import registry
from crossband.shared.registry import ModelEntry


class ToyNet(nn.Module):
    """A linear layer of any size, and a scale."""

    def __init__(self, *, width: int, depth: int = 1, gain: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(depth)))
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.layers(x)


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("module."): value for key, value in state.items()}


def to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{key}": value for key, value in state.items()}


def adapter(
    config: dict, weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor | dict[str, float]]:
    if config.get("broken"):
        raise ValueError("two\nlines")
    x = inputs["x"].clone().requires_grad_()
    y = x @ weights["w"]
    y.square().sum().backward()
    scores = {"mse": float(y.detach().square().mean())}
    return {"y": y, "grad.x": x.grad, "count": torch.tensor(len(x)), "video": scores}


@pytest.fixture
def toy_domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replaces the installed domains by one with the models `toy` and `toy_small`."""
    package, module, catalog = ModuleType("toy"), ModuleType("toy.nets"), ModuleType("toy.catalog")
    for function in (ToyNet, from_official, to_official, adapter):
        setattr(module, function.__name__, function)
    common = {"target": "toy.nets:ToyNet", "task": "toying", "licence": "Apache-2.0"}
    catalog.MODELS = (
        ModelEntry("toy", official="toy.nets:from_official", **common),
        ModelEntry("toy_small", arguments={"width": 4, "depth": 2}, input_shape=(3, 4), **common),
    )
    catalog.CONFORMANCE = {"toy": "toy.nets:adapter"}
    for item in (package, module, catalog):
        monkeypatch.setitem(sys.modules, item.__name__, item)
    monkeypatch.setattr(registry, "domain_packages", lambda: {"toy": "toy"})
    _forget()
    yield
    _forget()


def _forget() -> None:
    registry.catalog.cache_clear()
    registry.conformance_adapters.cache_clear()
