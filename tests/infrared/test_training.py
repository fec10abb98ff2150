from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from crossband.apps.main import main
from crossband.infrared.config import DataConfig, LossConfig
from crossband.infrared.data.synthetic import make_synthetic
from crossband.infrared.training import class_weights, gather
from crossband.infrared.unip.model import UNIPViT
from crossband.shared.backbones.vit_keys import load_vit
from crossband.shared.checkpoints import read_config
from crossband.shared.heads.vit_segmentor import SegmentationViT

from .conftest import SMALL


def _words(scenes: Path, out: Path, *more: str) -> list[str]:
    return ["infrared", "train", *SMALL, "--data.root", str(scenes), "--out", str(out), *more]


def test_a_run_leaves_what_every_run_leaves(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    wanted = {"config.yaml", "metrics.csv", "metrics.json", "best.safetensors", "last.ckpt"}
    assert wanted | {"report.html"} <= names
    results = json.loads((run / "metrics.json").read_text())
    assert results["best"]["epoch"] >= 1 and 0 <= results["validation"]["mIoU"] <= 1
    assert "car" in results["validation"]["classes"]
    config = read_config(run / "best.safetensors")
    assert config["classes"] == ["background", "road", "car", "person"]
    assert config["window"]["size"] == 64 and len(config["protocol"]["sha256"]) == 64
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert {"val_miou", "val_iou", "val_loss"} <= set(rows[0])


@pytest.mark.slow
def test_scenes_are_learned(scenes: Path, tmp_path: Path) -> None:
    more = ("--optimizer.lr", "1e-3", "--trainer.max_epochs", "120", "--network.detail", "16")
    assert main(_words(scenes, tmp_path / "r", *more, "--loss.name", "ce_dice", "--quiet")) == 0
    results = json.loads((tmp_path / "r/metrics.json").read_text())
    assert results["validation"]["classes"]["road"]["iou"] > 0.5


@pytest.mark.slow
def test_the_tiny_recipe_finds_roads_cars_and_people(tmp_path: Path) -> None:
    words = ["infrared", "train", "--recipe", "tiny", "--quiet", "--out", str(tmp_path / "r")]
    assert main([*words, "--data.root", str(make_synthetic(tmp_path / "scenes", 60))]) == 0
    results = json.loads((tmp_path / "r/metrics.json").read_text())
    found = {name: row["iou"] for name, row in results["validation"]["classes"].items()}
    assert found["road"] > 0.6 and found["car"] > 0.4 and found["person"] > 0.4, found


def test_a_last_batch_of_one_crop_is_left_out(scenes: Path, tmp_path: Path) -> None:
    """Twelve scenes hold 8 to train on: batches of 7 and 1, of which UPerHead cannot take 1."""
    more = ("--loader.batch_size", "7", "--trainer.max_epochs", "1", "--quiet")
    assert main(_words(scenes, tmp_path / "r", *more)) == 0
    rows = list(csv.DictReader((tmp_path / "r/metrics.csv").open()))
    assert rows[-1]["step"] == "1"


def test_classes_are_weighed_by_their_pixels(scenes: Path) -> None:
    material = gather(DataConfig(root=[str(scenes)]), 0)
    counts = np.zeros(4)
    for item in material.train:
        counts += np.bincount(np.asarray(Image.open(item.mask)).ravel(), minlength=4)
    shares = counts / counts.sum()
    weights = np.array(class_weights(LossConfig(balance=1.0), material))
    np.testing.assert_allclose(weights * shares, 1 / 4)
    halves = np.array(class_weights(LossConfig(balance=0.5), material))
    assert (halves * shares).sum() == pytest.approx(1)
    np.testing.assert_allclose(halves[0] / halves[3], (shares[3] / shares[0]) ** 0.5)
    assert class_weights(LossConfig(), material) == []


def test_a_stopped_run_goes_on_exactly(run: Path, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "parts"
    assert main(_words(scenes, out, "--trainer.max_epochs", "1", "--quiet")) == 0
    text = (out / "config.yaml").read_text().replace("max_epochs: 1", "max_epochs: 2")
    (out / "config.yaml").write_text(text)
    # The schedule knows its length, so the first epoch is run again under the longer one.
    whole = load_file(run / "best.safetensors")
    assert whole.keys() == load_file(out / "best.safetensors").keys()
    assert main(["infrared", "train", "--resume", str(out), "--quiet"]) == 0
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]


def test_pretrained_weights_are_loaded_and_reported(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    vit = UNIPViT(embed_dim=192, depth=12, num_heads=3, last_heads=16)
    save_file(vit.state_dict(), tmp_path / "unip.safetensors")
    more = ("--weights", str(tmp_path / "unip.safetensors"), "--dry-run")
    assert main(_words(scenes, tmp_path / "r", *more)) == 0
    printed = capsys.readouterr().out
    assert "150 tensors loaded" in printed and "interpolated: pos_embed" in printed
    assert not (tmp_path / "r").exists()


def test_a_vit_of_one_channel_sees_equal_channels(tmp_path: Path) -> None:
    sizes = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 3}
    one, three = UNIPViT(in_chans=1, **sizes).eval(), SegmentationViT(**sizes).eval()
    save_file(one.state_dict(), tmp_path / "one.safetensors")
    load_vit(three, tmp_path / "one.safetensors")
    image = torch.randn(2, 1, 32, 32)
    wanted = one.forward_tokens(image).map()
    torch.testing.assert_close(three(image.expand(-1, 3, -1, -1))[0], wanted)


def test_probing_trains_the_convolution_alone(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--network.tuning", "linear", "--trainer.max_epochs", "1", "--optimizer.lr", "0.1")
    assert main(_words(scenes, tmp_path / "r", *more)) == 0
    assert f"{4 * 192 * 4 + 4:,} trained" in capsys.readouterr().out
    one = ("--network.tuning", "layerwise", "--network.blocks", "5", "--dry-run")
    assert main(_words(scenes, tmp_path / "q", *one)) == 0
    assert f"{192 * 4 + 4:,} trained" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--model", "unip_tinny"), "Did you mean 'unip_tiny'"),
        (("--network.blocks", "13"), "blocks 1 to 12"),
        (("--network.blocks", "5", "6"), "one block or of four"),
        (("--loss.class_weights", "1", "2"), "2 numbers for 4 classes"),
        (("--loss.class_weights", *"1111", "--loss.balance", "1"), "not both"),
        (("--loader.batch_size", "1"), "two images or more"),
        (("--window.stride", "65"), "between 1 and the windows' 64 pixels"),
        (("--data.train", "training"), "no split 'training'"),
        (("--data.val", "vall"), "no split 'vall'"),
        (("--data.crop", "0"), "--data.crop 0 must lie between"),
        (("--data.on_target", "2"), "--data.on_target 2 must lie between"),
        (("--threshold", "validation"), "for two classes, and there are 4"),
        (("--model", "unet", "--network.tuning", "linear"), "has no plain ViT"),
        (("--data.ratio", "2", "1"), "smallest and the largest factor"),
        (("--model", "unet", "--network.encoder", "tu-nothing"), "cannot be built"),
        (("--weights", "nowhere.pth"), "nowhere.pth"),
    ],
)
def test_options_that_cannot_work_are_one_sentence(
    scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    message: str,
) -> None:
    assert main(_words(scenes, tmp_path / "r", *more)) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_a_mask_with_an_unknown_id_is_named(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "classes.txt").write_text("a\nb\n")
    for number in range(4):
        pixels = np.full((64, 64), 7 if number == 2 else 1, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{number}.png")
        Image.fromarray(pixels).save(tmp_path / f"masks/{number}.png")
    assert main(_words(tmp_path, tmp_path / "r", "--quiet")) == 2
    assert "masks/2.png has pixels of class 7" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_ends_the_run(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--optimizer.lr", "1e12", "--optimizer.name", "sgd", "--trainer.max_epochs", "3")
    assert main(_words(scenes, tmp_path / "r", *more, "--quiet")) == 2
    assert "lower --optimizer.lr" in capsys.readouterr().err


def test_a_broken_mask_is_one_sentence_from_loader_processes_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    for number in range(6):
        pixels = np.full((64, 64), 1, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{number}.png")
        Image.fromarray(pixels * (7 if number else 1)).save(tmp_path / f"masks/{number}.png")
    words = _words(tmp_path, tmp_path / "r", "--quiet", "--loader.num_workers", "1")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "has pixels of class 7" in error and "Traceback" not in error
    assert len(error.strip().splitlines()) == 1


def test_a_trained_network_is_gone_on_with_though_its_heads_differ(
    run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = _words(scenes, tmp_path / "r", "--weights", str(run / "best.safetensors"))
    assert main([*words, "--dry-run"]) == 0
    assert "tensors loaded from" in capsys.readouterr().out
    other = ["--network.auxiliary", "true", "--dry-run"]
    assert main([*words, *other]) == 2  # the auxiliary head is nowhere
    assert "auxiliary_head" in capsys.readouterr().err
