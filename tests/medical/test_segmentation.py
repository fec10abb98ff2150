"""Masks: training, Dice and files at the size of the image."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from crossband.medical.cases import ScanCase
from crossband.medical.data.radiographs import read_radiograph
from crossband.medical.data.records import Record
from crossband.medical.mask_scores import Distances, compare
from crossband.medical.segmentation import cases_of
from crossband.shared import load
from crossband.shared.checkpoints import read_config

from .conftest import LUNGS, TINY


def rows_of(root: Path, split: str) -> list[dict[str, str]]:
    return [r for r in csv.DictReader((root / "labels.csv").open()) if r["split"] == split]


def test_a_run_leaves_what_every_run_leaves(lungs: Path, xrays: Path) -> None:
    names = {path.name for path in lungs.iterdir()}
    wanted = {"config.yaml", "metrics.csv", "metrics.json", "best.safetensors", "last.ckpt"}
    assert wanted | {"report.html"} <= names
    config = read_config(lungs / "best.safetensors")
    assert config["task"] == "medical segmentation"
    assert config["classes"] == ["background", "lung"] and len(config["palette"]) == 2
    assert "not a medical device" in config["intended_use"]
    results = json.loads((lungs / "metrics.json").read_text())
    assert config["metrics"] == {"val_mean_dice": results["val"]["dice"]["value"]}
    assert results["protocol"]["images"]["val"] == len(rows_of(xrays, "val"))
    assert len(results["val"]["rows"]) == len(rows_of(xrays, "val"))
    report = (lungs / "report.html").read_text()
    assert "not a medical device" in report and "Worst images" in report


def test_dice_is_that_of_the_masks_that_predict_writes(
    lungs: Path, xrays: Path, medical, tmp_path: Path, capsys
) -> None:
    line = ["--weights", lungs / "best.safetensors", "--data.root", xrays, "--keep-ids"]
    assert medical("evaluate", *line, "--out", tmp_path / "e") == 0
    printed = capsys.readouterr().out
    assert "Dice" in printed and "not a medical device" in printed
    results = json.loads((tmp_path / "e/metrics.json").read_text())
    rows, dice = rows_of(xrays, "test"), []
    assert [row["image"] for row in results["rows"]] == [row["image"] for row in rows]
    segmenter = load(lungs / "best.safetensors", device="cpu")
    for row, scored in zip(rows, results["rows"], strict=True):
        truth = np.asarray(Image.open(xrays / row["lung_mask"])) > 0
        found = segmenter.predict(read_radiograph(xrays / row["image"]).pixels) == 1
        dice.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
        assert scored["dice"]["lung"] == pytest.approx(dice[-1])
    assert results["dice"]["value"] == pytest.approx(np.mean(dice))
    assert results["classes"]["lung"]["dice"]["median"] == pytest.approx(np.median(dice))
    assert results["dice"]["low"] <= results["dice"]["value"] <= results["dice"]["high"]


def test_masks_are_written_at_the_size_of_the_image(lungs, medical, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, shape in (("wide", (50, 90)), ("tall", (200, 70)), ("one", (1, 1))):
        pixels = random.integers(0, 255, shape, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    out, weights = tmp_path / "masks", lungs / "best.safetensors"
    paths = sorted(tmp_path.glob("*.png"))
    assert medical("predict", *paths, "--weights", weights, "--out", out, "--quiet") == 0
    entries = [json.loads(line) for line in (out / "predictions.jsonl").open()]
    segmenter = load(weights, device="cpu")
    for path, entry in zip(paths, entries, strict=True):
        pixels = read_radiograph(path).pixels
        mask = np.asarray(Image.open(entry["mask"]))
        np.testing.assert_array_equal(mask, segmenter.predict(pixels))
        assert mask.shape == pixels.shape == tuple(entry["size"])
        assert entry["area"]["lung"] == pytest.approx((mask == 1).mean(), abs=1e-6)
        with Image.open(entry["overlay"]) as image:
            assert image.size == pixels.shape[::-1]
        assert path.stem not in json.dumps(entry | {"mask": "", "overlay": ""})
        assert path.stem not in Path(entry["mask"]).name


def test_broken_images_and_masks_are_listed_without_names(
    lungs: Path, xrays: Path, medical, tmp_path: Path, capsys
) -> None:
    root = tmp_path / "x"
    shutil.copytree(xrays, root)
    first, second = rows_of(root, "test")[:2]
    for path in (root / first["image"], root / second["lung_mask"]):
        path.write_bytes(path.read_bytes()[:90])
    line = ["--weights", lungs / "best.safetensors", "--data.root", root]
    assert medical("evaluate", *line, "--out", tmp_path / "e") == 3
    results = json.loads((tmp_path / "e/metrics.json").read_text())
    assert len(results["left_out"]) == 2
    assert results["protocol"]["images"] == len(rows_of(root, "test")) - 2
    told = capsys.readouterr().out + (tmp_path / "e/report.html").read_text()
    told += (tmp_path / "e/metrics.json").read_text()
    for row in (first, second):
        assert Path(row["image"]).stem not in told
    bad = rows_of(root, "train")[0]
    (root / bad["lung_mask"]).write_bytes(b"nothing")
    train = [*LUNGS, "--data.root", root, "--trainer.max_epochs", 1, "--quiet"]
    assert medical("train", *train, "--out", tmp_path / "r") == 0  # another image takes its place
    error = capsys.readouterr().err
    assert "left out: " in error and "image-" in error and Path(bad["image"]).stem not in error


@pytest.mark.parametrize("decoder", ["unet", "upernet"])
def test_an_encoder_is_taken_over_and_may_stay(
    mae: Path, xrays: Path, medical, tmp_path: Path, decoder: str
) -> None:
    more = [*TINY, "--task", "segmentation", "--network.decoder", decoder]
    if decoder == "unet":
        more += ["--network.arguments", "channels=[4,8,8]"]  # patches of 8 pixels need three levels
    else:
        more += ["--network.channels", 8, "--network.detail", 0]
    more += ["--data.root", xrays, "--weights", mae, "--tuning", "linear", "--quiet"]
    assert medical("train", *more, "--trainer.max_epochs", 1, "--out", tmp_path / "r") == 0
    trained, before = load_file(tmp_path / "r/best.safetensors"), load_file(mae)
    inner = "vit." if decoder == "unet" else "backbone.vit."
    mine = {k.removeprefix(inner): v for k, v in trained.items() if k.startswith(inner)}
    shared = mine.keys() & before.keys()
    assert len(shared) >= 28 and all((mine[k] == before[k]).all() for k in shared)
    part = load_file(tmp_path / "r/tuned.safetensors")
    assert part and not any(key.startswith(inner) for key in part)
    image = read_radiograph(sorted((xrays / "images").iterdir())[0]).pixels
    one, two = (load(tmp_path / f"r/{n}.safetensors") for n in ("best", "tuned"))
    np.testing.assert_array_equal(one.predict(image), two.predict(image))


@pytest.mark.slow
def test_lungs_are_found(xrays: Path, medical, tmp_path: Path) -> None:
    more = [*LUNGS, "--data.root", xrays, "--optimizer.lr", "3e-3", "--trainer.max_epochs", 60]
    assert medical("train", *more, "--quiet", "--out", tmp_path / "r") == 0
    results = json.loads((tmp_path / "r/metrics.json").read_text())
    assert results["val"]["dice"]["value"] > 0.85


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--model", "densenet121"), "gives no masks"),
        (("--tuning", "lora"), "is for --task classification"),
        (("--loss.name", "bce"), "ce, ce_dice"),
        (("--monitor", "auroc"), "take dice or loss"),
        (("--network.decoder", "upernet", "--network.arguments", "patch_size=8"), "of 16 pixels"),
        (("--network.arguments", "patch_size=8"), "channels"),
        (("--loss.class_weights", 1, 2, 3), "3 numbers for 2 classes"),
        (("--loss.balance", 1), "are for findings"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_options_that_cannot_work_are_one_sentence(
    xrays: Path, medical, tmp_path: Path, capsys, more: tuple, message: str
) -> None:
    line = [*LUNGS, "--data.root", xrays, "--out", tmp_path / "r", "--quiet"]
    assert medical("train", *line, *more, "--dry-run") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error


def test_images_without_masks_are_refused(nih: Path, medical, tmp_path: Path, capsys) -> None:
    line = [*LUNGS, "--data.root", nih, "--out", tmp_path / "r", "--quiet"]
    assert medical("train", *line, "--dry-run") == 2
    assert "--data.columns mask=NAME" in capsys.readouterr().err


def test_a_mask_of_another_image_is_left_out(
    lungs: Path, xrays: Path, medical, tmp_path: Path, capsys
) -> None:
    root = tmp_path / "x"
    shutil.copytree(xrays, root)
    half, larger = (root / row["lung_mask"] for row in rows_of(root, "test")[:2])
    pixels = np.asarray(Image.open(half))
    Image.fromarray(pixels[:, : pixels.shape[1] // 2]).save(half)
    Image.fromarray(np.asarray(Image.open(larger)).repeat(2, 0).repeat(2, 1)).save(larger)
    line = ["--weights", lungs / "best.safetensors", "--data.root", root, "--out", tmp_path / "e"]
    assert medical("evaluate", *line, "--bootstrap", 0) == 3
    results = json.loads((tmp_path / "e/metrics.json").read_text())
    assert len(results["left_out"]) == 1 and "bring the mask" in results["left_out"][0]
    assert len(results["rows"]) == len(rows_of(root, "test")) - 1
    assert medical("evaluate", *line, "--data.classes", "a", "b") == 2
    assert "gives the classes background, lung" in capsys.readouterr().err


@pytest.mark.parametrize("spacing", [None, (3.0, 1.0)])
def test_distances_of_shifted_squares(spacing: tuple[float, float] | None) -> None:
    truth, found = np.zeros((2, 40, 40), np.uint8)
    truth[10:20, 10:20] = 1
    found[14:24, 10:20] = 1
    shift = 4 * (3.0 if spacing else 1.0)
    scores = compare(found, truth, 2, Distances(True, shift), spacing)
    assert scores["dice"] == pytest.approx([0.6]) and scores["iou"] == pytest.approx([3 / 7])
    assert scores["hd95"] == pytest.approx([shift]) and scores["surface_dice"] == [1.0]
    near = compare(found, truth, 2, Distances(True, 0.5), spacing)["surface_dice"]
    # Of both outlines of 36 pixels, both sides of the six rows that the squares share.
    assert near == pytest.approx([12 / 36])


def test_scores_of_empty_masks() -> None:
    empty, full = np.zeros((6, 6, 6), np.uint8), np.ones((6, 6, 6), np.uint8)
    assert all(np.isnan(value).all() for value in compare(empty, empty, 2, Distances()).values())
    for one, two in ((empty, full), (full, empty)):
        scores = compare(one, two, 2, Distances())
        assert scores["dice"] == scores["iou"] == scores["surface_dice"] == [0.0]
        assert np.isnan(scores["hd95"]).all()
    assert set(compare(full, full, 2, Distances(False))) == {"dice", "iou"}


def test_volumes_are_in_memory_one_by_one(lungs: Path, tmp_path: Path) -> None:
    records = [Record(tmp_path / f"{n}.nii.gz", f"{n}.nii.gz") for n in range(2)]
    segmenter = load(lungs / "best.safetensors", device="cpu")
    cases = cases_of(records, None, segmenter, ())  # type: ignore[arg-type]
    assert iter(cases) is cases and isinstance(next(cases), ScanCase)
