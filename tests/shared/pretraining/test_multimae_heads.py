from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from crossband.shared.backbones.vit import ViTClassifier
from crossband.shared.backbones.vit_keys import load_vit
from crossband.shared.conformance import read_fixture, verify
from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.pretraining.multimae import MultiMAE
from crossband.shared.pretraining.multimae_heads import ConvNeXtHead, DPTHead, MultiViT
from crossband.shared.pretraining.multimae_keys import (
    from_official,
    from_vit,
    load_encoder,
    to_official,
    to_vit,
)
from crossband.shared.registry import create_model

SIZE: dict[str, Any] = {
    "modalities": {"rgb": 3, "thermal": 1},
    **{"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "convnext": {"embed_dim": 64, "preds_per_patch": 4, "depth": 1},
    "segmenter": {"embed_dim": 16, "depth": 1, "num_heads": 2},
    "dpt": {"hooks": (0, 0, 1, -1), "layer_dims": (4, 6, 8, 10), "feature_dim": 8},
}


def network(head: str = "convnext", **changes: Any) -> MultiViT:
    torch.manual_seed(0)
    return MultiViT(
        **{**SIZE, "num_classes": 3, "head": head, "head_options": OPTIONS[head], **changes}
    )


def maps(size: tuple[int, int] = (32, 40)) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        "rgb": torch.randn(2, 3, *size, generator=g),
        "thermal": torch.randn(2, 1, *size, generator=g),
    }


def vit(seed: int = 3, **changes: Any) -> ViTClassifier:
    torch.manual_seed(seed)
    sizes = {key: value for key, value in SIZE.items() if key != "modalities"}
    return ViTClassifier(**{**sizes, "num_classes": 0, **changes})


def test_golden_numbers(shared_dir: Path) -> None:
    folder = shared_dir / "fixtures/infrared"
    for report in verify(
        [folder / "multimae_seg.safetensors", folder / "multimae_dpt.safetensors"]
    ):
        assert report.passed, report


def test_dpt_weights_go_to_the_authors_keys_and_back(shared_dir: Path) -> None:
    weights = read_fixture(shared_dir / "fixtures/infrared/multimae_dpt.safetensors").weights
    own = from_official(weights)
    assert len(own) < len(weights)
    back = to_official(own)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], value) for key, value in weights.items())


@pytest.mark.parametrize("head", OPTIONS)
@pytest.mark.parametrize("size", [(32, 40), (24, 56)])
def test_every_head_draws_a_map_of_the_image_and_learns(head: str, size: tuple[int, int]) -> None:
    model, given = network(head), maps(size)
    found = model(given)
    assert found.shape == (2, 3, *size)
    target = (given["rgb"].mean(1) > 0).long()
    nn.functional.cross_entropy(found, target).backward()
    unused = "refinenet4.resConfUnit1"  # the coarsest map has nothing to be added to it
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and unused not in name:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_modality_may_be_missing_but_for_the_main_ones() -> None:
    model, given = network(main_tasks=("rgb",)), maps()
    assert model({"rgb": given["rgb"]}).shape == (2, 3, 32, 40)
    assert not torch.equal(model({"rgb": given["rgb"]}), model(given))  # it would have helped
    with pytest.raises(ConfigError, match="The head needs rgb"):
        model({"thermal": given["thermal"]})


def test_the_head_gets_the_tokens_of_its_main_tasks() -> None:
    model, seen = network("segmenter", main_tasks=("thermal",)), []
    model.output_adapters["semseg"].register_forward_pre_hook(lambda _, args: seen.append(args))
    given = maps()
    model(given)
    tokens, grid = model.tokenise(given)
    x, _ = model.encode(torch.cat([tokens["rgb"], tokens["thermal"]], 1))
    ((layers, size),) = seen
    assert size == grid == (4, 5)
    torch.testing.assert_close(layers[0], x[:, 20:40])


def test_a_token_becomes_a_square_of_places() -> None:
    head = ConvNeXtHead(4, 2, embed_dim=16, preds_per_patch=4, depth=0)
    x = torch.randn(1, 6, 4)
    spread = head.proj_dec(x).view(1, 2, 3, 2, 2, 4)  # rows, columns, row in patch, column, channel
    found = head([x], (2, 3))
    wanted = head.final_layer.weight[:, :, 0, 0] @ spread[0, 1, 2, 1, 0] + head.final_layer.bias
    torch.testing.assert_close(found[0, :, 3, 4], wanted)


def test_dpt_doubles_to_sixteen_places_per_token() -> None:
    for head_type in ("regression", "semseg"):
        head = DPTHead(6, 2, **{**OPTIONS["dpt"], "head_type": head_type, "use_bn": True}).eval()
        assert head([torch.randn(1, 15, 6)] * 4, (3, 5)).shape == (1, 2, 48, 80)


def test_bad_heads() -> None:
    with pytest.raises(ConfigError, match="no head 'fcn': choose from convnext"):
        MultiViT(**SIZE, num_classes=2, head="fcn")
    with pytest.raises(ConfigError, match="main tasks depth are no inputs"):
        network(main_tasks=("depth",))
    with pytest.raises(ConfigError, match="square number"):
        network(head_options={"preds_per_patch": 8})
    with pytest.raises(ConfigError, match="give four blocks"):
        network("dpt", head_options={"hooks": (1, 2)})
    with pytest.raises(ConfigError, match=r"wants blocks \[2, 5, 8, 11\] of 2"):
        network("dpt", head_options={})


