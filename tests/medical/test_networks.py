"""Which network the options of `train` name, and how it comes back from a file."""

from __future__ import annotations

from pathlib import Path

import crossband.shared.compat  # noqa: F401 - before smp, which imports torchvision

import pytest
import torch
from torch import nn

from crossband.medical import networks
from crossband.medical.config import NetworkConfig, OptimizerConfig, TrainConfig, TuningConfig
from crossband.shared import create_model
from crossband.shared.backbones.vit import ViTClassifier
from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.heads.vit_segmentor import ViTSegmentor
from crossband.shared.heads.vit_unet import ViTUNet
from crossband.shared.training.optimizers import parameter_groups

SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8}


def config(**options) -> TrainConfig:
    return TrainConfig(size=32, **options)


def test_a_vit_of_findings() -> None:
    given = config(model="chest_mae_vit_tiny", network=NetworkConfig(arguments=SMALL))
    found = networks.describe(given, 3)
    assert found == {
        "name": "chest_mae_vit_tiny",
        "arguments": {
            **{"num_classes": 3, "img_size": 32, "global_pool": "avg", "drop_path_rate": 0.2},
            **SMALL,
        },
    }
    model = networks.build(found)
    assert isinstance(model, ViTClassifier) and model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert networks.head_of(model) == "head"


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("densenet121", "class_layers.out"),
        ("resnet50", "fc"),
        ("convnext_tiny", "head.fc"),
        ("timm:resnet18", "fc"),
    ],
)
def test_cnns_of_other_libraries(name: str, head: str) -> None:
    pytest.importorskip("monai", reason="extra medical")
    model = networks.build(networks.describe(config(model=name), 3)).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    assert networks.head_of(model) == head


def test_networks_of_masks() -> None:
    pytest.importorskip("monai", reason="extra medical")
    segmenting = {"task": "segmentation"}
    small = NetworkConfig(decoder="upernet", channels=8, detail=0, arguments=SMALL)
    for name in ("chest_mae_vit_tiny", "chest_mae_vit_tiny_upernet"):
        given = config(model=name, network=small, **segmenting)
        model = networks.build(networks.describe(given, 2))
        assert isinstance(model, ViTSegmentor)
    for name in ("chest_mae_vit_tiny", "chest_mae_vit_tiny_unet"):
        deep = NetworkConfig(arguments=SMALL | {"channels": [4, 8, 8]})
        given = config(model=name, network=deep, **segmenting)
        joined = networks.build(networks.describe(given, 2))
        assert isinstance(joined, ViTUNet)
    unet = networks.build(networks.describe(config(model="unet", **segmenting), 2))
    for network in (model, joined, unet):
        with torch.no_grad():
            assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 2, 32, 32)
    with pytest.raises(ConfigError, match="gives no masks"):
        networks.describe(config(model="densenet121", task="segmentation"), 2)
    with pytest.raises(ConfigError, match="is for chest_mae_vit"):
        networks.describe(config(model="resnet50", network=small, **segmenting), 2)


@pytest.mark.parametrize("name", ["resnet50", "timm:resnet18", "sam_vit_b", "unireplknet_a"])
def test_u_nets_are_built_on_any_backbone(name: str) -> None:
    given = networks.describe(config(model=name, task="segmentation"), 3)
    if name == "sam_vit_b":
        encoder = {"embed_dim": 16, "depth": 1, "num_heads": 2, "out_chans": 8, "img_size": 64}
        given["arguments"]["encoder"] = encoder
    model = networks.build(given).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 70, 64)).shape == (1, 3, 70, 64)
    networks.tune(model, given | {"tuning": {"kind": "linear"}})
    inner = f"{model.inner}."
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad is not key.startswith(inner)


def test_the_u_net_is_that_of_smp() -> None:
    import segmentation_models_pytorch as smp

    theirs = smp.Unet("resnet50", encoder_weights=None, classes=2).eval()
    ours = networks.build(networks.describe(config(model="resnet50", task="segmentation"), 2))
    assert not ours.eval().load_state_dict(theirs.state_dict(), strict=False).unexpected_keys
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(image), theirs(image))


