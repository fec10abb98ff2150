"""The rivals: networks of mmseg and of segmentation_models under our training loop."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from crossband.infrared import networks
from crossband.infrared.catalog import RIVALS
from crossband.infrared.config import NetworkConfig
from crossband.shared.config import OptimizerConfig, ScheduleConfig
from crossband.shared.errors import ConfigError
from crossband.shared.registry import create_model
from crossband.shared.tasks.segmentation import SegmentationTask
from crossband.shared.training.optimizers import build_optimizer

NEEDS = {
    "unet": "segmentation_models_pytorch",
    "upernet": "segmentation_models_pytorch",
    "segformer_b0": "mmseg",
    "deeplabv3plus_r18": "mmseg",
}
# Millions of parameters with 19 classes; mmseg's model zoo tells 3.7 and 12.5 of the last two.
PARAMETERS = {"segformer_b0": (3.6, 3.8), "deeplabv3plus_r18": (12.2, 12.7)}


def build(name: str, classes: int = 3) -> torch.nn.Module:
    pytest.importorskip(NEEDS[name])
    torch.manual_seed(0)
    return networks.build(networks.describe(name, NetworkConfig(), classes))


def test_every_rival_is_tested() -> None:
    assert {entry.name for entry in RIVALS} == NEEDS.keys()


@pytest.mark.parametrize("name", NEEDS)
def test_forward(name: str) -> None:
    model = build(name).eval()
    for size in ((96, 96), (64, 100)):
        with torch.no_grad():
            logits = model(torch.randn(2, 3, *size))
        assert logits.shape == (2, 3, *size) and logits.isfinite().all()
        assert model.num_classes == 3


@pytest.mark.parametrize("name", NEEDS)
def test_learns(name: str) -> None:
    """Bright halves are class 1, a strip is ignored."""
    model = build(name, classes=2).train()
    task = SegmentationTask(model, OptimizerConfig(), ScheduleConfig())
    optimizer = build_optimizer(model, OptimizerConfig(lr=2e-3))
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(4, 64, 64, dtype=torch.long)
    mask[:2, :, 32:], mask[2:, 32:] = 1, 1
    image = torch.randn(4, 3, 64, 64, generator=generator) * 0.3 + 2.0 * mask[:, None]
    mask[:, :4] = 255
    losses = []
    for _ in range(12):
        loss = task.loss({"image": image, "mask": mask})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0], losses
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_are_the_published_ones(name: str) -> None:
    low, high = PARAMETERS[name]
    millions = sum(p.numel() for p in build(name, classes=19).parameters()) / 1e6
    assert low <= millions <= high


def test_mmsegs_networks_are_those_of_its_configs() -> None:
    """The same tensors as the models of the shipped configs, without their auxiliary heads."""
    pytest.importorskip("mmseg")
    from pathlib import Path

    from mmengine.config import Config
    from mmseg.registry import MODELS

    import crossband.shared.plugins.openmmlab  # noqa: F401, I001 - before mmseg

    configs = Path(importlib.util.find_spec("mmseg").origin).parent / ".mim" / "configs"
    files = {
        "segformer_b0": "segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py",
        "deeplabv3plus_r18": "deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py",
    }
    for name, file in files.items():
        config = Config.fromfile(configs / file).model
        wanted: dict[str, Any] = {}
        for part in ("backbone", "decode_head"):
            config[part].update(norm_cfg={"type": "BN"}, init_cfg=None)
            if part == "backbone":
                if name == "segformer_b0":
                    del config[part]["norm_cfg"]
                config[part].pop("pretrained", None)
            module = MODELS.build(config[part])
            wanted |= {f"{part}.{k}": v.shape for k, v in module.state_dict().items()}
        classes = config.decode_head.num_classes
        own = {k: v.shape for k, v in build(name, classes).state_dict().items()}
        assert own == wanted


def test_names_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match="'segformer_b1' is no segmentation network"):
        networks.describe("segformer_b1", NetworkConfig(), 2)
    pytest.importorskip("mmseg")
    with pytest.raises(ConfigError, match="no network of mmseg is called 'segformer_b9'"):
        create_model("segformer_b0", variant="segformer_b9", num_classes=2)
    pytest.importorskip("segmentation_models_pytorch")
    with pytest.raises(ConfigError, match="unet cannot be built on the encoder 'tu-resnet17'"):
        networks.build(networks.describe("unet", NetworkConfig(encoder="tu-resnet17"), 2))


def test_rivals_take_no_weights_of_a_vit(tmp_path: Any) -> None:
    model = build("unet")
    torch.save({"blocks.0.norm1.weight": torch.ones(3)}, tmp_path / "vit.pth")
    with pytest.raises(ConfigError, match="has no plain ViT"):
        networks.load_pretrained(model, str(tmp_path / "vit.pth"))
