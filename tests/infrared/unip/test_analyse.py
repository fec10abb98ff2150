"""`crossband infrared analyse` and `compress`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossband.shared.checkpoints import read_config


@pytest.mark.parametrize("size", [64, 80])
def test_layers_are_measured(teacher: Path, frames: Path, infrared, tmp_path, capsys, size) -> None:
    words = ["--weights", teacher, "--data.root", frames, "--size", size, "--images", 5]
    words += ["--batch_size", 2, "--pictures", 1, "--out", tmp_path / "a"]
    assert infrared("analyse", *words) == 0
    printed = capsys.readouterr().out
    assert "is nearest to an NMI of 0.09" in printed and "distance_px" in printed
    found = json.loads((tmp_path / "a/metrics.json").read_text())
    assert [row["layer"] for row in found["layers"]] == [1, 2, 3, 4]
    gaps = [abs(row["nmi"] - 0.09) for row in found["layers"]]
    assert found["chosen_layer"] == gaps.index(min(gaps)) + 1
    assert found["layers"][-1]["cka_to_last"] == pytest.approx(1)
    assert found["protocol"]["images"] == 5
    report = (tmp_path / "a/report.html").read_text()
    assert report.count("data:image/png") == 4 and "http" not in report.replace("http-equiv", "")


def test_json_is_all_that_is_printed(
    teacher: Path, frames: Path, infrared, tmp_path, capsys
) -> None:
    words = ["--weights", teacher, "--data.root", frames, "--size", 64, "--pictures", 0, "--json"]
    assert infrared("analyse", *words, "--nmi_target", 10, "--out", tmp_path / "a") == 0
    found = json.loads(capsys.readouterr().out)
    curve = [row["nmi"] for row in found["layers"]]
    assert found["chosen_layer"] == curve.index(max(curve)) + 1


def test_wrong_options_get_a_sentence(
    teacher: Path, frames: Path, infrared, tmp_path, capsys
) -> None:
    ours = ["--weights", teacher, "--data.root", frames]
    for verb, words, reason in (
        ("analyse", ["--weights", teacher], "give --data.root"),
        ("analyse", ["--weights", tmp_path / "no.pth", "--data.root", frames], "does not exist"),
        ("analyse", [*ours, "--global_below", 0.5], "must be the smaller"),
        ("analyse", [*ours, "--queries", 0.5], "pairs of row and column"),
        ("analyse", [*ours, "--size", 0], "--size 0"),
        ("analyse", [*ours, "--batch_size", 0], "--batch_size 0"),
        ("compress", [*ours, "--ratio", 0.5], "no less than 1"),
        ("compress", [*ours, "--rank", 96], "would not be smaller"),
        ("compress", [*ours, "--targets", "head"], "matches head"),
        ("compress", [*ours, "--out", "small.pth"], ".safetensors"),
    ):
        if "--out" not in words:
            words = [*words, "--out", tmp_path / ("x.safetensors" if verb == "compress" else "x")]
        assert infrared(verb, *words) == 2, words
        error = capsys.readouterr().err
        assert reason in error and "Traceback" not in error, error


def test_a_grey_network_gets_one_channel(frames: Path, infrared, tmp_path: Path) -> None:
    words = ["--recipe", "tiny_mae", "--data.root", frames, "--trainer.max_epochs", 1, "--quiet"]
    assert infrared("pretrain", *words, "--arguments", "in_chans=1", "--out", tmp_path / "g") == 0
    grey = tmp_path / "g/best.safetensors"
    assert read_config(grey)["normalisation"] == {"mean": [0.3801], "std": [0.1871]}
    words = ["--weights", grey, "--data.root", frames, "--size", 64, "--out", tmp_path / "a"]
    assert infrared("analyse", *words, "--pictures", 0, "--quiet") == 0