def test_weights_of_the_authors_go_into_u_nets_and_classifiers(tmp_path: Path) -> None:
    encoder = create_model("lvm_med_resnet50")
    torch.save(encoder.state_dict(), tmp_path / "lvmmed_resnet.torch")
    for task, inner in (("segmentation", "encoder."), ("classification", "")):
        head = NetworkConfig(head=[6, 5] if task == "classification" else [])
        given = networks.describe(config(model="resnet50", task=task, network=head), 2)
        model = networks.build(given)
        networks.load_pretrained(model, str(tmp_path / "lvmmed_resnet.torch"))
        found = model.state_dict()
        for key, value in encoder.state_dict().items():
            assert torch.equal(found[inner + key], value)
    assert [m.out_features for m in model.fc if isinstance(m, torch.nn.Linear)] == [6, 5, 2]
    networks.tune(model, given | {"tuning": {"kind": "linear"}})
    assert {k.split(".")[0] for k, p in model.named_parameters() if p.requires_grad} == {"fc"}
    with pytest.raises(CheckpointError, match="no image encoder of SAM"):
        small = {"encoder": {"embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 64}}
        sam = networks.build(
            {"name": "lvm_med_vit_base_unet", "arguments": {"num_classes": 2, **small}}
        )
        networks.load_pretrained(sam, str(tmp_path / "lvmmed_resnet.torch"))


def test_what_networks_of_masks_do_not_take() -> None:
    segmenting = {"task": "segmentation"}
    with pytest.raises(ConfigError, match="patches of 16 pixels"):
        networks.build(
            networks.describe(
                config(
                    model="chest_mae_vit_tiny",
                    network=NetworkConfig(decoder="upernet", detail=4, arguments=SMALL),
                    **segmenting,
                ),
                2,
            )
        )
    with pytest.raises(ConfigError, match="is for --task classification"):
        networks.describe(config(model="chest_mae_vit_tiny", tuning="lora", **segmenting), 2)
    for name in ("unet", "chest_mae_vit_tiny_unet", "chest_mae_vit_tiny_upernet"):
        with pytest.raises(ConfigError, match="take --task segmentation"):
            networks.describe(config(model=name), 2)


def test_layer_decay_falls_from_the_head_down() -> None:
    network = NetworkConfig(arguments=SMALL)
    optimizer = OptimizerConfig(layer_decay=0.5, lr=1.0, decay_norm_and_bias=False)
    given = config(model="chest_mae_vit_tiny", network=network, optimizer=optimizer)
    model = networks.build(networks.describe(given, 3))
    rates = {
        id(p): group["lr"] for group in parameter_groups(model, optimizer) for p in group["params"]
    }
    named = dict(model.named_parameters())
    for name, rate in (
        ("head.weight", 1.0),
        ("fc_norm.weight", 1.0),
        ("blocks.1.attn.qkv.weight", 0.5),
        ("blocks.0.attn.qkv.weight", 0.25),
        ("patch_embed.proj.weight", 0.125),
        ("pos_embed", 0.125),
    ):
        assert rates[id(named[name])] == rate
    with pytest.raises(ConfigError, match="is for plain ViTs"):
        networks.describe(config(model="resnet50", optimizer=optimizer), 3)


def test_a_description_holds_what_a_tuning_needs() -> None:
    tuner = TuningConfig(rank=3, prompts=7, share=2, cross_attention="released")
    for kind, wanted in (
        ("full", None),
        ("linear", {"kind": "linear"}),
        ("lora", {"kind": "lora", "rank": 3}),
        (
            "dvpt",
            {"kind": "dvpt", "rank": 3, "prompts": 7, "share": 2, "cross_attention": "released"},
        ),
    ):
        given = config(
            model="chest_mae_vit_tiny",
            tuning=kind,
            tuner=tuner,
            network=NetworkConfig(arguments=SMALL),
        )
        found = networks.describe(given, 3)
        assert found.get("tuning") == wanted
        model = networks.build(found)
        networks.tune(model, found)
        frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
        assert bool(frozen) == (kind != "full")
        trained = [n for n, p in model.named_parameters() if p.requires_grad]
        assert "head.weight" in trained
        assert not any(n.endswith(("qkv.weight", "fc1.weight")) for n in trained) or kind == "full"
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_a_network_without_a_known_head() -> None:
    with pytest.raises(ConfigError, match="take --tuning full"):
        networks.head_of(nn.Sequential(nn.Linear(2, 2)))


def test_tunings_of_a_vit_are_refused_by_a_cnn() -> None:
    for kind in ("lora", "dvpt"):
        found = networks.describe(config(model="resnet50", tuning=kind), 3)
        with pytest.raises(ConfigError):
            networks.tune(networks.build(found), found)
