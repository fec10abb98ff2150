"""Files of others, as they come, into our ViT."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from crossband.shared.backbones.vit import ViT, ViTClassifier
from crossband.shared.backbones.vit_keys import load_vit, to_layout, translate
from crossband.shared.checkpoints import save_checkpoint
from crossband.shared.conformance import read_fixture
from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.layers.pos_embed import resample_pos_embed
from crossband.shared.registry import create_model

SIZE = {"img_size": 64, "patch_size": 16, "embed_dim": 24, "depth": 3, "num_heads": 3}


def backbone(**arguments) -> ViT:
    return ViT(**(SIZE | arguments))


def random_state(model, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        k: torch.randn(v.shape, generator=generator) * 0.05 for k, v in model.state_dict().items()
    }


def save(path: Path, content) -> Path:
    torch.save(content, path)
    return path


def test_mae_with_its_decoder(shared_dir: Path, tmp_path: Path) -> None:
    weights = read_fixture(shared_dir / "fixtures/medical/mae_tiny.safetensors").weights
    model = ViT(img_size=64, patch_size=16, embed_dim=48, depth=2, num_heads=3, final_norm=True)
    report = load_vit(model, save(tmp_path / "mae.pth", {"model": weights, "epoch": 3}))
    assert report.layout == "timm" and not report.missing
    assert set(report.matched) == set(model.state_dict())
    assert set(report.unexpected) == {k for k in weights if k not in model.state_dict()}
    assert all(k.startswith(("decoder", "mask_token")) for k in report.unexpected)
    assert all(torch.equal(model.state_dict()[k], weights[k]) for k in report.matched)
    assert "left out (decoder_blocks.0.attn.proj.bias" in str(report)


def test_unip_pretrained_and_segmentation_models(shared_dir: Path, tmp_path: Path) -> None:
    weights = read_fixture(shared_dir / "fixtures/infrared/unip_seg.safetensors").weights
    path = save(tmp_path / "seg.pth", {"state_dict": weights})
    own = {k: v for k, v in weights.items() if not k.startswith("lp_")}
    path = save(tmp_path / "seg.pth", {"state_dict": own})
    model = backbone(layer_scale_init=1.0)
    report = load_vit(model, path)
    assert report.layout == "beit" and not report.missing
    state = model.state_dict()
    assert torch.equal(state["blocks.1.ls2.gamma"], weights["backbone.blocks.1.gamma_2"])
    assert "decode_head.conv_seg.weight" in report.unexpected
    assert "fpn1.0.weight" in report.unexpected


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone.", "encoder."])
def test_dino_and_ibot_with_any_prefix(tmp_path: Path, prefix: str) -> None:
    model = backbone(final_norm=True)
    state = random_state(model)
    file = {prefix + k: v for k, v in state.items()}
    file |= {"head.mlp.0.weight": torch.zeros(2), "head.last_layer.weight_v": torch.zeros(2)}
    file |= {prefix + "masked_embed": torch.zeros(1, 24)}
    report = load_vit(model, save(tmp_path / "dino.pth", {"teacher": file}))
    assert not report.missing and report.layout == "dino"
    assert len(report.unexpected) == 3
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())


def test_dinov2_registers(tmp_path: Path) -> None:
    model = backbone(reg_tokens=4, layer_scale_init=1.0, final_norm=True)
    state = random_state(model)
    file = {k.replace("reg_token", "register_tokens"): v for k, v in state.items()}
    report = load_vit(model, save(tmp_path / "d.pth", file | {"mask_token": torch.zeros(1, 24)}))
    assert report.layout == "dino" and report.unexpected == ("mask_token",)
    assert torch.equal(model.reg_token, state["reg_token"])


def test_dinov2_in_chunks(tmp_path: Path) -> None:
    model = backbone(layer_scale_init=1.0, final_norm=True)
    state = random_state(model)
    chunk = {"0": "0", "1": "0", "2": "1"}
    file = {re.sub(r"^blocks\.(\d)", lambda m: f"blocks.{chunk[m[1]]}.{m[1]}", k): v
            for k, v in state.items()}  # fmt: skip
    assert "blocks.1.2.ls1.gamma" in file
    report = load_vit(model, save(tmp_path / "d.pth", file))
    assert report.layout == "dino" and not report.missing and not report.unexpected
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())


def test_arguments_beside_the_weights(tmp_path: Path) -> None:
    state = random_state(model := backbone())
    content = {"model": state, "args": Namespace(lr=1e-3, mask=None, betas=[0.9, 0.95])}
    load_vit(model, save(tmp_path / "mae.pth", content))
    assert torch.equal(model.pos_embed, state["pos_embed"])


def test_a_layer_scale_is_not_dropped(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pth", random_state(backbone(layer_scale_init=1.0)))
    with pytest.raises(CheckpointError, match=r"6 keys.*ls1\.gamma\).*with layer_scale_init"):
        load_vit(backbone(), path)
    path = save(tmp_path / "w.pth", random_state(backbone()))
    report = load_vit(model := backbone(layer_scale_init=0.5), path)
    assert len(report.missing) == 6 and (model.blocks[0].ls1.gamma == 0.5).all()


@pytest.mark.parametrize("road", ["load_vit", "create_model"])
def test_a_square_table_of_as_many_rows_is_interpolated(tmp_path: Path, road: str) -> None:
    square, long = backbone(img_size=32), backbone(img_size=(16, 64))
    state = random_state(square)
    assert state["pos_embed"].shape == long.pos_embed.shape
    wanted = resample_pos_embed(state["pos_embed"], (2, 2), (1, 4))
    assert not torch.equal(wanted, state["pos_embed"])
    path = save(tmp_path / "w.pth", state)

    def load(path: Path, size) -> Tensor:
        if road == "load_vit":
            load_vit(model := backbone(img_size=size), path)
            return model.pos_embed
        arguments = SIZE | {"img_size": size}
        return create_model("vit_tiny_patch16", path, features_only=True, **arguments).pos_embed

    torch.testing.assert_close(load(path, (16, 64)), wanted)
    assert torch.equal(load(path, 32), state["pos_embed"])
    ours = save_checkpoint(tmp_path / "ours.safetensors", state, {"task": "features"})
    assert torch.equal(load(ours, (16, 64)), state["pos_embed"])  # our grid is what it says
    report = load_vit(long, path)
    assert report.resampled == ("pos_embed",)
    assert load_vit(long, ours).resampled == ()


def test_a_table_of_no_square_is_of_the_networks_grid(tmp_path: Path) -> None:
    state = random_state(backbone(img_size=(32, 48)))
    path = save(tmp_path / "w.pth", state)
    load_vit(model := backbone(img_size=(32, 48)), path)
    assert torch.equal(model.pos_embed, state["pos_embed"])
    with pytest.raises(ConfigError, match="no square"):
        load_vit(backbone(), path)


def test_clip_as_a_backbone_says_only_what_is_left_out(tmp_path: Path) -> None:
    arguments = {**SIZE, "pre_norm": True, "patch_bias": False}
    source = ViTClassifier(**arguments, num_classes=6, head_bias=False)
    file = {f"visual.{k}": v for k, v in to_layout(random_state(source), "clip").items()}
    path = save(tmp_path / "clip.pt", file | {"logit_scale": torch.zeros(())})
    said = r"ViT: head\.\*, logit_scale\.\*, norm\.\* of the file left out\.$"
    with pytest.warns(UserWarning, match=said):
        create_model("clip_vit_base_patch16", path, features_only=True, **arguments)


def test_timm_with_its_head(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    theirs = timm.models.VisionTransformer(
        img_size=64, embed_dim=24, depth=3, num_heads=3, num_classes=7
    )
    path = save(tmp_path / "vit.pth", theirs.state_dict())
    model = ViTClassifier(**SIZE, num_classes=5)
    report = load_vit(model, path)  # another number of classes: the head stays new
    assert set(report.missing) == {"head.weight", "head.bias"} == set(report.unexpected)
    model = ViTClassifier(**SIZE, num_classes=7).eval()
    report = load_vit(model, path)
    assert not report.missing and not report.unexpected
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)


def test_clip_gives_what_clip_gives(shared_dir: Path, tmp_path: Path) -> None:
    fixture = read_fixture(shared_dir / "fixtures/ocr/dptr_clip_tiny.safetensors")
    config = fixture.config
    model = ViTClassifier(
        img_size=config["image_resolution"],
        patch_size=config["vision_patch_size"],
        embed_dim=config["vision_width"],
        depth=config["vision_layers"],
        num_heads=config["vision_heads"],
        num_classes=config["embed_dim"],
        head_bias=False,
        pre_norm=True,
        patch_bias=False,
        act="quick_gelu",
        norm_eps=1e-5,
    ).eval()
    report = load_vit(model, save(tmp_path / "clip.pt", fixture.weights))
    assert report.layout == "clip" and not report.missing
    image = next(v for v in fixture.inputs.values() if v.dim() == 4)
    features = model(image)
    names = [n for n, v in fixture.outputs.items() if v.shape == features.shape and "image" in n]
    assert names, fixture.outputs.keys()
    wanted = fixture.outputs[names[0]]
    alike = torch.nn.functional.cosine_similarity(features, wanted, dim=-1)
    torch.testing.assert_close(alike, torch.ones_like(alike), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["clip", "beit", "sam"])
def test_there_and_back(layout: str) -> None:
    model = ViTClassifier(
        **SIZE, num_classes=6, head_bias=False, pre_norm=layout == "clip",
        patch_bias=layout != "clip", layer_scale_init=1.0 if layout == "beit" else None,
    )  # fmt: skip
    state = random_state(model)
    theirs = to_layout(state, layout)
    assert theirs.keys() != state.keys()
    back, left, found = translate(theirs)
    assert found == layout and not left and back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())


def test_another_grid_is_interpolated_and_said(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pth", random_state(backbone()))
    report = load_vit(model := backbone(img_size=96), path)
    assert report.resampled == ("pos_embed",) and "interpolated: pos_embed" in str(report)
    assert model.pos_embed.shape == (1, 37, 24)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    state = random_state(backbone())
    for change, reason in (
        ({"blocks.0.attn.qkv.weight": torch.zeros(6, 2)}, "of another shape"),
        ({"blocks.1.extra": torch.zeros(1)}, "left over"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            load_vit(backbone(), save(tmp_path / "w.pth", state | change))
    with pytest.raises(CheckpointError, match=r"12 keys missing or left over, \d+ of another"):
        load_vit(backbone(depth=4, embed_dim=12), save(tmp_path / "w.pth", state))
    del state["blocks.1.norm1.weight"]
    with pytest.raises(CheckpointError, match=r"missing.*blocks\.1\.norm1\.weight"):
        load_vit(backbone(), save(tmp_path / "w.pth", state))
    with pytest.raises(CheckpointError, match="no vision transformer"):
        load_vit(backbone(), save(tmp_path / "w.pth", {"layer1.0.conv1.weight": torch.zeros(1)}))
