from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crossband.medical.lvm_med.local import location_grid
from crossband.medical.lvm_med.model import LVMMed
from crossband.shared.backbones.base import Backbone
from crossband.shared.backbones.sam import SAMEncoder
from crossband.shared.errors import ConfigError
from crossband.shared.registry import create_model, model_info

OBJECTIVE = {"graph_size": 4, "k": 2, "gamma": (3, 2)}


class Small(Backbone):
    """Two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU()
        )
        self.out_channels, self.strides = [12], [8]

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.net(image)]


def batch(count: int = 4, small: bool = True, side: int = 32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def images(size: int) -> list[Tensor]:
        return [torch.randn(count, 3, size, size, generator=generator) for _ in range(2)]

    grid = location_grid((0, 0, 32, 32), 7)[None].expand(count, -1, -1, -1)
    found = {"views": images(side), "grids": [grid, grid]}
    if small:
        found |= {"small": images(side // 2), "small_grids": [grid, grid]}
    return found


def test_large_views_meet_each_other_and_every_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LVMMed(Small(), objective=OBJECTIVE)
    seen: list[int] = []
    forward = model.objective.forward
    monkeypatch.setattr(
        model.objective,
        "forward",
        lambda pairs, generator: (seen.append(len(pairs)), forward(pairs, generator))[1],
    )
    loss = model(batch()).loss
    loss.backward()
    model(batch(small=False))
    assert seen == [5, 1]
    assert model.backbone.net[0].weight.grad.isfinite().all()


def test_a_samples_view_is_pooled_from_its_map() -> None:
    model = LVMMed(Small(), objective=OBJECTIVE)
    given = batch(small=False)
    (first, _) = model._views(given["views"], given["grids"], small=False)
    wanted = model.backbone(given["views"][0])[0].mean((2, 3))
    torch.testing.assert_close(first.z, model.objective.projector(wanted))


def sam() -> SAMEncoder:
    return SAMEncoder(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, out_chans=4, window_size=2,
        global_attn_indexes=(1,), use_abs_pos=False,
    )  # fmt: skip


def test_of_sams_encoder_the_last_block_learns() -> None:
    model = LVMMed(sam(), objective={**OBJECTIVE, "lam": 2.0})
    image = batch()["views"][0]
    wanted = model.backbone.stages(image)["block1"].permute(0, 3, 1, 2)
    torch.testing.assert_close(model.feature_map(image), wanted)
    model(batch()).loss.backward()
    assert all(
        (p.grad is not None) == p.requires_grad == (not name.startswith("neck."))
        for name, p in model.backbone.named_parameters()
    )


def test_or_the_neck() -> None:
    model = LVMMed(sam(), neck=True, objective=OBJECTIVE)
    image = batch()["views"][0]
    torch.testing.assert_close(model.feature_map(image), model.backbone(image)[0])
    assert model.backbone.neck[0].weight.requires_grad


@pytest.mark.parametrize("name", ["timm:resnet18", "unireplknet_a"])
def test_any_backbone_by_its_name(name: str) -> None:
    model = LVMMed(name, objective=OBJECTIVE)
    assert model.feature_map(batch()["views"][0]).shape[1] == model.backbone.out_channels[-1]
    assert set(model.encoder_state()) == set(create_model(name, features_only=True).state_dict())


def test_the_published_sizes() -> None:
    with torch.device("meta"):
        resnet, vit = LVMMed("resnet50"), LVMMed("sam_vit_b")
    # 2048 x 128 and 768 x 128 (dossier, section 1), two layers of width 128.
    assert resnet.objective.projector[0].weight.shape == (128, 2048)
    assert vit.objective.projector[0].weight.shape == (128, 768)
    assert [tuple(w.shape) for w in resnet.objective.message_passing.weights] == [(128, 128)] * 2
    assert sum(p.numel() for p in resnet.objective.parameters()) == 2048 * 128 + 2 * 128 * 128
    info = model_info("lvm_med")
    assert info["parameters"] == 23_508_032 + 2048 * 128 + 2 * 128 * 128


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="no feature maps"):
        LVMMed(nn.Conv2d(3, 4, 3))
    with pytest.raises(ConfigError, match="give a name"):
        LVMMed(Small(), weights="x.pth")
    with pytest.raises(ConfigError, match="neck"):
        LVMMed(Small(), neck=True)
    with pytest.raises(ConfigError, match="arguments"):
        LVMMed(Small(), objective={"lambda": 3})
    model = LVMMed(Small(), objective=OBJECTIVE)
    with pytest.raises(ConfigError, match="two of every image"):
        model({"views": batch()["views"][:1], "grids": batch()["grids"][:1]})
    with pytest.raises(ConfigError, match="one for each"):
        model({"views": batch()["views"], "grids": batch()["grids"][:1]})


@pytest.mark.parametrize(("order", "gradient"), [(1, "blackbox"), (2, "imle")])
def test_matching_is_learnt(order: int, gradient: str) -> None:
    """Two channels show the image, one shows noise that differs between views."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = LVMMed(
        Small(),
        objective={
            **{"graph_size": 8, "k": 3, "gamma": (4, 4), "order": order, "gradient": gradient},
            **{"message_passing": False, "solver_options": {"chains": 8} if order == 2 else {}},
        },
    )
    grid = location_grid((0, 0, 16, 16), 2)[None].expand(16, -1, -1, -1)

    def batch() -> dict[str, Any]:
        image = torch.randn(16, 3, 1, 1, generator=generator)
        noise = torch.randn(2, 16, 3, 1, 1, generator=generator)
        mixed = torch.cat((image[:, :2] + 0.2 * noise[:, :, :2], 2 * noise[:, :, 2:]), 2)
        return {"views": list(mixed.expand(-1, -1, -1, 16, 16)), "grids": [grid, grid]}

    held = [batch() for _ in range(6)]

    def matched() -> float:
        model.objective.noisy = False
        with torch.no_grad():
            shares = [model(given).statistics["matched"].item() for given in held]
        model.objective.noisy = gradient == "imle"
        return sum(shares) / len(shares)

    before = matched()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimiser.zero_grad()
        model(batch()).loss.backward()
        optimiser.step()
    assert before < 0.55
    assert matched() > before + 0.15
