"""`crossband medical train|evaluate|predict` of the prompted network, from the shipped recipe."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

from crossband.shared import load

from .conftest import ARGUMENTS


def test_the_recipe_from_training_to_masks(
    xrays: Path, weights: Path, medical, tmp_path: Path, capsys
) -> None:
    line = ["--recipe", "kvasir_prompted", "--size", 64, "--network.arguments", *ARGUMENTS]
    line += ["--data.root", xrays, "--data.colours", "false", "--quiet", "--out", tmp_path / "r"]
    assert medical("train", *line, "--dry-run") == 2  # never from random weights
    assert "without --weights its encoders are random" in capsys.readouterr().err
    short = ["--trainer.max_epochs", 1, "--loader.batch_size", 4]
    assert medical("train", *line, *short, "--weights", weights) == 0
    best = tmp_path / "r/best.safetensors"
    assert medical("evaluate", "--weights", best, "--data.root", xrays, "--keep-ids") == 0
    results = json.loads((tmp_path / "r/evaluation/metrics.json").read_text())
    assert 0 <= results["dice"]["value"] <= 1 and "of the masks" in results["protocol"]["boxes"]
    images = sorted((xrays / "images").iterdir())[:2]
    assert medical("predict", *images, "--weights", best, "--out", tmp_path / "m") == 2
    assert "--boxes" in capsys.readouterr().err
    with (tmp_path / "boxes.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "x0", "y0", "x1", "y1"])
        rows.writerows([image.name, 8, 8, 40, 50] for image in images)
    boxes = ["--boxes", tmp_path / "boxes.csv", "--out", tmp_path / "m", "--keep-ids"]
    assert medical("predict", *images, "--weights", best, *boxes) == 0
    segmenter = load(best, device="cpu")
    for image in images:
        pixels = np.asarray(Image.open(image))
        own = segmenter.predict(pixels, np.array([[8.0, 8, 40, 50]]))[0]
        (mask,) = (p for p in (tmp_path / "m").glob("*.png") if image.stem in p.name)
        np.testing.assert_array_equal(np.asarray(Image.open(mask)) > 0, own)


def test_a_run_is_gone_on_with_by_its_folder_alone(
    xrays: Path, weights: Path, medical, tmp_path: Path
) -> None:
    line = ["--recipe", "kvasir_prompted", "--size", 64, "--network.arguments", *ARGUMENTS]
    line += ["--data.root", xrays, "--data.colours", "false", "--quiet", "--weights", weights]
    line += ["--trainer.max_epochs", 1, "--loader.batch_size", 4, "--out", tmp_path / "r"]
    assert medical("train", *line) == 0
    assert medical("train", "--resume", tmp_path / "r", "--quiet") == 0
