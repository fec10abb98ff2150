from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from crossband.apps.main import main
from crossband.medical.lvm_med.encoder import ResNet50, ResNet50Backbone
from crossband.medical.lvm_med.model import LVMMed
from crossband.medical.lvm_med.official import (
    from_official,
    left_out,
    read_encoder,
    swap_encoder,
    to_official,
)
from crossband.shared.backbones.sam import SAMEncoder
from crossband.shared.checkpoints import load_state, save_checkpoint
from crossband.shared.errors import CheckpointError
from crossband.shared.registry import create_model

TINY = {
    "img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "out_chans": 4,
    "window_size": 2, "global_attn_indexes": (1,),
}  # fmt: skip


@pytest.fixture(scope="module")
def resnet() -> dict[str, Tensor]:
    """As `lvmmed_resnet.torch`, with a classifier."""
    torch.manual_seed(0)
    return timm.create_model("resnet50").state_dict()


@pytest.fixture(scope="module")
def vit() -> dict[str, Tensor]:
    """As `lvmmed_vit.pth`, of a tiny size."""
    torch.manual_seed(0)
    model = SAMEncoder(**TINY, use_abs_pos=False)
    return {key: torch.randn_like(value) * 0.1 for key, value in model.state_dict().items()}


def sam_of(vit: dict[str, Tensor], positions: float) -> dict[str, Tensor]:
    whole = {f"image_encoder.{key}": value for key, value in vit.items()}
    whole["image_encoder.pos_embed"] = torch.full((1, 4, 4, 16), positions)
    return {**whole, "mask_decoder.iou_token.weight": torch.ones(1, 4)}


def published(text: str, name: str) -> dict[str, tuple[int, ...]]:
    part = text.partition(f"## LVM-Med {name}")[2].partition("## ")[0]
    rows = re.findall(r"^(\S+) (\([\d, ]*\))$", part, re.MULTILINE)
    return {key: tuple(map(int, re.findall(r"\d+", shape))) for key, shape in rows}


@pytest.mark.parametrize(("name", "ours"), [("vit_encoder_b", "base"), ("vit_encoder_h", "huge")])
def test_published_shapes_of_the_vits(shared_dir: Path, name: str, ours: str) -> None:
    text = (shared_dir / "fixtures/medical/lvmmed_full_sizes.txt").read_text("utf-8")
    with torch.device("meta"):
        state = create_model(f"lvm_med_vit_{ours}").state_dict()
    shapes = published(text, name)
    assert len(shapes) > 20
    # The file lists the first block of a kind; all others are like one of the two.
    assert {key: tuple(state[key].shape) for key in shapes} == shapes
    total = int(re.search(rf"{name} .*total=(\d+)", text)[1])
    assert sum(value.numel() for value in state.values()) == total


def test_published_size_of_the_resnet(resnet: dict[str, Tensor]) -> None:
    # 25.55 M with torchvision's classifier of 1,000 classes.
    with torch.device("meta"):
        assert sum(p.numel() for p in ResNet50(1000).parameters()) == 25_557_032
        assert set(ResNet50(1000).state_dict()) == set(resnet)


@pytest.mark.parametrize("wrapper", ["", "module.", "model.", "backbone.", "encoder."])
@pytest.mark.parametrize("head", [True, False])
def test_resnets_load_as_they_come(
    resnet: dict[str, Tensor], tmp_path: Path, wrapper: str, head: bool
) -> None:
    state = {f"{wrapper}{k}": v for k, v in resnet.items() if head or not k.startswith("fc.")}
    torch.save(state, tmp_path / "lvmmed_resnet.torch")
    model = create_model("lvm_med_resnet50", weights=tmp_path / "lvmmed_resnet.torch")
    assert torch.equal(model.layer4[2].conv3.weight, resnet["layer4.2.conv3.weight"])
    kind, found = read_encoder(tmp_path / "lvmmed_resnet.torch")
    assert kind == "resnet50"
    assert set(found) == set(model.state_dict())


