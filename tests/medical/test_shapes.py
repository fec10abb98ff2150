"""Images in colours, masks of several values, and sliding windows, by commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossband.shared import load

from .test_volumes import NETWORK

VALUES = (0, 128, 255)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red discs and green squares of 48 x 60, which only their colour tells apart in grey."""
    root, random = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for part in ("images", "masks"):
        (root / part).mkdir()
    rows, columns = np.mgrid[:48, :60]
    for number in range(14):
        y, x = random.integers(12, 36), random.integers(12, 24)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < 81
        square = (abs(rows - y) < 8) & (abs(columns - x - 24) < 8)
        pixels = random.integers(0, 40, (48, 60, 3)).astype(np.uint8)
        pixels[disc] = (210, 30, 30)
        pixels[square] = (30, 118, 30)
        mask = np.select([disc, square], VALUES[1:], 0).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"images/{number:02}.png")
        Image.fromarray(mask).save(root / f"masks/{number:02}.png")
    return root


@pytest.mark.parametrize("sliding", [False, True])
def test_three_classes_in_colours(shapes: Path, medical, tmp_path: Path, sliding: bool) -> None:
    from crossband.apps.main import main

    line = ["--task", "segmentation", *NETWORK, "--data.root", shapes, "--data.colours", "--quiet"]
    line += ["--data.classes", "background", "disc", "square", "--data.mask_values", *VALUES]
    line += ["--loss.name", "ce_dice_all", "--optimizer.lr", "1e-2", "--trainer.max_epochs", 12]
    line += ["--loader.batch_size", 4, "--out", tmp_path / "r", *(["--sliding"] * sliding)]
    assert medical("train", *line) == 0
    best = ["--weights", tmp_path / "r/best.safetensors"]
    assert medical("evaluate", *best, "--data.root", shapes, "--keep-ids") == 0
    results = json.loads((tmp_path / "r/evaluation/metrics.json").read_text())
    assert set(results["classes"]) == {"disc", "square"} and results["dice"]["value"] > 0.3
    assert medical("predict", shapes / "images", *best, "--out", tmp_path / "m", "--keep-ids") == 0
    segmenter = load(best[1], device="cpu")
    for row in results["rows"]:
        stem = Path(row["image"]).stem
        (path,) = (p for p in (tmp_path / "m").glob("*.png") if p.stem.endswith(stem))
        found = np.asarray(Image.open(path))
        pixels = np.asarray(Image.open(shapes / f"images/{stem}.png"))
        np.testing.assert_array_equal(found, segmenter.predict(pixels))
        truth = np.asarray(Image.open(shapes / f"masks/{stem}.png"))
        for number, name in enumerate(("disc", "square"), start=1):
            one, two = found == number, truth == VALUES[number]
            dice = 2 * (one & two).sum() / (one.sum() + two.sum())
            assert row["dice"][name] == pytest.approx(dice)
    bundle = tmp_path / "bundle"
    assert medical("export", *best, "--format", "monai-bundle", "--out", bundle) == 0
    image = sorted((shapes / "images").iterdir())[0]
    run = ["bundle", "run", str(bundle), str(image), "--out", str(tmp_path / "b")]
    assert main([*run, "--device", "cpu"]) == 0
    (theirs,) = (tmp_path / "b").glob("*.png")
    own = segmenter.predict(np.asarray(Image.open(image)))
    assert (np.asarray(Image.open(theirs)) != own).mean() < 2e-3


def test_a_value_that_is_no_class_is_named(shapes: Path, medical, tmp_path: Path, capsys) -> None:
    line = ["--task", "segmentation", *NETWORK, "--data.root", shapes, "--data.colours"]
    line += ["--data.classes", "background", "disc", "square", "--data.mask_values", 0, 1, 255]
    assert medical("train", *line, "--out", tmp_path / "r") == 2
    assert "the value 128 that --data.mask_values" in capsys.readouterr().err
