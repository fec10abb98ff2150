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
from crossband.shared.config import OptimizerConfig, ScheduleConfig
from crossband.shared.conformance import verify_file
from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.pretraining.g2sd import (
    G2SDStudent,
    G2SDTask,
    feature_loss,
    load_teacher,
    supervised,
    teacher_features,
)
from crossband.shared.pretraining.mae import MAE
from crossband.shared.registry import create_model

TEACHER: dict[str, Any] = {
    **{"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    **{"decoder_embed_dim": 24, "decoder_depth": 3, "decoder_num_heads": 2},
}
STUDENT: dict[str, Any] = {
    **{"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
    **{"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2},
    **{"encoder_pred_channel": 32, "decoder_pred_channel": 24},
}


def teacher(suplayer: int = 2) -> MAE:
    torch.manual_seed(0)
    return load_teacher(MAE(**TEACHER), MAE(**TEACHER).state_dict(), suplayer)


def student(**changes: Any) -> G2SDStudent:
    torch.manual_seed(1)
    return G2SDStudent(**{**STUDENT, **changes})


def task(model: G2SDStudent | None = None, **options: Any) -> G2SDTask:
    options = {"teacher": teacher(), **options}
    return G2SDTask(model or student(), OptimizerConfig(), ScheduleConfig(), **options)


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_golden_numbers(shared_dir: Path) -> None:
    report = verify_file(shared_dir / "fixtures/infrared/g2sd.safetensors")
    assert report.passed, report


@pytest.mark.parametrize(
    ("name", "count"),
    [("g2sd_vit_tiny_dec128d4b", 7_534_400), ("g2sd_vit_small_dec256d4b", 26_452_352)],
)
def test_published_parameter_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == count
    assert len(model.state_dict()) == 214


def test_keys_are_the_authors(shared_dir: Path) -> None:
    text = (shared_dir / "fixtures/infrared/g2sd_keys.txt").read_text("utf-8")
    rows = re.findall(r"^(\S+)\t\[([\d, ]*)\]$", text, re.MULTILINE)
    listed = {key: tuple(int(n) for n in shape.split(",")) for key, shape in rows}
    with torch.device("meta"):
        own = create_model("g2sd_vit_small_dec256d4b").state_dict()
    assert {key: tuple(value.shape) for key, value in own.items()} == listed


def test_the_target_is_normalised_and_large_errors_count_linearly() -> None:
    hidden = torch.tensor([[[1.0, -1.0, 1.0, -1.0]]]) * 7 + 3  # normalised: +1, -1
    pred = torch.tensor([[[2.0, -1.0, 6.0, -1.0]]])
    # beta 2: 0.5 e^2 / 2 for e = 1, e - 1 for e = 5
    wanted = torch.tensor((0.25 + 4.0) / 4)
    torch.testing.assert_close(feature_loss(pred, hidden), wanted, rtol=1e-5, atol=1e-6)


def test_both_see_the_same_patches_and_hidden_ones_alone_if_asked() -> None:
    image, noise = images(), torch.rand(2, 16)
    for every in (True, False):
        own = student(supervise_all=every)(image, noise)
        wanted = teacher_features(teacher(), image, noise, supervise_all=every)
        assert torch.equal(own.mask, wanted.mask)
        assert own.encoder.shape == wanted.encoder.shape == (2, 5, 32)
        assert own.decoder.shape == wanted.decoder.shape == ((2, 17, 24) if every else (2, 12, 24))
    every = teacher_features(teacher(), image, noise)
    assert torch.equal(supervised(every.decoder, every.mask, False), wanted.decoder)


def test_the_teacher_stops_after_some_decoder_blocks() -> None:
    whole, image, noise = MAE(**TEACHER).eval(), images(), torch.rand(2, 16)
    masking = whole.draw_masking(image, noise)
    latent = whole.norm(whole.forward_tokens(image, keep=masking.keep).x)
    wanted = whole.decode_hidden(latent, masking.restore, (4, 4), blocks=2)
    state = whole.state_dict()
    gone = ("decoder_blocks.2.", "decoder_norm.", "decoder_pred.")
    part = {key: value for key, value in state.items() if not key.startswith(gone)}
    for weights in (state, part):
        loaded = load_teacher(MAE(**TEACHER), weights, 2)
        assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.training
        found = teacher_features(loaded, image, noise)
        torch.testing.assert_close(found.decoder, wanted)


def test_a_teacher_without_decoder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mae_pretrain_vit_base.pth"
    torch.save({"model": MAE(**TEACHER).encoder_state()}, path)
    with pytest.raises(CheckpointError, match="vit_base.pth holds no decoder_.* take MAE's whole"):
        load_teacher(MAE(**TEACHER), path, 2)
    partly = {k: v for k, v in MAE(**TEACHER).state_dict().items() if "blocks.1." not in k}
    with pytest.raises(CheckpointError, match="missing"):
        load_teacher(MAE(**TEACHER), partly, 2)
    with pytest.raises(ConfigError, match="suplayer from 1 to 3"):
        load_teacher(MAE(**TEACHER), {}, 4)


def test_a_teacher_of_another_grid_is_resampled() -> None:
    large = load_teacher(MAE(**{**TEACHER, "img_size": 64}), MAE(**TEACHER).state_dict(), 1)
    assert large.pos_embed.shape == (1, 65, 32) and large.decoder_pos_embed.shape == (1, 65, 24)


@pytest.mark.parametrize(
    "changes",
    [{"encoder_pred_channel": 8}, {"decoder_pred_channel": 8}, {"patch_size": 4}, {"in_chans": 1}],
)
def test_a_student_that_does_not_fit_is_refused(changes: dict[str, int]) -> None:
    (name,) = changes
    with pytest.raises(ConfigError, match=f"The student's {name} is"):
        task(student(**changes))


def test_the_state_holds_the_student_alone() -> None:
    trained = task()
    assert {k.removeprefix("model.") for k in trained.state_dict()} == student().state_dict().keys()
    assert len(list(trained.parameters())) == len(list(student().parameters()))


def test_every_trained_parameter_gets_a_gradient() -> None:
    trained = task()
    trained.loss({"image": images()}).backward()
    for name, p in trained.model.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
    heads = trained.model.encoderfeature_pred
    assert heads.fc1.weight.grad.abs().max() == 0
    weighted = task(encoder_weight=1.0)
    weighted.loss({"image": images()}).backward()
    assert weighted.model.encoderfeature_pred.fc1.weight.grad.abs().max() > 0


def test_a_student_learns_what_its_teacher_thinks() -> None:
    trained, batch = task(), {"image": images(4)}
    parameters = [p for p in trained.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 3e-3)
    torch.manual_seed(0)
    losses = []
    for _ in range(120):
        loss = trained.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.5 * losses[0]


def test_a_classifier_takes_the_encoder(tmp_path: Path) -> None:
    save_file(student().encoder_state(), tmp_path / "encoder.safetensors")
    sizes = {name: STUDENT[name] for name in list(STUDENT)[:5]}
    assert not load_vit(
        ViTClassifier(num_classes=0, **sizes), tmp_path / "encoder.safetensors"
    ).missing
