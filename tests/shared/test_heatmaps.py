from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.backbones.vit import ViTClassifier
from crossband.shared.errors import ConfigError
from crossband.shared.heatmaps import attention_rollout, gradient_heatmap, overlay
from crossband.shared.registry import create_model
from crossband.shared.tuning.dvpt.apply import apply_dvpt
from crossband.shared.tuning.lora import apply_lora

SIDE, PATCH, BLOB = 24, 4, 2.0
TINY: dict[str, Any] = {
    **{"img_size": SIDE, "patch_size": PATCH, "embed_dim": 32, "depth": 3, "num_heads": 2},
    **{"num_classes": 2, "in_chans": 1},
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def phantoms(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Images of noise with a bright blob, a dark one, both or none; labels and centres."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    image = 0.5 * torch.randn(count, 1, SIDE, SIDE, generator=generator)
    centre = torch.randint(4, SIDE - 4, (count, 2, 2), generator=generator)
    label = (torch.rand(count, 2, generator=generator) < 0.5).float()
    for kind, height in ((0, 2.5), (1, -2.5)):
        away = (y - centre[:, kind, 0, None, None]) ** 2 + (x - centre[:, kind, 1, None, None]) ** 2
        image += (height * label[:, kind, None, None] * (-away / (2 * BLOB**2)).exp())[:, None]
    return image, label, centre


def learned(model: nn.Module, steps: int) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(steps):
        image, label, _ = phantoms(32, generator)
        loss = F.binary_cross_entropy_with_logits(model(image), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.zero_grad()
    image, label, _ = phantoms(200, torch.Generator().manual_seed(1))
    with torch.no_grad():
        right = ((model.eval()(image) > 0) == label.bool()).float().mean()
    assert right > 0.97, right
    return model


@pytest.fixture(scope="module", params=["avg", "token"])
def vit(request) -> nn.Module:
    torch.manual_seed(0)
    return learned(ViTClassifier(global_pool=request.param, **TINY), 300)


@pytest.fixture(scope="module")
def cnn() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after, side in ((1, 16, 5), (16, 32, 3)):
        layers += [
            nn.Conv2d(before, after, side, 2, side // 2),
            nn.BatchNorm2d(after),
            nn.ReLU(True),
        ]
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2))
    return learned(nn.Sequential(*layers, pool), 200)


def hits(heat: Tensor, centre: Tensor) -> float:
    """Share of maps whose maximum is within the blob, give or take half a patch."""
    step, columns = SIDE // heat.shape[-1], heat.shape[-1]
    place = heat.flatten(1).argmax(1)
    found = torch.stack([place // columns, place % columns], 1) * step + step / 2
    return float(((found - centre).norm(dim=1) < 2 * BLOB + step / 2).float().mean())


def localisation(model: nn.Module, heat: Any) -> float:
    image, label, centre = phantoms(200, torch.Generator().manual_seed(2))
    found = []
    for kind in (0, 1):
        chosen = label[:, kind] == 1
        found.append(hits(heat(model, image[chosen], kind), centre[chosen, kind]))
    return sum(found) / 2


def last_block(model: Any, image: Tensor, target: int) -> Tensor:
    """Grad-CAM on the patches that enter the attention of the last block."""
    kept: list[Tensor] = []
    hook = model.blocks[-1].norm1.register_forward_hook(lambda _, __, x: kept.append(x))
    score = model(image)[:, target].sum()
    hook.remove()
    (slope,) = torch.autograd.grad(score, kept[0])
    weighted = kept[0][:, 1:] * slope[:, 1:].mean(1, keepdim=True)
    side = SIDE // PATCH
    return weighted.sum(-1).clamp_min(0).unflatten(1, (side, side)).detach()


def test_vits_are_explained_by_the_blob(vit) -> None:
    ours = localisation(vit, gradient_heatmap)
    rolled = localisation(vit, lambda model, image, _: attention_rollout(model, image))
    assert ours > 0.85 and rolled > 0.7
    assert ours > rolled > localisation(vit, last_block)


def test_cnns_are_explained_by_the_blob(cnn) -> None:
    assert localisation(cnn, gradient_heatmap) > 0.9


def test_the_two_findings_differ(cnn) -> None:
    image, label, centre = phantoms(200, torch.Generator().manual_seed(3))
    both = label.sum(1) == 2
    target = torch.tensor([0, 1]).repeat(100)[: int(both.sum())]
    heat = gradient_heatmap(cnn, image[both], target)
    own = centre[both][torch.arange(len(target)), target]
    assert hits(heat, own) > 0.9
    for kind in (0, 1):
        same = gradient_heatmap(cnn, image[both][target == kind], kind)
        torch.testing.assert_close(heat[target == kind], same)


def fixed(model: ViTClassifier, columns: list[int]) -> None:
    """Make each block attend to one token, the same from everywhere."""
    for block, column in zip(model.blocks, columns, strict=True):

        def attend(x: Tensor, column: int = column) -> Tensor:
            logits = torch.full((len(x), 2, x.shape[1], x.shape[1]), -1e4)
            logits[..., column] = 0
            return logits + 0 * x.sum()

        def forward(x: Tensor, logits: list | None = None, attend: Any = attend) -> Tensor:
            mixing = attend(x)
            if logits is not None:
                logits.append(mixing)
            return torch.zeros_like(x) + 0 * mixing.sum()

        block.attn.forward = forward


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_rollout_in_closed_form(pool) -> None:
    """The class token takes 1/2 from what block 2 attends to, 1/4 from what block 1 does."""
    model = ViTClassifier(global_pool=pool, **{**TINY, "depth": 2})
    fixed(model, [3, 7])  # patches 2 and 6
    heat = attention_rollout(model, torch.zeros(2, 1, SIDE, SIDE)).flatten(1)
    expected = torch.zeros(36)
    if pool == "avg":  # a quarter of each patch is its own
        expected += 0.25 / 36
    expected[2] += 0.5  # of block 1: half for every token, whatever block 2 mixes
    expected[6] += 0.25
    torch.testing.assert_close(heat, expected.expand(2, -1))


def test_rollout_is_the_product_of_the_maps() -> None:
    torch.manual_seed(0)
    model = ViTClassifier(global_pool="token", **{**TINY, "depth": 2}).eval()
    image = torch.randn(2, 1, 32, 40)
    maps = model.forward_tokens(image, capture=[0, 1], capture_kind="maps").attention
    first, second = (0.5 * maps[i].mean(1) + 0.5 * torch.eye(81) for i in (0, 1))
    heat = attention_rollout(model.train(), image)
    assert heat.shape == (2, 8, 10) and not heat.requires_grad
    torch.testing.assert_close(heat.flatten(1), (second @ first)[:, 0, 1:].detach())


def test_grad_cam_in_closed_form() -> None:
    """With mean pooling and a linear head, Grad-CAM is the class's weighted sum of maps."""
    torch.manual_seed(0)
    head = nn.Linear(4, 3)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head
    )
    image = torch.randn(2, 1, 6, 7)
    expected = torch.einsum("bchw,c->bhw", model[0](image), head.weight[1]) / 42
    torch.testing.assert_close(gradient_heatmap(model, image, 1), expected.clamp_min(0).detach())


def state(model: nn.Module) -> list:
    return [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", ["vit", "cnn"])
def test_nothing_is_left_behind(kind, mode) -> None:
    torch.manual_seed(0)
    model: nn.Module = (
        ViTClassifier(global_pool="avg", drop_path_rate=0.5, **TINY)
        if kind == "vit"
        else nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        )
    )
    model.train()
    list(model.children())[0].eval()
    before, weights = state(model), {k: v.clone() for k, v in model.state_dict().items()}
    image = torch.randn(2, 1, SIDE, SIDE)
    expected = gradient_heatmap(model, image, 0)
    with mode():
        enabled, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        heat = gradient_heatmap(model, image.clone(), 0)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (enabled, inference)
        if kind == "vit":
            attention_rollout(model, image.clone())
    torch.testing.assert_close(heat, expected)
    assert not heat.requires_grad and heat.min() >= 0
    assert state(model) == before
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    with pytest.raises(ConfigError, match="no output 2"):
        gradient_heatmap(model, image, 2)
    assert state(model) == before and torch.is_grad_enabled()


def test_frozen_and_adapted_networks_are_explained_too() -> None:
    torch.manual_seed(0)
    model = ViTClassifier(global_pool="avg", **TINY)
    image = torch.randn(2, 1, SIDE, SIDE)
    expected, rolled = gradient_heatmap(model, image, 1), attention_rollout(model, image)
    apply_lora(model, rank=2)  # starts at no change
    torch.testing.assert_close(gradient_heatmap(model, image, 1), expected)
    torch.testing.assert_close(attention_rollout(model, image), rolled)
    model.requires_grad_(False)
    torch.testing.assert_close(gradient_heatmap(nn.Sequential(model), image, 1), expected)
    apply_dvpt(model, prompts=5, rank=2)  # prompts lie between class token and patches
    for heat in (gradient_heatmap(model, image, 1), attention_rollout(model, image)):
        assert heat.shape == (2, 6, 6) and heat.max() > 0


def test_relevance_in_closed_form() -> None:
    """Without attention that matters, half of a patch's gain stays with it in each block."""
    torch.manual_seed(0)
    model = ViTClassifier(global_pool="avg", **{**TINY, "depth": 2}).eval()
    fixed(model, [3, 7])  # outputs do not depend on it, so no attention raises one
    image = torch.randn(2, 1, SIDE, SIDE)
    tokens = model.forward_tokens(image).patches().detach().requires_grad_()
    model.head(model.fc_norm(tokens.mean(1)))[:, 1].sum().backward()
    expected = (tokens * tokens.grad).sum(-1).clamp_min(0).detach() / 4
    torch.testing.assert_close(gradient_heatmap(model, image, 1).flatten(1), expected)


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [
        ("timm:resnet18", {"num_classes": 2}, (2, 2)),
        ("timm:densenet121", {"num_classes": 2}, (2, 2)),
        ("timm:convnext_atto", {"num_classes": 2}, (2, 2)),
        ("timm:swin_tiny_patch4_window7_224", {"num_classes": 2, "img_size": 64}, (2, 2)),
        ("monai:DenseNet121", {"spatial_dims": 2, "in_channels": 3, "out_channels": 2}, (2, 2)),
    ],
)
def test_the_last_map_of_known_networks_is_found(name, arguments, shape) -> None:
    torch.manual_seed(0)
    model = create_model(name, **arguments)
    heat = gradient_heatmap(model, torch.randn(1, 3, 64, 64), 0)
    assert heat.shape == (1, *shape) and torch.isfinite(heat).all()


def test_networks_without_a_map_are_named() -> None:
    model = create_model("timm:vit_tiny_patch16_224", img_size=32, num_classes=2)
    image = torch.randn(1, 3, 32, 32)
    with pytest.raises(ConfigError, match="ends in no feature map"):
        gradient_heatmap(model, image, 0)
    with pytest.raises(ConfigError, match="no plain ViT"):
        attention_rollout(model, image)
    with pytest.raises(ConfigError, match="must give one map"):
        gradient_heatmap(model, image, 0, layer=model.blocks[0])
    assert gradient_heatmap(model, image, 0, layer=model.patch_embed.proj).shape == (1, 2, 2)


def test_overlays_show_the_image_where_it_is_cold() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60), np.uint8)
    heat = np.zeros((4, 6))
    heat[0, 0] = 3.0
    drawn = overlay(pixels, heat)
    assert drawn.shape == (40, 60, 3) and drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[20:, 30:], pixels[20:, 30:, None].repeat(3, 2))
    warm = np.array([252, 255, 164])  # the end of "inferno"
    np.testing.assert_allclose(drawn[0, 0], 0.4 * pixels[0, 0] + 0.6 * warm, atol=1)
    np.testing.assert_array_equal(overlay(pixels, heat + 5), drawn)  # its own range
    plain = overlay(pixels, torch.full((4, 6), 2.0))
    np.testing.assert_array_equal(plain, pixels[..., None].repeat(3, 2))


def test_overlays_refuse_what_is_no_map() -> None:
    pixels = np.zeros((4, 4), np.uint8)
    with pytest.raises(ConfigError, match="finite"):
        overlay(pixels, np.full((2, 2), np.nan))
    with pytest.raises(ConfigError, match="uint8"):
        overlay(pixels.astype(float), np.zeros((2, 2)))