def test_a_backbone_says_what_it_leaves_out(resnet: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(resnet, tmp_path / "lvmmed_resnet.torch")
    with pytest.warns(UserWarning, match=r"fc\.\* of the file left out"):
        backbone = create_model(
            "lvm_med_resnet50", weights=tmp_path / "lvmmed_resnet.torch", features_only=True
        )
    assert left_out(resnet) == ["fc.weight", "fc.bias"]
    image = torch.randn(1, 3, 64, 96)
    network = timm.create_model("resnet50", features_only=True).eval()
    network.load_state_dict({k: v for k, v in resnet.items() if not k.startswith("fc.")})
    for found, wanted in zip(backbone.eval()(image), network(image), strict=True):
        torch.testing.assert_close(found, wanted)


def test_maps_of_the_backbone() -> None:
    backbone = ResNet50Backbone(layers=(1, 1, 1, 1), out_indices=(1, -1))
    maps = backbone(torch.randn(2, 3, 64, 32))
    assert [tuple(x.shape) for x in maps] == [(2, 256, 16, 8), (2, 2048, 2, 1)]
    assert (backbone.out_channels, backbone.strides) == ([256, 2048], [4, 32])


def test_old_files_without_counters(resnet: dict[str, Tensor]) -> None:
    old = {k: v for k, v in resnet.items() if "num_batches_tracked" not in k}
    load_state(ResNet50(), from_official(old), "an old file")


def hub(key: str) -> str:
    """Return the hub's name of a key of torchvision's, by the names of its layers."""
    kinds = {"conv": "convolution", "bn": "normalization"}
    if found := re.fullmatch(r"(conv|bn)1\.(\w+)", key):
        return f"resnet.embedder.embedder.{kinds[found[1]]}.{found[2]}"
    if found := re.fullmatch(r"layer(\d)\.(\d)\.downsample\.([01])\.(\w+)", key):
        stage, block, number, rest = found.groups()
        part = f"shortcut.{list(kinds.values())[int(number)]}.{rest}"
    elif found := re.fullmatch(r"layer(\d)\.(\d)\.(conv|bn)(\d)\.(\w+)", key):
        stage, block, kind, number, rest = found.groups()
        part = f"layer.{int(number) - 1}.{kinds[kind]}.{rest}"
    else:
        return key.replace("fc.", "classifier.1.")
    return f"resnet.encoder.stages.{int(stage) - 1}.layers.{block}.{part}"


def test_files_of_the_model_hub(resnet: dict[str, Tensor]) -> None:
    state = {hub(key): value for key, value in resnet.items()}
    assert "resnet.encoder.stages.0.layers.0.shortcut.convolution.weight" in state
    found = from_official(state)
    assert {k: v.data_ptr() for k, v in found.items()} == {
        k: v.data_ptr() for k, v in resnet.items() if not k.startswith("fc.")
    }
    assert left_out(state) == ["classifier.1.weight", "classifier.1.bias"]


def test_the_vit_loads_from_its_own_file_and_from_sam(
    vit: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(vit, tmp_path / "lvmmed_vit.pth")
    torch.save(sam_of(vit, 0.0), tmp_path / "sam.pth")
    image = torch.randn(1, 3, 32, 32)
    whole = create_model("sam_vit_base", weights=tmp_path / "sam.pth", **TINY)
    for file in ("lvmmed_vit.pth", "sam.pth"):
        model = create_model("lvm_med_vit_base", weights=tmp_path / file, **TINY)
        torch.testing.assert_close(model(image)[0], whole(image)[0])
        kind, state = read_encoder(tmp_path / file)
        assert kind == "vit"
        assert set(state) == set(vit)
    left = ["image_encoder.pos_embed", "mask_decoder.iou_token.weight"]
    assert left_out(sam_of(vit, 0.0)) == left
    assert left_out(vit) == []


def test_there_and_back(vit: dict[str, Tensor], resnet: dict[str, Tensor]) -> None:
    assert to_official(from_official(vit)).keys() == vit.keys()
    body = {k: v for k, v in resnet.items() if not k.startswith("fc.")}
    assert to_official(from_official(resnet)).keys() == body.keys()


def test_convert(vit: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(sam_of(vit, 0.5), tmp_path / "sam.pth")
    words = ["models", "convert", str(tmp_path / "sam.pth"), str(tmp_path / "ours.safetensors")]
    arguments = [f"{key}={list(v) if isinstance(v, tuple) else v}" for key, v in TINY.items()]
    assert main([*words, "--model", "lvm_med_vit_base", "--arguments", *arguments]) == 0
    words = ["models", "convert", str(tmp_path / "ours.safetensors"), str(tmp_path / "back.pth")]
    assert main([*words, "--to", "official"]) == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == vit.keys()
    assert torch.equal(back["neck.2.weight"], vit["neck.2.weight"])


def test_sam_with_another_encoder(vit: dict[str, Tensor]) -> None:
    whole = sam_of({key: torch.zeros_like(value) for key, value in vit.items()}, 1.0)
    swapped = swap_encoder(whole, vit)
    assert swapped.keys() == whole.keys()
    assert torch.equal(
        swapped["mask_decoder.iou_token.weight"], whole["mask_decoder.iou_token.weight"]
    )
    encoder = SAMEncoder(**TINY).eval()
    inside = {k.removeprefix("image_encoder."): v for k, v in swapped.items() if "image" in k}
    load_state(encoder, inside, "the swapped file")
    own = SAMEncoder(**TINY, use_abs_pos=False).eval()
    load_state(own, vit, "the file")
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(encoder(image)[0], own(image)[0])


def test_encoders_that_do_not_fit(vit: dict[str, Tensor], resnet: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="give sam_vit_b"):
        swap_encoder(vit, vit)
    with pytest.raises(CheckpointError, match="give sam_vit_b"):
        swap_encoder(sam_of(vit, 0.0), resnet)


def test_our_own_checkpoint_of_pretraining(tmp_path: Path, vit: dict[str, Tensor]) -> None:
    model = LVMMed(SAMEncoder(**TINY, use_abs_pos=False))
    save_checkpoint(tmp_path / "best.safetensors", model.state_dict(), {"task": "pre-training"})
    kind, state = read_encoder(tmp_path / "best.safetensors")
    assert kind == "vit"
    assert state.keys() == vit.keys()
    assert torch.equal(state["neck.0.weight"], model.backbone.neck[0].weight)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: .*neither a ResNet-50 nor"):
        read_encoder(tmp_path / "other.pth")