def test_the_catalog_builds_them() -> None:
    with torch.device("meta"):
        model = create_model("multivit_base", num_classes=40, main_tasks=("rgb",))
    assert model.output_adapters["semseg"].proj_dec.out_features == 6144
    given = {"rgb": torch.randn(1, 3, 64, 64), "thermal": torch.randn(1, 1, 64, 64)}
    assert create_model("multivit_tiny", num_classes=2)(given).shape == (1, 2, 64, 64)


def test_a_vit_and_its_encoder_see_the_same(tmp_path: Path) -> None:
    source = vit()
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    model = network()
    left = load_encoder(model, tmp_path / "vit.safetensors")
    assert left and all(key.startswith("output_adapters.") for key in left)
    image = maps((32, 32))["rgb"]
    wanted = source.forward_tokens(image).x
    tokens, _ = model.tokenise({"rgb": image})
    found, _ = model.encode(tokens["rgb"])
    torch.testing.assert_close(found[:, :-1], wanted[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[:, -1], wanted[:, 0], rtol=1e-4, atol=1e-5)
    grey = image[:, :1]  # one channel is as a grey image in all three
    thermal, _ = model.tokenise({"thermal": grey})
    colour, _ = model.tokenise({"rgb": grey.expand(-1, 3, -1, -1)})
    torch.testing.assert_close(thermal["thermal"], colour["rgb"], rtol=1e-4, atol=1e-5)


def test_back_to_a_vit(tmp_path: Path) -> None:
    model = network()
    save_file(to_vit(model.state_dict()), tmp_path / "vit.safetensors")
    plain = vit(seed=9)
    assert set(load_vit(plain, tmp_path / "vit.safetensors").missing) == {
        "norm.weight",
        "norm.bias",
    }
    image = maps((32, 32))["rgb"]
    tokens, _ = model.tokenise({"rgb": image})
    wanted, _ = model.encode(tokens["rgb"])
    found = plain.forward_tokens(image).x
    torch.testing.assert_close(found[:, 1:], wanted[:, :-1], rtol=1e-4, atol=1e-5)
    there = from_vit(to_vit(model.state_dict()), {"rgb": 3})
    for key, value in there.items():
        torch.testing.assert_close(value, model.state_dict()[key])
    with pytest.raises(ConfigError, match="no image-like input 'semseg'"):
        to_vit(model.state_dict(), "semseg")


def test_pretrained_weights_start_another_grid(tmp_path: Path) -> None:
    save_file(vit().state_dict(), tmp_path / "vit.safetensors")
    large = network(img_size=64)
    load_encoder(large, tmp_path / "vit.safetensors")
    assert large.input_adapters["rgb"].pos_emb.shape[-2:] == (8, 8)
    save_file(vit(embed_dim=12).state_dict(), tmp_path / "small.safetensors")
    with pytest.raises(CheckpointError, match="small.safetensors does not fit MultiViT"):
        load_encoder(large, tmp_path / "small.safetensors")
    with pytest.raises(CheckpointError, match="not those of a ViT with a class token"):
        from_vit({"conv.weight": torch.zeros(1)}, {"rgb": 3})
    with pytest.raises(ConfigError, match="have 3 channels, spectral has 8"):
        from_vit(vit().state_dict(), {"spectral": 8})
    with pytest.raises(CheckpointError, match="table of 16 positions is not of 3 x 5"):
        from_vit(vit().state_dict(), {"rgb": 3}, grid=(3, 5))


def test_a_head_starts_from_what_multimae_learned(tmp_path: Path) -> None:
    sizes = {**SIZE, "modalities": {"rgb": 3, "depth": 1}, "decoder_embed_dim": 16}
    source = MultiMAE(**sizes)
    save_file(source.state_dict(), tmp_path / "multimae.safetensors")
    model = network(modalities={"rgb": 3, "depth": 1, "thermal": 1})
    left = load_encoder(model, tmp_path / "multimae.safetensors")
    assert all(key.startswith("output_adapters.") for key in left)
    given = {"rgb": maps((32, 32))["rgb"], "depth": maps((32, 32))["thermal"]}
    for name, x in model.tokenise(given)[0].items():
        torch.testing.assert_close(x, source.tokenise(given)[0][name])
    kernel = source.input_adapters["rgb"].proj.weight.sum(1, keepdim=True)
    assert torch.equal(model.input_adapters["thermal"].proj.weight, kernel)
    tokens = torch.randn(1, 5, 24)
    torch.testing.assert_close(model.encode(tokens)[0], source.encode(tokens)[0])


def test_tables_of_another_grid_are_interpolated_as_the_kind_of_map_wants() -> None:
    labels = {"channels": 4, "labels": True, "stride": 4}
    sizes = {**SIZE, "modalities": {"rgb": 3, "semseg": labels}, "decoder_embed_dim": 16}
    small, large = (MultiMAE(**{**sizes, "img_size": side}) for side in (32, 64))
    for model in (small, large):
        for name, table in model.named_parameters():
            if name.endswith("pos_emb"):
                nn.init.normal_(table)
    state = large.adapt_state(small.state_dict())
    for key, mode in (
        ("input_adapters.rgb.pos_emb", "bicubic"),
        ("input_adapters.semseg.pos_emb", "bilinear"),
        ("output_adapters.rgb.pos_emb", "bilinear"),
    ):
        wanted = nn.functional.interpolate(small.state_dict()[key], (8, 8), mode=mode)
        torch.testing.assert_close(state[key], wanted)
    large.load_state_dict(state)
