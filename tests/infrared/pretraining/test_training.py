"""`crossband infrared pretrain`: every method from frames to a checkpoint that loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from crossband.infrared.cli import DOMAIN
from crossband.infrared.unip.model import UNIPViT
from crossband.infrared.unip.vit_files import open_vit
from crossband.shared.backbones.vit import ViT, ViTClassifier
from crossband.shared.backbones.vit_keys import load_vit
from crossband.shared.checkpoints import read_config
from crossband.shared.cli.parser import parse, recipes_of
from crossband.shared.pretraining.mae import MAE
from crossband.shared.registry import create_model
from crossband.shared.tasks.base import Task

UNIP = ["--recipe", "tiny_unip", "--trainer.max_epochs", 2, "--loader.batch_size", 4]


def usable(path: Path):
    """Build the network that a checkpoint names, with its weights."""
    model = read_config(path)["model"]
    return create_model(model["name"], path, **model["arguments"])


def test_a_teacher_leaves_a_whole_autoencoder(teacher: Path) -> None:
    config = read_config(teacher)
    assert config["task"] == "pre-training" and config["method"] == "mae"
    assert config["normalisation"] == {"mean": [0.3801] * 3, "std": [0.1871] * 3}
    assert config["protocol"]["images"] == {"train": 13, "val": 1}
    assert config["protocol"]["data_sets"] == {"thermal": 14}
    assert isinstance(usable(teacher), MAE)
    opened = open_vit(teacher)
    assert opened.arguments["num_heads"] == 3 and opened.arguments["depth"] == 4
    assert len(opened.model.blocks) == 4
    report = (teacher.parent / "report.html").read_text()
    assert report.count("data:image/png") == 2  # curve and reconstructions
    assert "http" not in report.replace("http-equiv", "")
    assert (teacher.parent / "metrics.csv").is_file()


def test_distillation_leaves_a_vit(teacher: Path, frames: Path, infrared, tmp_path, capsys) -> None:
    out = tmp_path / "unip"
    words = [*UNIP, "--teacher", teacher, "--data.root", frames, "--out", out]
    assert infrared("pretrain", *words) == 0
    printed = capsys.readouterr().out
    assert "nearest 0.09" in printed and "3 heads" in printed
    best = out / "best.safetensors"
    config = read_config(best)
    assert config["teacher"]["source"] == str(teacher) and len(config["teacher"]["nmi"]) == 4
    assert config["model"]["arguments"]["last_heads"] == 3
    results = json.loads((out / "metrics.json").read_text())
    losses = [row["val_loss"] for row in results["history"]]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert results["teacher"]["layer"] == config["teacher"]["layer"]
    model = usable(best)
    assert isinstance(model, UNIPViT) and model.blocks[-1].attn.num_heads == 3
    sizes = {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 3}
    for other in (ViT(**sizes), ViTClassifier(num_classes=0, **sizes)):
        assert not load_vit(other, best).missing
        torch.testing.assert_close(other.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)
    assert (out / "report.html").read_text().count("data:image/png") >= 3


def test_a_given_layer_is_taken(teacher: Path, frames: Path, infrared, tmp_path, capsys) -> None:
    words = [*UNIP, "--teacher", teacher, "--data.root", frames, "--dry-run"]
    assert infrared("pretrain", *words, "--teacher-layer", 3, "--out", tmp_path / "x") == 0
    printed = capsys.readouterr().out
    assert "distilled: layer 3 of 4" in printed and "NMI" not in printed
    assert "nothing was written" in printed and not (tmp_path / "x").exists()


def test_a_random_teacher_must_be_asked_for(frames: Path, infrared, tmp_path, capsys) -> None:
    words = [*UNIP, "--data.root", frames, "--trainer.max_epochs", 1, "--out", tmp_path / "x"]
    words += ["--arguments", "embed_dim=48", "depth=2", "num_heads=3"]
    assert infrared("pretrain", *words) == 2
    assert "needs a teacher" in capsys.readouterr().err
    assert infrared("pretrain", *words, "--teacher", "random") == 2
    assert "--teacher_model" in capsys.readouterr().err
    more = ["--teacher", "random", "--teacher_model", "vit_tiny", "--teacher-layer", 1]
    assert infrared("pretrain", *words, *more, "--size", 32, "--quiet") == 0
    assert read_config(tmp_path / "x/best.safetensors")["protocol"]["teacher"] == "random weights"


def test_a_stopped_run_goes_on_to_the_same_weights(
    teacher: Path, frames: Path, infrared, tmp_path: Path, monkeypatch
) -> None:
    words = [*UNIP, "--teacher", teacher, "--data.root", frames, "--quiet"]
    assert infrared("pretrain", *words, "--out", tmp_path / "whole") == 0
    plain, calls = Task.training_step, []

    def stop(self, batch, index):
        calls.append(index)
        if len(calls) == 6:  # four steps an epoch: in the second
            raise KeyboardInterrupt
        return plain(self, batch, index)

    monkeypatch.setattr(Task, "training_step", stop)
    assert infrared("pretrain", *words, "--out", tmp_path / "cut") != 0
    monkeypatch.setattr(Task, "training_step", plain)
    assert infrared("pretrain", "--resume", tmp_path / "cut", "--quiet") == 0
    whole, cut = (load_file(tmp_path / n / "best.safetensors") for n in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[k], cut[k]) for k in whole)
    results = json.loads((tmp_path / "cut/metrics.json").read_text())
    assert len(results["history"]) == 2 and len(results["teacher"]["nmi"]) == 4


def test_generic_distillation(teacher: Path, frames: Path, infrared, tmp_path) -> None:
    words = ["--method", "g2sd", "--model", "g2sd_vit_tiny_dec128d4b", "--teacher", teacher]
    words += ["--arguments", "embed_dim=24", "depth=2", "decoder_embed_dim=16", "decoder_depth=1"]
    words += ["--supervised_blocks", 1, "--size", 64, "--data.root", frames, "--quiet"]
    words += ["--trainer.max_epochs", 1, "--out", tmp_path / "g"]
    assert infrared("pretrain", *words) == 0
    best = tmp_path / "g/best.safetensors"
    assert usable(best).encoderfeature_pred.fc2.out_features == 96
    assert open_vit(best).arguments["embed_dim"] == 24


def test_self_distillation_begins_again(teacher: Path, frames: Path, infrared, tmp_path) -> None:
    """With a learning rate of zero every stage ends where it began."""
    words = ["--method", "self-distill", "--weights", teacher, "--size", 64, "--rounds", 2]
    words += ["--data.root", frames, "--trainer.max_epochs", 1, "--optimizer.lr", 1e-20, "--quiet"]
    assert infrared("pretrain", *words, "--out", tmp_path / "s") == 0
    first, last = load_file(teacher), load_file(tmp_path / "s/best.safetensors")
    assert all(torch.allclose(first[key], last[key], atol=1e-6) for key in first)
    results = json.loads((tmp_path / "s/metrics.json").read_text())
    assert list(results["stages"]) == ["further", "round1", "round2"]
    losses = [rows[0]["val_loss"] for rows in results["stages"].values()]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)  # the student is its teacher
    assert isinstance(usable(tmp_path / "s/best.safetensors"), MAE)


def test_several_sensors(frames: Path, infrared, tmp_path: Path) -> None:
    root = tmp_path / "pairs"
    for folder in ("vi", "ir"):
        (root / folder).mkdir(parents=True)
    for path in frames.iterdir():
        grey = np.asarray(Image.open(path))
        Image.fromarray(grey).save(root / "ir" / path.name)
        Image.fromarray(np.stack([grey] * 3, -1)).save(root / "vi" / path.name)
    words = ["--method", "multimae", "--data.root", root, "--data.modalities", "rgb=vi"]
    words += ["thermal=ir", "--arguments", "embed_dim=24", "depth=2", "num_heads=3"]
    words += ["decoder_embed_dim=16", "decoder_num_heads=2", "--size", 32, "--quiet"]
    assert infrared("pretrain", *words, "--visible", 3, "--trainer.max_epochs", 1, "--out",
                    tmp_path / "m") == 0  # fmt: skip
    model = usable(tmp_path / "m/best.safetensors")
    assert model.visible_tokens == 3 and list(model.input_adapters) == ["rgb", "thermal"]
    thermal = tmp_path / "m/vit_thermal.safetensors"
    vit, config = usable(thermal), read_config(thermal)
    assert vit.patch_embed.proj.in_channels == 1 and config["modality"] == "thermal"
    torch.testing.assert_close(vit.blocks[1].attn.qkv.weight, model.encoder[1].attn.qkv.weight)
    assert open_vit(thermal).arguments["img_size"] == (32, 32)


def test_wrong_options_get_a_sentence(
    teacher: Path, frames: Path, infrared, tmp_path: Path, capsys
) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    encoder = {k: v for k, v in load_file(teacher).items() if "decoder" not in k}
    save_file(encoder, tmp_path / "encoder.safetensors")
    (tmp_path / "empty").mkdir()
    ours = ["--teacher", teacher, "--data.root", frames]
    whole = ["--method", "mae", "--data.root", frames]
    for words, reason in (
        (["--teacher", teacher], "give --data.root"),
        (["--teacher", teacher, "--data.root", tmp_path / "empty"], "no image to read"),
        (["--teacher", tmp_path / "other.pth", "--data.root", frames], "no plain vision"),
        (["--teacher", tmp_path / "none.pth", "--data.root", frames], "does not exist"),
        ([*ours, "--teacher-layer", 9], "layers 1 to 4"),
        ([*ours, "--teacher_model", "vit_lagre"], "'vit_large'"),
        ([*ours, "--teacher_model", "vit_large"], "Choose the size"),
        ([*ours, "--model", "mae_vit_tiny"], "cannot be pre-trained by --method unip"),
        ([*ours, "--arguments", "last_heads=4"], "last_heads 3"),
        ([*ours, "--data.val_fraction", 1.0], "leaves none"),
        ([*ours, "--data.smallest", 0.0], "must be in (0, 1]"),
        ([*ours, "--data.modalities", "rgb=vi"], "is for --method multimae"),
        ([*whole, "--arguments", "in_chans=4"], "1 or 3"),
        ([*whole, "--method", "self-distill"], "--weights FILE"),
        ([*whole, "--method", "self-distill", "--rounds", 0], "at least 1"),
        ([*whole, "--method", "self-distill", "--trainer.devices", 2], "on one device"),
        ([*whole, "--method", "g2sd"], "needs a teacher"),
        ([*whole, "--method", "g2sd", "--teacher", tmp_path / "encoder.safetensors"], "decoder_*"),
        ([*whole, "--teacher", teacher], "is for --method unip and g2sd"),
        ([*whole, "--method", "multimae"], "rgb=vi thermal=ir"),
        ([*whole, "--method", "multimae", "--data.ratio", 0.5], "leave them out"),
        (["--resume", tmp_path], "there is no run there"),
    ):
        words = [*words, "--size", 64, "--dry-run", "--out", tmp_path / "x"]
        assert infrared("pretrain", *words) == 2, words
        error = capsys.readouterr().err
        assert reason in error and "Traceback" not in error, (reason, error)
    assert not (tmp_path / "x").exists()
    assert infrared("pretrain", *UNIP, *ours, "--out", teacher.parent) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_recipes_are_the_published_ones() -> None:
    verb = DOMAIN.verbs["pretrain"]
    names = {"unip_mae_l", "unip_ibot_l", "unip_dino_b", "mae", "tiny_mae", "tiny_unip"}
    assert names <= recipes_of(verb).keys()
    for name, layer in (("unip_mae_l", 18), ("unip_ibot_l", 21), ("unip_dino_b", 9)):
        config = parse(verb, ["--recipe", name])
        batch = config.loader.batch_size * config.trainer.accumulate_grad_batches
        assert config.optimizer.lr == pytest.approx(1.5e-4 * batch / 256)
        assert (config.teacher_layer, batch, config.trainer.max_epochs) == (layer, 4096, 100)
        assert config.optimizer.betas == [0.9, 0.95] and not config.optimizer.decay_norm_and_bias
