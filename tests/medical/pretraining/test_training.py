"""`crossband medical pretrain`: from images to a checkpoint that `train --weights` takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from crossband.medical.cli import DOMAIN
from crossband.medical.config import SourceConfig, TrainConfig
from crossband.medical.data.csv_set import read
from crossband.medical.networks import build, describe, load_pretrained
from crossband.medical.pretraining.config import PretrainConfig
from crossband.medical.pretraining.masked import gather_material
from crossband.shared.checkpoints import read_config
from crossband.shared.cli.parser import parse, recipes_of
from crossband.shared.pretraining.cnn_mae import ENCODER
from crossband.shared.registry import create_model
from crossband.shared.tasks.base import Task

from ..conftest import MASKED, SIZES, TINY

_HEADS = ("class_layers.", "classifier.", "fc.")
MAE = ("--model", "vit_tiny", "--size", 32, "--arguments", *SIZES, *MASKED, "--mask_ratio", 0.75)


def material(*roots: Path, **options):
    config = PretrainConfig(size=32)
    config.data.root = [str(root) for root in roots]
    for name, value in options.items():
        setattr(config.data, name, value)
    return gather_material(config)


def names(views) -> set[str]:
    return {record.path.name for record in getattr(views, "views", views).records}


def test_a_run_leaves_a_whole_autoencoder(mae: Path) -> None:
    config = read_config(mae)
    assert config["task"] == "pre-training" and config["method"] == "mae"
    assert config["normalisation"] == {"mean": [0.5056] * 3, "std": [0.252] * 3}
    protocol = config["protocol"]
    assert protocol["mask_ratio"] == 0.75 and protocol["size"] == 32
    assert sum(protocol["images"].values()) == sum(protocol["data_sets"].values()) == 23
    assert len(protocol["sha256"]) == 64
    model = create_model(config["model"]["name"], mae, **config["model"]["arguments"])
    assert model.blocks[1].attn.qkv.weight.shape == (72, 24)
    results = json.loads((mae.parent / "metrics.json").read_text())
    assert [row["epoch"] for row in results["history"]] == [1, 2]
    assert 0 <= results["share_of_time_waiting_for_data"] <= 1
    report = (mae.parent / "report.html").read_text()
    assert "not a medical device" in report and report.count("data:image/png") == 2
    assert "http" not in report.replace("http-equiv", "")


def test_pictures_of_a_report_are_squares_that_were_held_back(nih: Path) -> None:
    found = material(nih)
    assert not names(found.train) & names(found.val)
    image = found.val[0]["image"]
    assert image.shape == (3, 32, 32) and set(found.val[0]) == {"image"}


def test_what_is_tested_on_is_never_learned_from(nih: Path, xrays: Path) -> None:
    found = material(nih, xrays)
    tested = set((nih / "test_list.txt").read_text().split())
    rows = read(xrays, SourceConfig(root=[str(xrays)])).records
    tested |= {Path(r.name).name for r in rows if r.split in ("test", "val")}
    learned = [r.path for views in (found.train, found.val) for r in views.records]
    of_nih = {path.name for path in learned if nih in path.parents}
    of_csv = {path.name for path in learned if xrays in path.parents}
    assert of_nih == set((nih / "train_val_list.txt").read_text().split())
    assert of_csv == {Path(r.name).name for r in rows if r.split == "train"}
    assert any("of other splits" in note for note in found.notes)
    assert found.data_sets == {nih.name: len(of_nih), xrays.name: len(of_csv)}


def test_patients_are_not_divided(nih: Path) -> None:
    found = material(nih, val_fraction=0.3)
    patients = [
        {record.patient for record in records}
        for records in (found.train.records, found.val.records)
    ]
    assert all(patients) and not patients[0] & patients[1]


def test_images_without_splits_are_all_learned_from_and_it_is_said(xrays: Path, tmp_path) -> None:
    shutil.copytree(xrays / "images", tmp_path / "plain")
    found = material(tmp_path / "plain")
    assert sum(found.counts.values()) == len(list((xrays / "images").iterdir()))
    assert any("no split" in note and "test" in note for note in found.notes)


def test_every_data_set_has_its_own_statistics(nih: Path, tmp_path: Path) -> None:
    folder = tmp_path / "flat"
    folder.mkdir()
    for number, grey in enumerate((51, 51, 102, 204)):
        pixels = np.full((40, 40), grey, np.uint8)
        pixels[:20] = 255 - grey
        Image.fromarray(pixels).save(folder / f"{number}.png")
    found = material(nih, folder, val_fraction=0.25)
    assert found.statistics[nih.name].mean == (0.5056,) * 3
    flat = found.statistics["flat"]
    assert flat.mean[0] == pytest.approx(0.5, abs=1e-4)  # every image holds a grey and its inverse
    kept = [Image.open(r.path) for r in found.train.records if folder in r.path.parents]
    pixels = np.concatenate([np.asarray(image).ravel() for image in kept]) / 255
    assert flat.std[0] == pytest.approx(pixels.std(), abs=1e-4)
    # Each image is normalised by those of its own set.
    for place, record in enumerate(found.val.records):
        own = found.statistics["flat" if folder in record.path.parents else nih.name]
        grey = np.asarray(Image.open(record.path), np.float32)
        if folder in record.path.parents:
            image = found.val[place]["image"]
            wanted = (grey[0, 0] / 255 - own.mean[0]) / own.std[0]
            assert float(image[0, 0, 0]) == pytest.approx(wanted, abs=0.02)
    given = PretrainConfig(size=32, statistics=[0.4, 0.2])
    given.data.root = [str(nih), str(folder)]
    assert set(gather_material(given).statistics.values()) == {type(flat)((0.4,) * 3, (0.2,) * 3)}


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_every_tensor_of_a_vit_is_taken_over(mae: Path, pool: str) -> None:
    config = TrainConfig(model="chest_mae_vit_tiny", size=32)
    config.network.pool = pool
    config.network.arguments = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8}
    model = build(describe(config, 3))
    load_pretrained(model, str(mae))
    file, own = load_file(mae), model.state_dict()
    encoder = {k for k in file if not k.startswith("decoder") and k != "mask_token"}
    if pool == "avg":  # another norm, after the mean, is new
        encoder -= {"norm.weight", "norm.bias"}
    assert {k for k in encoder if not torch.equal(file[k], own[k])} == set()
    assert own.keys() - encoder <= {"head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias"}


def test_train_begins_with_them(mae: Path, xrays: Path, medical, tmp_path, capsys) -> None:
    """At a rate of 0 the encoder stays as it was pre-trained."""
    words = [*TINY, "--data.root", xrays, "--weights", mae, "--trainer.max_epochs", 1]
    words += ["--optimizer.lr", 1e-20, "--schedule.name", "constant"]
    assert medical("train", *words, "--out", tmp_path / "r") == 0
    assert "28 tensors loaded" in capsys.readouterr().out
    file, trained = load_file(mae), load_file(tmp_path / "r/best.safetensors")
    both = file.keys() & trained.keys()
    assert len(both) == 28
    for key in both:  # a zero moves by the rate
        torch.testing.assert_close(trained[key], file[key], rtol=0, atol=1e-12)
    assert read_config(tmp_path / "r/best.safetensors")["protocol"]["pretrained"] == str(mae)


@pytest.mark.parametrize(
    ("encoder", "models"),
    [("densenet121", ("densenet121", "timm:densenet121")), ("resnet50", ("resnet50",))],
)
def test_cnns_are_pretrained_and_taken_over(
    xrays: Path, medical, tmp_path: Path, encoder: str, models: tuple[str, ...]
) -> None:
    pytest.importorskip("segmentation_models_pytorch", reason="extra medical")
    words = ["--method", "cnn-mae", "--model", encoder, "--size", 32, "--data.root", xrays]
    words += ["--trainer.max_epochs", 1, "--trainer.limit_train_batches", 1, "--quiet"]
    words += ["--loader.batch_size", 4, "--out", tmp_path / "r"]
    assert medical("pretrain", *words) == 0
    best = tmp_path / "r/best.safetensors"
    config = read_config(best)
    assert config["method"] == "cnn-mae" and config["protocol"]["mask_ratio"] == 0.75
    assert config["model"]["arguments"]["encoder"] == encoder
    pretrained = load_file(best)
    encoder_sum = sum(v.double().sum() for k, v in pretrained.items() if k.startswith(ENCODER))
    for name in models:
        model = build(describe(TrainConfig(model=name), 3))
        load_pretrained(model, str(best))
        own = {k: v for k, v in model.state_dict().items() if not k.startswith(_HEADS)}
        assert len(own) == sum(k.startswith(ENCODER) for k in pretrained)
        assert sum(v.double().sum() for v in own.values()) == pytest.approx(float(encoder_sum))


def test_a_run_that_was_killed_goes_on_to_the_same_weights(
    xrays: Path, medical, tmp_path: Path, monkeypatch
) -> None:
    words = [*MAE, "--data.root", xrays, "--loader.batch_size", 4, "--trainer.max_epochs", 2]
    words += ["--trainer.save_every_n_steps", 1, "--quiet"]
    assert medical("pretrain", *words, "--out", tmp_path / "whole") == 0
    plain, calls = Task.training_step, []

    def stop(self, batch, index):
        calls.append(index)
        if len(calls) == 8 and index > 0:  # within the second epoch
            raise KeyboardInterrupt
        return plain(self, batch, index)

    monkeypatch.setattr(Task, "training_step", stop)
    assert medical("pretrain", *words, "--out", tmp_path / "cut") != 0
    assert len(calls) == 8
    monkeypatch.setattr(Task, "training_step", plain)
    assert medical("pretrain", "--resume", tmp_path / "cut", "--quiet") == 0
    whole, cut = (load_file(tmp_path / n / "best.safetensors") for n in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[k], cut[k]) for k in whole)
    histories = [
        json.loads((tmp_path / n / "metrics.json").read_text())["history"] for n in ("whole", "cut")
    ]
    assert [row["train_loss"] for row in histories[0]] == pytest.approx(
        [row["train_loss"] for row in histories[1]], rel=1e-6
    )


def test_file_names_of_broken_images_are_not_told(
    xrays: Path, medical, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "some"
    shutil.copytree(xrays / "images", folder)
    for path in folder.iterdir():
        path.rename(path.with_name(f"Nobodyson_{path.name}"))
    for path in sorted(folder.iterdir()):
        path.write_bytes(path.read_bytes()[:200])
    assert medical("pretrain", *MAE, "--data.root", folder, "--out", tmp_path / "r") == 2
    told = capsys.readouterr()
    assert "Nobodyson" not in told.out + told.err
    assert "image-" in told.err and told.err.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_wrong_options_get_a_sentence(nih: Path, mae: Path, medical, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    root = ["--data.root", nih]
    for words, reason in (
        ([], "give --data.root"),
        (["--data.root", tmp_path / "empty"], "holds no radiograph"),
        ([*root, *root], "is given twice"),
        ([*root, "--model", "vit_smal"], "Did you mean 'vit_small'"),
        ([*root, "--model", "densenet121"], "no masked autoencoder"),
        ([*root, "--method", "cnn-mae", "--model", "vit_tiny"], "is for --method mae"),
        ([*root, "--method", "cnn-mae", "--model", "tu-nothing"], "cannot be built"),
        ([*root, "--size", 0], "at least 1"),
        ([*root, "--data.val_fraction", 1], "must be in (0, 1)"),
        ([*root, "--data.splits", "training"], "name some by --data.splits"),
        ([*root, "--statistics", 0.5], "give mean and deviation"),
        ([*root, "--data.smallest", 0], "between 0 and 1"),
        ([*root, "--mask_ratio", 1.5], "1.5"),
        ([*root, "--weights", tmp_path / "none.pth"], "does not exist"),
        (["--resume", tmp_path], "nothing to go on with"),
    ):
        assert medical("pretrain", *words, "--dry-run", "--out", tmp_path / "x") == 2, words
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1, (words, error)
    assert not (tmp_path / "x").exists()
    assert medical("pretrain", *MAE, *root, "--out", mae.parent) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_recipes_are_the_published_ones() -> None:
    verb = DOMAIN.verbs["pretrain"]
    assert {"xray", "xray_cnn", "tiny"} <= recipes_of(verb).keys()
    config = parse(verb, ["--recipe", "xray"])
    assert (config.mask_ratio, config.trainer.max_epochs, config.model) == (0.9, 800, "vit_small")
    assert (config.data.smallest, config.data.largest) == (0.5, 1.0)
    batch = 8 * config.loader.batch_size  # on the paper's eight devices
    assert batch == 2048 and config.optimizer.lr == pytest.approx(1.5e-4 * batch / 256)
    assert config.optimizer.betas == [0.9, 0.95] and config.optimizer.weight_decay == 0.05
    assert config.schedule.warmup_fraction * config.trainer.max_epochs == pytest.approx(40)
    assert not config.optimizer.decay_norm_and_bias
    assert parse(verb, ["--recipe", "xray_cnn"]).mask_ratio == 0.75
