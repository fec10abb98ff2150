from __future__ import annotations

import os
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crossband.medical.chest_mae.official import from_official, load_pretrained, to_official
from crossband.shared.backbones.vit import ViTClassifier
from crossband.shared.checkpoints import load_state, read_state_dict, save_checkpoint
from crossband.shared.errors import CheckpointError
from crossband.shared.layers.pos_embed import resample_pos_embed
from crossband.shared.pretraining.cnn_mae import CNNMAE
from crossband.shared.pretraining.mae import MAE
from crossband.shared.registry import create_model

ENCODER: dict[str, Any] = {
    **{"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}
# Encoder and decoder of the published sizes: dim, depth, heads.
SMALL, BASE, LARGE, HUGE = (384, 12), (768, 12), (1024, 24), (1280, 32)
PUBLISHED = {
    "mae_vit_small_dec128d2b": (*SMALL, 128, 2, 224, 16),
    "mae_vit_small_dec512d2b": (*SMALL, 512, 2, 224, 16),
    "mae_vit_small_dec512d2b_448": (*SMALL, 512, 2, 448, 16),
    "mae_vit_small_dec512d8b": (*SMALL, 512, 8, 224, 16),
    "mae_vit_base_dec512d2b": (*BASE, 512, 2, 224, 16),
    "mae_vit_base_dec512d8b": (*BASE, 512, 8, 224, 16),
    "mae_vit_large_dec512d8b": (*LARGE, 512, 8, 224, 16),
    "mae_vit_huge_dec512d8b": (*HUGE, 512, 8, 224, 14),
}
IN_FILE = {
    "mae_vit_small_patch16_dec512d2b": "mae_vit_small_dec512d2b",
    "mae_vit_base_patch16_dec512d8b": "mae_vit_base_dec512d8b",
    "vit_small_patch16 (14 classes, global_pool)": "vit_small_patch16",
    "vit_base_patch16 (14 classes, global_pool)": "vit_base_patch16",
}


def mae(seed: int = 0, **changes: Any) -> MAE:
    torch.manual_seed(seed)
    return MAE(**{**ENCODER, **DECODER, **changes})


def classifier(seed: int = 1, num_classes: int = 14, **changes: Any) -> ViTClassifier:
    torch.manual_seed(seed)
    arguments = {**ENCODER, "global_pool": "avg", **changes}
    return ViTClassifier(num_classes=num_classes, **arguments)


def authors_file(path: Path, model: nn.Module, **changes: Any) -> Path:
    """Write what `misc.save_model` of the authors writes."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) * 1e-3
    state = to_official(model.state_dict())
    state = {key: value.clone() for key, value in state.items()}
    optimizer.step()  # so that it has a state
    model.load_state_dict(state)
    model.zero_grad()
    content = {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "epoch": 799,
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 17},
        "args": Namespace(batch_size=256, blr=1.5e-4, mask_ratio=0.9, device="cuda", gpu=0),
    }
    torch.save({**content, **changes}, path)
    return path


def counts(model: nn.Module) -> tuple[int, int]:
    every = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in every), sum(n for n, trained in every if trained)


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_of_the_masked_autoencoders(name: str) -> None:
    """Counted by hand from width, depth and grid."""
    dim, depth, decoder_dim, decoder_depth, side, patch = PUBLISHED[name]
    with torch.device("meta"):
        model = create_model(name)
    places, pixels = (side // patch) ** 2 + 1, 3 * patch**2

    def blocks(width: int, count: int) -> int:
        return count * (12 * width**2 + 13 * width)

    encoder = dim + places * dim + (pixels + 1) * dim + blocks(dim, depth) + 2 * dim
    decoder = (dim + 1) * decoder_dim + decoder_dim + places * decoder_dim
    decoder += blocks(decoder_dim, decoder_depth) + 2 * decoder_dim + (decoder_dim + 1) * pixels
    tables = places * (dim + decoder_dim)
    assert counts(model) == (encoder + decoder, encoder + decoder - tables)
    assert sum(v.numel() for v in model.encoder_state().values()) == encoder
    assert model.pos_embed.shape == (1, places, dim)


def test_published_keys_and_counts(shared_dir: Path) -> None:
    text = (shared_dir / "fixtures/medical/mae_full_sizes.txt").read_text()
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert len(sections) == len(IN_FILE)
    for section in sections:
        title, *lines = section.strip().splitlines()
        name, numbers = title.split("  ", 1)
        expected = {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", numbers)}
        arguments = {"global_pool": "avg", "num_classes": 14} if "classes" in name else {}
        with torch.device("meta"):
            model = create_model(IN_FILE[name], **arguments)
        every, trained = counts(model)
        assert every == expected["total"]
        assert trained == expected.get("trainable", trained)
        own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        for line in lines:
            key, shape = re.fullmatch(r"(\S+) \((.*)\)", line).groups()
            assert own.pop(key) == tuple(int(n) for n in shape.split(",") if n.strip()), key
        # One block stands for all.
        assert all(re.match(r"(decoder_)?blocks\.[1-9]", key) for key in own), own


@pytest.mark.parametrize("build", [mae, classifier, lambda: CNNMAE(encoder="resnet18")])
def test_files_go_both_ways(build, tmp_path: Path) -> None:
    model = build()
    state, extra = read_state_dict(authors_file(tmp_path / "checkpoint-799.pth", model))
    assert extra["args"] == Namespace(
        batch_size=256, blr=1.5e-4, mask_ratio=0.9, device="cuda", gpu=0
    )
    ours = from_official(state)
    load_state(build(), ours, "the file")
    back = to_official(ours)
    assert back.keys() == state.keys() and all(torch.equal(back[k], v) for k, v in state.items())
    wrapped = {f"module.{key}": value for key, value in state.items()}
    assert from_official(wrapped).keys() == ours.keys()


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "ran"),)

    for number, changes in enumerate(({"args": Namespace(x=Runs())}, {"epoch": Runs()})):
        path = authors_file(tmp_path / f"{number}.pth", mae(), **changes)
        with pytest.raises(CheckpointError) as caught:
            load_pretrained(classifier(), path)
        message = str(caught.value)
        assert "would run code" in message and path.name in message
        assert "\n" not in message
    assert not (tmp_path / "ran").exists()


def test_a_classifier_starts_from_a_masked_autoencoder(tmp_path: Path) -> None:
    source, model = mae(), classifier()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_pretrained(model, authors_file(tmp_path / "mae.pth", source))
    encoder, own = source.state_dict(), model.state_dict()
    shared = [k for k in encoder if k.startswith(("blocks.", "patch_embed.", "cls_", "pos_"))]
    assert len(shared) == 2 * 12 + 4 and all(torch.equal(own[k], encoder[k]) for k in shared)
    assert set(report.matched) == set(shared) and not report.resampled
    assert report.missing == ("fc_norm.bias", "fc_norm.weight", "head.bias", "head.weight")
    assert set(report.unexpected) == encoder.keys() - set(shared)
    assert torch.equal(own["fc_norm.weight"], before["fc_norm.weight"])
    assert report.new_head and str(report).endswith("the head starts anew")
    assert 0 < own["head.weight"].std() < 4e-5 and not own["head.bias"].any()
    assert model.pos_embed.requires_grad  # the fixed table is trained from here on
    image = torch.randn(2, 3, 32, 32)
    tokens = source.forward_tokens(image).patches()
    expected = model.fc_norm(tokens.mean(1))
    torch.testing.assert_close(model.forward_features(image), expected)


def test_the_class_token_keeps_the_final_norm(tmp_path: Path) -> None:
    source, model = mae(), classifier(global_pool="token")
    nn.init.normal_(source.norm.weight)
    report = load_pretrained(model, authors_file(tmp_path / "mae.pth", source))
    assert torch.equal(model.norm.weight, source.norm.weight)
    assert report.missing == ("head.bias", "head.weight") and report.new_head


def test_positions_of_another_grid_are_interpolated(tmp_path: Path) -> None:
    source, model = mae(), classifier(img_size=56)
    report = load_pretrained(model, authors_file(tmp_path / "mae.pth", source))
    assert report.resampled == ("pos_embed",) and "interpolated: pos_embed" in str(report)
    table = model.pos_embed.detach()
    assert torch.equal(table[:, 0], source.pos_embed[:, 0])  # class token
    torch.testing.assert_close(table, resample_pos_embed(source.pos_embed, (4, 4), (7, 7)))


@pytest.mark.parametrize("classes", [14, 5])
def test_a_classifier_starts_from_a_classifier(classes: int, tmp_path: Path) -> None:
    source, model = classifier(), classifier(seed=2, num_classes=classes)
    report = load_pretrained(model, authors_file(tmp_path / "finetuned.pth", source))
    state, own = source.state_dict(), model.state_dict()
    head = {"head.weight", "head.bias"}
    assert all(torch.equal(own[k], v) for k, v in state.items() if k not in head)
    if classes == 14:
        assert torch.equal(own["head.weight"], state["head.weight"])
        assert not report.new_head and not report.missing and not report.unexpected
    else:
        assert report.new_head and set(report.missing) == set(report.unexpected) == head
        assert 0 < own["head.weight"].std() < 4e-5


def test_our_own_checkpoints_load_too(tmp_path: Path) -> None:
    source, model = mae(img_size=(24, 40)), classifier(img_size=(24, 40))
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, source.state_dict(), {"model": {"name": "mae", "arguments": {}}})
    report = load_pretrained(model, path)
    assert torch.equal(model.pos_embed, source.pos_embed) and not report.resampled


def test_a_vit_inside_another_network(tmp_path: Path) -> None:
    source, model = mae(), nn.Sequential(classifier())
    report = load_pretrained(model, authors_file(tmp_path / "mae.pth", source))
    assert report.new_head and model[0].head.weight.std() < 4e-5
    assert torch.equal(model[0].cls_token, source.cls_token)


def test_masked_training_goes_on(tmp_path: Path) -> None:
    for source, other in (
        (mae(), mae(seed=5)),
        (CNNMAE(encoder="resnet18"), CNNMAE(encoder="resnet18")),
    ):
        report = load_pretrained(other, authors_file(tmp_path / "x.pth", source))
        state = source.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in other.state_dict().items())
        assert len(report.matched) == len(state) and not report.new_head
    larger = mae(img_size=56)
    report = load_pretrained(larger, authors_file(tmp_path / "x.pth", mae()))
    assert report.resampled == ("decoder_pos_embed", "pos_embed")
    with pytest.raises(CheckpointError, match="does not fit MAE"):
        load_pretrained(mae(), authors_file(tmp_path / "x.pth", classifier()))


@pytest.mark.parametrize("classes", [3, 5])
def test_cnns_start_from_cnns(classes: int, tmp_path: Path) -> None:
    model = create_model("timm:resnet18", num_classes=classes)
    source = CNNMAE(encoder="resnet18")
    report = load_pretrained(model, authors_file(tmp_path / "unet.pth", source))
    assert torch.equal(model.conv1.weight, source.model.encoder.conv1.weight)
    assert report.new_head and 0 < model.fc.weight.std() < 4e-5
    trained = create_model("timm:resnet18", num_classes=3)
    report = load_pretrained(model, authors_file(tmp_path / "resnet.pth", trained))
    assert torch.equal(model.layer4[1].conv2.weight, trained.layer4[1].conv2.weight)
    assert report.new_head == (classes != 3)
    if classes == 3:
        assert torch.equal(model.fc.weight, trained.fc.weight) and not report.missing
    else:
        assert report.missing == report.unexpected == ("fc.bias", "fc.weight")


def refused(model: nn.Module, path: Path) -> str:
    before: dict[str, Tensor] = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(model, path)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    return str(caught.value)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    vit, cnn = authors_file(tmp_path / "vit.pth", mae()), tmp_path / "cnn.pth"
    authors_file(cnn, CNNMAE(encoder="resnet18"))
    resnet = create_model("timm:resnet18", num_classes=2)
    assert "is a ViT" in refused(classifier(), cnn)
    assert "does not fit ResNet" in refused(resnet, vit)
    assert "does not fit ViTClassifier" in refused(classifier(embed_dim=48), vit)
    assert "does not fit ViTClassifier" in refused(classifier(depth=3), vit)
    assert "does not fit ResNet" in refused(create_model("timm:resnet34"), cnn)
