"""One file of weights, four ways into a program: the same maps, and each of them learns."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from crossband.shared import create_model

NAME = "unireplknet_a"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A classifier's file, as the authors publish them."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "a.pth"
    torch.save({"model": create_model(NAME, layer_scale_init_value=0.5).state_dict()}, path)
    return path


def by_registry(path: Path) -> nn.Module:
    with pytest.warns(UserWarning, match="left out"):
        return create_model(NAME, weights=path, features_only=True)


def by_timm(path: Path) -> nn.Module:
    import crossband.shared.plugins.timm  # noqa: F401, I001 - registers our names
    import timm

    overlay = {"file": str(path)}
    with pytest.warns(UserWarning, match="left out"):
        return timm.create_model(
            NAME, features_only=True, pretrained=True, pretrained_cfg_overlay=overlay
        )


def by_mmseg(path: Path) -> nn.Module:
    import crossband.shared.plugins.openmmlab  # noqa: F401, I001 - before mmseg
    from mmseg.registry import MODELS

    init = {"type": "Pretrained", "checkpoint": str(path)}
    backbone = MODELS.build({"type": "crossband.UniRepLKNet", "variant": "a", "init_cfg": init})
    with pytest.warns(UserWarning, match="left out"):
        backbone.init_weights()
    return backbone


def by_monai(path: Path) -> nn.Module:
    from crossband.shared.plugins.monai import CrossbandEncoder

    encoder = CrossbandEncoder(NAME)
    encoder.backbone.load_state_dict(by_registry(path).state_dict())

    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, image: Tensor) -> list[Tensor]:
            return self.encoder(image)[1:]

    return Maps()


ROADS = {"registry": by_registry, "timm": by_timm, "mmseg": by_mmseg, "monai": by_monai}


def need(road: str) -> None:
    package = {"mmseg": "mmseg", "monai": "monai"}.get(road)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


@pytest.fixture(scope="module")
def wanted(weights: Path) -> list[Tensor]:
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return [image, *by_registry(weights).eval()(image)]


@pytest.mark.parametrize("road", ROADS)
def test_the_maps_are_the_same(road: str, weights: Path, wanted: list[Tensor]) -> None:
    need(road)
    network = ROADS[road](weights).eval()
    with torch.no_grad():
        found = network(wanted[0])
    assert len(found) == 4
    for a, b in zip(found, wanted[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("road", ROADS)
def test_a_loss_goes_down_over_thirty_steps(road: str, weights: Path) -> None:
    need(road)
    make: Callable[[Path], nn.Module] = ROADS[road]
    torch.manual_seed(0)
    network, head = make(weights).train(), nn.Linear(320, 2)
    x = torch.randn(8, 3, 32, 32)
    x[::2] += 0.5
    y = torch.arange(8) % 2
    optimizer = torch.optim.AdamW([*network.parameters(), *head.parameters()], 3e-4)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(head(network(x)[-1].mean((2, 3))), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
