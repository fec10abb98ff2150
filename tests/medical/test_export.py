"""Exported files are used like checkpoints, and give the same numbers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossband.medical.data.radiographs import read_radiograph
from crossband.shared import load


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_findings_of_an_export_are_those_of_the_checkpoint(
    run: Path, exported: Path, xrays: Path, medical, tmp_path: Path, kind: str, capsys
) -> None:
    best, path = run / "best.safetensors", exported
    if kind == "onnx":
        for library in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(library, reason="extra export")
        path = tmp_path / "chest.onnx"
        assert medical("export", "--weights", best, "--out", path) == 0
        assert "32 x 32" in capsys.readouterr().out
    tables, scores = [], []
    for weights in (best, path):
        out = tmp_path / weights.suffix[1:]
        data = ["--data.root", xrays, "--heatmaps", 0, "--quiet", "--out", out / "e"]
        assert medical("evaluate", "--weights", weights, *data) == 0
        scores.append(json.loads((out / "e/metrics.json").read_text()))
        line = ["--weights", weights, "--out", out / "f.csv", "--quiet"]
        assert medical("predict", xrays / "images", *line) == 0
        tables.append(list(csv.DictReader((out / "f.csv").open())))
    for one, two in zip(*tables, strict=True):
        assert (one["image"], one["present"]) == (two["image"], two["present"])
        for name in load(best).findings:
            assert float(one[name]) == pytest.approx(float(two[name]), abs=1e-5)
    assert scores[0]["mean_auroc"] == scores[1]["mean_auroc"]
    assert scores[0]["temperature"] == scores[1]["temperature"]
    reader = load(path)
    assert reader.thresholds == load(best).thresholds
    pixels = read_radiograph(sorted((xrays / "images").iterdir())[0]).pixels
    assert reader.predict(pixels) == pytest.approx(load(best).predict(pixels), abs=1e-5)


@pytest.mark.slow
def test_masks_of_an_export_are_those_of_the_checkpoint(
    lungs: Path, xrays: Path, medical, tmp_path: Path
) -> None:
    best, path = lungs / "best.safetensors", tmp_path / "lungs.pt2"
    line = ["--weights", best, "--format", "pt2", "--out", path, "--json"]
    assert medical("export", *line) == 0
    for weights, out in ((best, "a"), (path, "b")):
        line = ["--weights", weights, "--out", tmp_path / out, "--quiet"]
        assert medical("predict", xrays / "images", *line) == 0
    names = sorted(p.name for p in (tmp_path / "a").glob("*.png"))
    assert len(names) == 32 and names == sorted(p.name for p in (tmp_path / "b").glob("*.png"))
    same = [
        (np.asarray(Image.open(tmp_path / "a" / n)) == np.asarray(Image.open(tmp_path / "b" / n)))
        for n in names
    ]
    assert np.mean(same) > 0.999


def test_what_cannot_be_exported_is_one_sentence(
    run: Path, mae: Path, exported: Path, xrays: Path, medical, tmp_path: Path, capsys
) -> None:
    best = run / "best.safetensors"
    linear = ["--model", "statistics", "--data.root", xrays, "--quiet", "--out", tmp_path / "s"]
    assert medical("train", *linear) == 0
    capsys.readouterr()
    for line, reason in (
        (["--weights", best, "--format", "pt2", "--out", tmp_path / "x.onnx"], "ends in .pt2"),
        (["--weights", mae, "--out", tmp_path / "x.onnx"], "of the task 'pre-training'"),
        (["--weights", tmp_path / "none.safetensors"], "does not exist"),
        (["--weights", tmp_path / "s/best.safetensors"], "statistics"),
        (["--weights", tmp_path / "s/best.safetensors", "--format", "monai-bundle"], "statistics"),
    ):
        assert medical("export", *line) == 2, line
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1, (line, error)
    line = ["--weights", exported, "--precision", "bf16", "--out", tmp_path / "f.csv"]
    assert medical("predict", xrays / "images", *line) == 2
    assert "runs on the CPU in 32 bits" in capsys.readouterr().err
    path = tmp_path / "x.pt2"
    path.write_bytes(exported.read_bytes()[:2000])
    line = ["--weights", path, "--out", tmp_path / "f.csv"]
    assert medical("predict", xrays / "images", *line) == 2
    error = capsys.readouterr().err
    assert "damaged" in error and error.count("\n") == 1


def test_an_mlp_head_on_a_network_of_timm_goes_into_exports_and_bundles(
    xrays: Path, medical, tmp_path: Path
) -> None:
    pytest.importorskip("ignite", reason="extra medical")
    from crossband.apps.main import main

    line = ["--model", "timm:resnet10t", "--size", 32, "--optimizer.layer_decay", 1, "--quiet"]
    line += ["--network.arguments", "channels=[8,8,8,8]", "stem_width=8", "--network.head", 8, 4]
    line += ["--data.root", xrays, "--trainer.max_epochs", 1, "--out", tmp_path / "r"]
    assert medical("train", *line) == 0
    best, image = tmp_path / "r/best.safetensors", sorted((xrays / "images").iterdir())[0]
    pixels = read_radiograph(image).pixels
    wanted = load(best, device="cpu").predict(pixels)
    assert medical("export", "--weights", best, "--format", "pt2") == 0
    assert load(best.with_suffix(".pt2")).predict(pixels) == pytest.approx(wanted, abs=1e-5)
    assert medical("export", "--weights", best, "--format", "monai-bundle") == 0
    words = ["bundle", "run", tmp_path / "r/bundle", image, "--out", tmp_path / "b"]
    assert main([*map(str, words), "--device", "cpu"]) == 0
    (row,) = csv.DictReader((tmp_path / "b/predictions.csv").open())
    for name, value in wanted.items():
        assert float(row[name]) == pytest.approx(value, abs=1e-5)
