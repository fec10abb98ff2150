from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from crossband.shared.backbones.vit import ViTClassifier
from crossband.shared.backbones.vit_keys import load_vit
from crossband.shared.checkpoints import save_checkpoint
from crossband.shared.config import OptimizerConfig, ScheduleConfig
from crossband.shared.conformance import read_fixture, verify
from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.pretraining.mae import MAE, MAETask
from crossband.shared.registry import create_model
from crossband.shared.training.optimizers import parameter_groups

SIZE: dict[str, Any] = {
    **{"img_size": 32, "patch_size": 8, "in_chans": 2, "embed_dim": 24, "depth": 2},
    **{"num_heads": 3, "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2},
}
# Counted by the authors' code: all, trained, encoder.
PARAMETERS = {
    "mae_vit_small_dec512d2b": (28_663_936, 28_487_424, 21_665_664),
    "mae_vit_base_dec512d8b": (111_907_840, 111_655_680, 85_798_656),
    "mae_vit_large_dec512d8b": (329_541_888, None, None),
}


def network(seed: int = 0, **changes: Any) -> MAE:
    torch.manual_seed(seed)
    return MAE(**{**SIZE, **changes})


def images(batch: int = 2, size: tuple[int, int] = (32, 32), seed: int = 1) -> Tensor:
    return torch.randn(batch, 2, *size, generator=torch.Generator().manual_seed(seed))


def test_golden_numbers(shared_dir: Path) -> None:
    files = [shared_dir / f"fixtures/medical/{name}.safetensors" for name in ("mae_tiny",)]
    for report in verify([*files, shared_dir / "fixtures/medical/mae_recipe.safetensors"]):
        assert report.passed, report


def test_layer_decay_of_the_fine_tuning_recipe(shared_dir: Path) -> None:
    config = read_fixture(shared_dir / "fixtures/medical/mae_recipe.safetensors").config
    with torch.device("meta"):
        model = create_model("vit_small_patch16", global_pool="avg", num_classes=14)
    settings = OptimizerConfig(
        lr=1.0, weight_decay=0.05, layer_decay=config["layer_decay"], decay_norm_and_bias=False
    )
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, settings)
        for p in group["params"]
    }
    expected = {
        name: (pytest.approx(group["lr_scale"]), group["weight_decay"])
        for group in config["groups"]
        for name in group["names"]
    }
    assert found == expected


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    every = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    encoder = sum(value.numel() for value in model.encoder_state().values())
    counts = (every, trained, encoder)
    assert all(b is None or a == b for a, b in zip(counts, PARAMETERS[name], strict=True))


def test_keys_are_the_authors(shared_dir: Path) -> None:
    text = (shared_dir / "fixtures/medical/mae_full_sizes.txt").read_text("utf-8")
    part = next(p for p in text.split("## ") if p.startswith("mae_vit_base_patch16_dec512d8b"))
    rows = re.findall(r"^(\S+) \(([\d, ]*)\)$", part, re.MULTILINE)
    listed = {key: tuple(int(n) for n in shape.split(",") if n.strip()) for key, shape in rows}
    with torch.device("meta"):
        own = create_model("mae_vit_base_dec512d8b").state_dict()
    shapes = {key: tuple(value.shape) for key, value in own.items()}
    assert {k: v for k, v in shapes.items() if not re.search(r"blocks\.[1-9]", k)} == listed


def test_patches_hold_row_column_channel_and_come_back() -> None:
    model = network()
    image = torch.arange(2 * 16 * 24, dtype=torch.float).view(1, 2, 16, 24)
    patches = model.patchify(image)
    assert patches.shape == (1, 6, 128)
    wanted = image[0, :, 8:16, 16:24].permute(1, 2, 0).flatten()  # second row, third column
    assert torch.equal(patches[0, 5], wanted)
    assert torch.equal(model.unpatchify(patches, (16, 24)), image)
    ragged = images(1, (13, 21))
    assert torch.equal(model.unpatchify(model.patchify(ragged), (13, 21)), ragged)


def test_hidden_patches_do_not_reach_the_network() -> None:
    model, image, noise = network().eval(), images(), torch.rand(2, 16)
    _, pred, mask = model(image, noise)
    assert (mask.sum(1) == 12).all()
    spoilt = model.unpatchify(
        torch.where(mask[..., None] > 0, 1e3, model.patchify(image)), (32, 32)
    )
    assert torch.equal(model(spoilt, noise).pred, pred)


def test_the_encoder_computes_visible_tokens_only() -> None:
    model, seen = network(), []
    for block in (*model.blocks, *model.decoder_blocks):
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    model(images())
    assert seen == [5, 5, 17]


