"""`crossband medical pretrain --method lvm-med` and its rivals, on images and volumes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from crossband.medical.cli import DOMAIN
from crossband.medical.config import TrainConfig
from crossband.medical.lvm_med.encoder import ResNet50
from crossband.medical.networks import build, describe, load_pretrained
from crossband.medical.pretraining.config import Method, PretrainConfig
from crossband.medical.pretraining.encoders import load_encoder, plain_keys, read_ours
from crossband.shared.checkpoints import read_config, save_checkpoint
from crossband.shared.cli.parser import parse, recipes_of
from crossband.shared.errors import CheckpointError
from crossband.shared.registry import create_model
from crossband.shared.tasks.base import Task

SIZES = ("channels=[4,4,8,8]", "stem_width=4")
NETWORK = ("--model", "timm:resnet10t", "--arguments", *SIZES)
CROPS = ("--size", 32, "--crops.sizes", 32, 16, "--crops.counts", 2, 1)
SHORT = ("--loader.batch_size", 8, "--trainer.max_epochs", 1, "--data.val_fraction", 0.2)
TINY = (*NETWORK, *CROPS, *SHORT, "--quiet")
GRAPHS = ("--method", "lvm-med", "--matching.graph_size", 4, "--matching.k", 2)
HEADS = {
    "simclr": ("hidden=8", "out=8"),
    "byol": ("hidden=8", "out=8"),
    "vicreg": ("hidden=8", "out=8"),
    "barlow-twins": ("hidden=8", "out=8"),
    "dino": ("hidden=8", "bottleneck=8", "out=16"),
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Twelve grey images, a volume of six slices, and a volume that is cut off."""
    root = tmp_path_factory.mktemp("pool")
    draw = np.random.default_rng(0)
    for name in ("xray", "mri"):
        (root / name).mkdir()
    for number in range(12):
        pixels = draw.integers(0, 256, (40, 36)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "xray" / f"Nobodyson_{number}.png")
    values = draw.random((34, 34, 6)).astype(np.float32)
    image = nibabel.Nifti1Image(values, np.diag([1, 1, 3, 1]))
    nibabel.save(image, root / "mri" / "whole.nii.gz")
    damaged = root / "mri" / "Nobodyson.nii.gz"
    damaged.write_bytes((root / "mri" / "whole.nii.gz").read_bytes()[:300])
    return ["--data.root", root / "xray", "--data.root", root / "mri"]


@pytest.fixture(scope="module")
def run(roots: list[object], medical: Callable[..., int], tmp_path_factory) -> Path:
    """Run folder of the recipe, on the smallest network."""
    out = tmp_path_factory.mktemp("lvm") / "run"
    words = ["--recipe", "tiny_lvm_med", *TINY, "--matching.graph_size", 4, *roots]
    assert medical("pretrain", *words, "--trainer.max_epochs", 2, "--out", out) == 0
    return out


def test_a_run_leaves_results_and_says_what_it_saw(run: Path) -> None:
    results = json.loads((run / "metrics.json").read_text())
    assert 0 <= results["matched"] <= 1 and results["gap"] >= 0
    assert results["energy"] == results["history"][-1]["val_energy"]
    assert [row["epoch"] for row in results["history"]] == [1, 2]
    protocol = results["protocol"]
    # Both modalities are shown as often, and the only volume stays to learn from.
    assert protocol["modalities"] == {
        "xray": {"train": 10, "shown_per_epoch": 10, "val": 2},
        "mri": {"train": 6, "shown_per_epoch": 10, "val": 0},
    }
    assert protocol["images"] == {"train": 16, "val": 2} and protocol["unreadable"] == 1
    assert protocol["matching"]["order"] == 2 and protocol["crops"]["sizes"] == [32, 16]
    assert len(results["skipped"]) == 1 and "image-" in results["skipped"][0]
    report = (run / "report.html").read_text()
    assert "not a medical device" in report and report.count("data:image/png") == 2
    assert results["skipped"][0].split(":")[0] in report
    assert not any("Nobodyson" in text for text in (report, json.dumps(results)))


def test_the_encoder_alone_is_the_backbone_of_the_whole(run: Path) -> None:
    whole, alone = load_file(run / "best.safetensors"), load_file(run / "encoder.safetensors")
    inside = {k: v for k, v in whole.items() if k.startswith("backbone.")}
    assert len(inside) < len(whole) and any(k.startswith("objective.") for k in whole)
    assert {f"backbone.net.{key}" for key in alone} == inside.keys()
    assert all(torch.equal(inside[f"backbone.net.{key}"], alone[key]) for key in alone)
    config = read_config(run / "encoder.safetensors")
    assert config["task"] == "pre-training" and config["method"] == "lvm-med"
    assert config["normalisation"]["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize("file", ["best.safetensors", "encoder.safetensors"])
def test_train_begins_with_the_backbone(run: Path, file: str) -> None:
    config = TrainConfig(model="timm:resnet10t")
    config.optimizer.layer_decay = 1.0
    config.network.arguments = {"channels": [4, 4, 8, 8], "stem_width": 4}
    model = build(describe(config, 3))
    head = model.fc.weight.clone()
    said = load_pretrained(model, str(run / file))
    alone, own = load_file(run / "encoder.safetensors"), model.state_dict()
    assert f"{len(alone)} tensors loaded" in said and "fc.weight" in said
    assert own.keys() - alone.keys() == {"fc.weight", "fc.bias"}
    assert all(torch.equal(own[key], alone[key]) for key in alone)
    assert torch.equal(model.fc.weight, head)
    other = build(describe(TrainConfig(model="resnet50"), 3))
    with pytest.raises(CheckpointError, match="Choose the network that was pre-trained"):
        load_pretrained(other, str(run / file))


def test_train_runs_with_the_encoder(run: Path, xrays: Path, medical, tmp_path: Path) -> None:
    words = ["--model", "timm:resnet10t", "--network.arguments", *SIZES, "--size", 32]
    words += ["--weights", run / "encoder.safetensors", "--data.root", xrays, "--quiet"]
    words += ["--augment.auto_augment", "", "--trainer.max_epochs", 1]
    words += ["--trainer.limit_train_batches", 1, "--out", tmp_path / "r"]
    assert medical("train", *words) == 0
    config = read_config(tmp_path / "r/best.safetensors")
    assert config["normalisation"]["mean"] == pytest.approx([0.485, 0.456, 0.406])


@pytest.mark.parametrize("name", ["densenet121", "convnext_atto", "vit_tiny_patch16_224"])
def test_backbones_of_timm_fit_their_classifiers(name: str) -> None:
    backbone = create_model(f"timm:{name}", features_only=True)
    models = [create_model(f"timm:{name}", num_classes=3)]
    if name == "densenet121":
        monai = pytest.importorskip("monai", reason="extra medical") and "monai:DenseNet121"
        models.append(create_model(monai, spatial_dims=2, in_channels=3, out_channels=3))
    state = plain_keys(backbone)
    total = sum(value.double().sum() for value in state.values())
    for model in models:
        report = load_encoder(model, state, "file")
        own = model.state_dict()
        assert len(report.matched) == len(state)
        assert sum(own[k].double().sum() for k in report.matched) == pytest.approx(float(total))
        assert all(key.startswith(("head", "norm", "classifier", "class_layers"))
                   for key in report.missing)  # fmt: skip


@pytest.mark.parametrize("wrapped", ["", "module."])
def test_resnets_of_the_authors_begin_a_training(tmp_path: Path, wrapped: str) -> None:
    torch.manual_seed(1)
    state = ResNet50(num_classes=5).state_dict()
    old = {wrapped + k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "lvmmed_resnet.torch")
    for name in ("resnet50", "timm:resnet50"):
        config = TrainConfig(model=name)
        model = build(describe(config, 5))
        head = model.fc.weight.clone()
        load_pretrained(model, str(tmp_path / "lvmmed_resnet.torch"))
        own = model.state_dict()
        body = [key for key in state if not key.startswith("fc.")]
        assert all(torch.equal(own[key], state[key]) for key in body)
        assert torch.equal(model.fc.weight, head)
    sam = create_model("lvm_med_vit_base", depth=1, embed_dim=12, num_heads=1).state_dict()
    torch.save(sam, tmp_path / "lvmmed_vit.pth")
    with pytest.raises(CheckpointError, match="SAM's image encoder"):
        load_pretrained(model, str(tmp_path / "lvmmed_vit.pth"))


def test_pretraining_goes_on_from_a_backbone(run: Path, roots, medical, tmp_path: Path) -> None:
    """A rival at a rate of 0 keeps the weights that it is given; running statistics move."""
    words = ["--method", "simclr", "--heads", *HEADS["simclr"], *TINY, *roots]
    words += ["--weights", run / "best.safetensors", "--optimizer.lr", 1e-20]
    words += ["--schedule.name", "constant", "--optimizer.weight_decay", 0]
    assert medical("pretrain", *words, "--out", tmp_path / "r") == 0
    begun, went = (load_file(p / "encoder.safetensors") for p in (run, tmp_path / "r"))
    learned = [k for k in begun if not k.endswith(("mean", "var", "tracked"))]
    for key in learned:
        torch.testing.assert_close(went[key], begun[key], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", HEADS)
def test_rivals_run_by_the_same_command(method: str, roots, medical, tmp_path: Path) -> None:
    words = ["--method", method, "--heads", *HEADS[method], *TINY, *roots]
    assert medical("pretrain", *words, "--out", tmp_path / "r") == 0
    results = json.loads((tmp_path / "r/metrics.json").read_text())
    assert np.isfinite(results["history"][0]["val_loss"]) and "matched" not in results
    assert results["protocol"]["heads"]["hidden"] == 8
    encoder = read_ours(tmp_path / "r/encoder.safetensors")
    assert encoder is not None
    assert encoder.keys() == read_ours(tmp_path / "r/best.safetensors").keys()


def test_first_order_and_the_draft_run(roots, medical, tmp_path: Path) -> None:
    draft = ("--matching.variant", "draft", "--matching.gradient", "blackbox")
    draft += ("--matching.projector", "16")
    for name, more in (("first", ("--matching.order", 1)), ("draft", draft)):
        words = [*GRAPHS, *TINY, *roots, *more, "--out", tmp_path / name]
        assert medical("pretrain", *words) == 0
        config = read_config(tmp_path / name / "best.safetensors")
        assert config["protocol"]["matching"]["order"] == (1 if name == "first" else 2)


def test_a_run_that_was_killed_goes_on_to_the_same_weights(
    roots, medical, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*GRAPHS, *TINY, *roots, "--trainer.max_epochs", 2, "--trainer.save_every_n_steps", 1]
    assert medical("pretrain", *words, "--out", tmp_path / "whole") == 0
    plain, calls = Task.training_step, []

    def stop(self: Task, batch: dict, index: int) -> torch.Tensor:
        calls.append(index)
        if len(calls) == 5:  # within the second epoch of three steps
            raise KeyboardInterrupt
        return plain(self, batch, index)

    monkeypatch.setattr(Task, "training_step", stop)
    assert medical("pretrain", *words, "--out", tmp_path / "cut") != 0
    assert calls == [0, 1, 2, 0, 1]
    monkeypatch.setattr(Task, "training_step", plain)
    assert medical("pretrain", "--resume", tmp_path / "cut", "--quiet") == 0
    for file in ("best.safetensors", "encoder.safetensors"):
        whole, cut = (load_file(tmp_path / name / file) for name in ("whole", "cut"))
        assert whole.keys() == cut.keys() and all(torch.equal(whole[k], cut[k]) for k in whole)


def test_what_cannot_work_is_refused_before_training(
    roots, medical, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graphs = [*GRAPHS, *TINY]
    simclr = ["--method", "simclr", *TINY]
    for words, reason in (
        ([*graphs, "--matching.graph_size", 9], "fewer images than a graph"),
        ([*graphs, "--loader.batch_size", 32, "--matching.graph_size", 32], "There are 20 images"),
        ([*simclr, "--loader.batch_size", 1], "fewer images than the two"),
        ([*graphs, "--data.val_fraction", 0.05], "raise --data.val_fraction"),
        ([*graphs, "--matching.k", 0], "at least 1"),
        ([*graphs, "--matching.order", 3], "order 3"),
        ([*graphs, "--matching.solver", "lpmp"], "lpmp"),
        ([*graphs, "--heads", "hidden=8"], "leave it out"),
        ([*simclr, "--matching.order", 1], "leave it out"),
        ([*simclr, "--heads", "width=8"], "does not take these arguments"),
        ([*graphs, "--mask_ratio", 0.5], "--mask_ratio is for mae"),
        ([*graphs, "--data.views", "PA"], "--data.views is for mae"),
        (["--method", "mae", "--matching.order", 1], "--matching.order is for methods"),
        ([*graphs, "--size", 48], "disagree"),
        ([*GRAPHS, *SHORT, "--size", 32, "--crops.sizes", 32, 64], "larger than the large ones"),
        ([*graphs, "--model", "timm:resnet10"], "resnet10t"),
        ([*graphs, "--weights", tmp_path / "none.pth"], "does not exist"),
        ([*graphs, "--data.windows", "pet=[1,2]"], "pet"),
    ):
        line = [*words, *roots, "--out", tmp_path / "x"]
        assert medical("pretrain", *line) == 2, words
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1, (words, error)
    assert not (tmp_path / "x").exists()


def test_a_dry_run_writes_nothing(roots, medical, tmp_path: Path, capsys) -> None:
    words = [*GRAPHS, *TINY[:-1], *roots, "--dry-run", "--out", tmp_path / "x"]
    assert medical("pretrain", *words) == 0
    told = capsys.readouterr().out
    assert "dry run" in told and "note: skipped: " in told and "xray 12, mri 6" in told
    assert "Nobodyson" not in told and not (tmp_path / "x").exists()


def test_recipes_are_the_published_ones() -> None:
    verb = DOMAIN.verbs["pretrain"]
    assert {"lvm_med_r50", "lvm_med_vit_b", "tiny_lvm_med", "xray"} <= recipes_of(verb).keys()
    for recipe, model, batch in (("r50", "resnet50", 3200), ("vit_b", "sam_vit_b", 2800)):
        config = parse(verb, ["--recipe", f"lvm_med_{recipe}"])
        assert (config.method, config.model) == ("lvm-med", model)
        assert 16 * config.loader.batch_size == batch and config.trainer.max_epochs == 100
        assert config.optimizer.name == "adam" and config.optimizer.lr == 2e-3
        assert config.schedule.min_lr == pytest.approx(config.optimizer.lr / 2**4)
        assert config.matching == PretrainConfig().matching and config.matching.lam == 80
        assert config.crops == PretrainConfig().crops and config.size == config.crops.sizes[0]
    assert {"lvm-med", *HEADS} < set(Method.__args__)


def test_checkpoints_of_other_tasks_are_no_encoders(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "a.safetensors", {"a": torch.ones(1)}, {"task": "else"})
    assert read_ours(path) is None


@pytest.mark.slow
def test_two_processes_match_half_a_batch_each(roots: list[object], tmp_path: Path) -> None:
    """Two processes of four images do as many steps as one of eight, and say things once."""
    words = [*TINY[:-1], *GRAPHS, *roots, "--loader.batch_size", 4, "--data.copies", 1]
    words += ["--trainer.devices", 2, "--trainer.strategy", "ddp", "--out", tmp_path / "two"]
    command = [sys.executable, "-m", "crossband.apps.main", "medical", "pretrain", *words]
    done = subprocess.run(
        [*map(str, command), "--device", "cpu"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder") == 1
    with (tmp_path / "two/metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    images = read_config(tmp_path / "two/best.safetensors")["protocol"]["images"]
    assert int(row["step"]) == -(-images["train"] // 8)
    assert 0 <= float(row["val_matched"]) <= 1