def test_the_loss_is_of_hidden_patches_and_of_standardised_ones_if_asked() -> None:
    model, image = network(), images()
    pred, mask = torch.zeros(2, 16, 128), torch.zeros(2, 16)
    mask[0, 3] = 1
    patch = model.patchify(image)[0, 3]
    torch.testing.assert_close(model.pixel_loss(image, pred, mask), patch.square().mean())
    model.norm_pix_loss = True
    wanted = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
    torch.testing.assert_close(model.pixel_loss(image, pred, mask), wanted.square().mean())
    assert model.pixel_loss(image * 5 + 2, pred, mask).item() == pytest.approx(
        wanted.square().mean().item(), rel=1e-4
    )


@pytest.mark.parametrize("standardised", [False, True])
def test_visible_patches_are_pasted(standardised: bool) -> None:
    model, image, noise = network(norm_pix_loss=standardised), images(1, (32, 40)), None
    noise = torch.rand(1, 20)
    picture = model.reconstruct(image, noise)
    _, pred, mask = model(image, noise)
    found, true, hidden = model.patchify(picture), model.patchify(image), mask.bool()
    assert torch.equal(found[~hidden], true[~hidden])
    if not standardised:
        torch.testing.assert_close(found[hidden], pred[hidden])
    else:
        back = (found - true.mean(-1, keepdim=True)) / true.std(-1, keepdim=True)
        torch.testing.assert_close(back[hidden], pred[hidden], rtol=1e-3, atol=1e-4)


def test_a_classifier_takes_the_encoder(tmp_path: Path) -> None:
    model, image = network(), images()
    save_file(model.encoder_state(), tmp_path / "encoder.safetensors")
    save_checkpoint(tmp_path / "whole.safetensors", model.state_dict(), {})
    shared = ("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads")
    arguments = {name: SIZE[name] for name in shared}
    for name in ("encoder", "whole"):
        classifier = ViTClassifier(num_classes=0, **arguments)
        report = load_vit(classifier, tmp_path / f"{name}.safetensors")
        assert not report.missing
        wanted = model.norm(model.forward_tokens(image).x[:, 0])
        torch.testing.assert_close(classifier(image), wanted)


def test_files_of_another_grid_and_of_an_encoder_alone(tmp_path: Path) -> None:
    arguments = {**SIZE, "img_size": 64}
    torch.save({"model": network().state_dict()}, tmp_path / "whole.pth")
    torch.save({"model": network().encoder_state()}, tmp_path / "encoder.pth")
    larger = create_model("mae_vit_tiny", tmp_path / "whole.pth", **arguments)
    for name in ("pos_embed", "decoder_pos_embed"):
        small = getattr(network(), name)
        image = small[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        image = torch.nn.functional.interpolate(image, (8, 8), mode="bicubic")
        wanted = image.flatten(2).transpose(1, 2)
        torch.testing.assert_close(getattr(larger, name)[:, 1:], wanted)
    with pytest.raises(CheckpointError, match="no decoder_\\* weights"):
        create_model("mae_vit_tiny", tmp_path / "encoder.pth", **SIZE)
    # 16 places of a square grid are not those of a 2 x 8 one.
    oblong = create_model("mae_vit_tiny", tmp_path / "whole.pth", **{**SIZE, "img_size": (16, 64)})
    assert not torch.equal(oblong.decoder_pos_embed, network().decoder_pos_embed)


@pytest.mark.parametrize("ratio", [0.0, 0.95, 1.0])
def test_a_ratio_that_hides_nothing_or_all_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match="at least one must be visible and one hidden"):
        network(mask_ratio=ratio)


def task(model: MAE) -> MAETask:
    return MAETask(model, OptimizerConfig(), ScheduleConfig())


def test_noise_is_new_in_training_and_the_same_in_validation() -> None:
    trained, batch = task(network()), {"image": images()}
    torch.manual_seed(3)
    first = trained.loss(batch)
    second = trained.loss(batch)
    torch.manual_seed(3)
    assert torch.equal(trained.loss(batch), first) and not torch.equal(second, first)
    trained.eval()
    assert torch.equal(trained.loss(batch), trained.loss(batch))


def test_it_learns_to_draw_stripes() -> None:
    model = network(img_size=16, patch_size=4, in_chans=1)
    trained = task(model)
    phase = torch.linspace(0, 6, 16)[:, None]
    image = torch.sin(torch.arange(16) * 0.8 + phase)[:, None, None].expand(-1, 1, 16, -1)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    torch.manual_seed(0)
    losses = []
    for _ in range(400):  # the first 200 find the mean, the others the phase
        loss = trained.training_step({"image": image}, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.5
    assert sum(losses[-10:]) / 10 < 0.05 * losses[0]
    trained.eval()
    assert trained.loss({"image": image}) < 0.05 * losses[0]


def test_tables_and_norms_are_not_decayed() -> None:
    model = network()
    settings = OptimizerConfig(weight_decay=0.05, decay_norm_and_bias=False)
    groups = {group["weight_decay"]: group["params"] for group in parameter_groups(model, settings)}
    decayed = {id(p) for p in groups[0.05]}
    assert all(p.ndim == 1 for p in groups[0.0])
    assert id(model.mask_token) in decayed and id(model.cls_token) in decayed
    assert id(model.pos_embed) not in decayed  # fixed
