"""`crossband low-light evaluate`, on pairs and on dark photographs alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crossband.apps.low_light.data.photos import fingerprint
from crossband.apps.low_light.data.synthetic import make_synthetic
from crossband.apps.low_light.model import TML
from crossband.apps.main import main
from crossband.shared.checkpoints import save_checkpoint


def evaluate(*words: object) -> int:
    return main(["low-light", "evaluate", "--device", "cpu", *map(str, words)])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "pairs"
    make_synthetic(root, longest=200)
    return root


@pytest.fixture(scope="module")
def params(tmp_path_factory) -> Path:
    """Parameters of the right shape; their values do not matter here."""
    path = tmp_path_factory.mktemp("niqe") / "own.npz"
    np.savez(path, mu_pris_param=np.zeros((1, 36)), cov_pris_param=np.eye(36))
    return path


def results(out: Path) -> dict:
    return json.loads((out / "metrics.json").read_text())


def test_pairs_give_a_table_with_its_protocol(pairs: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "e"
    rivals = ["--rivals", "input", "gamma"]
    assert evaluate("--model", "clahe", "--data.root", pairs, *rivals, "--out", out) == 0
    found = results(out)
    assert [row["method"] for row in found["scores"]] == ["clahe", "input", "gamma"]
    protocol = found["protocol"]
    assert protocol["images"] == 5 and protocol["gt_mean"] is False
    assert set(protocol["metrics"]) == {"psnr", "ssim"}
    assert any("niqe is unavailable" in note for note in protocol["notes"])
    low, high = (np.asarray(Image.open(pairs / side / "coffee.png"), float) for side in (
        "low", "high",
    ))  # fmt: skip
    by_hand = 10 * np.log10(255**2 / np.mean((low - high) ** 2))
    row = next(r for r in found["images"] if r["image"] == "low/coffee.png")
    assert row["input"]["psnr"] == pytest.approx(by_hand, abs=1e-6)
    mean = np.mean([r["input"]["psnr"] for r in found["images"]])
    assert found["scores"][1]["psnr"] == pytest.approx(mean)
    report = (out / "report.html").read_text()
    assert report.count("data:image/jpeg") == 5 and "no GT-mean" in report
    assert "no GT-mean" in capsys.readouterr().out


def test_gt_mean_is_a_flag_and_is_said(pairs: Path, tmp_path: Path) -> None:
    words = ["--model", "gamma", "--data.root", pairs]
    evaluate(*words, "--out", tmp_path / "a")
    evaluate(*words, "--gt-mean", "--out", tmp_path / "b")
    plain, helped = results(tmp_path / "a"), results(tmp_path / "b")
    assert helped["protocol"]["gt_mean"] is True
    assert helped["scores"][0]["psnr"] > plain["scores"][0]["psnr"]
    assert "GT-mean" in (tmp_path / "b/report.html").read_text()


def test_dark_photographs_alone_are_scored_by_both_variants(pairs, params, tmp_path) -> None:
    words = ["--model", "gamma", "--data.root", pairs / "low", "--niqe_params", params]
    assert evaluate(*words, "--out", tmp_path / "e") == 0
    found = results(tmp_path / "e")
    assert list(found["protocol"]["metrics"]) == ["niqe_basicsr", "niqe_matlab"]
    # 200 x 133 pixels hold two blocks of 96; a square of 200 holds four.
    assert all(row["gamma"]["niqe_matlab"] > 0 for row in found["images"])


def test_too_small_for_niqe_is_an_empty_cell_not_a_number(params, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 60, (50, 50, 3), np.uint8)).save(
        tmp_path / "small.png"
    )
    words = ["--model", "gamma", "--data.root", tmp_path / "small.png", "--niqe_params", params]
    assert evaluate(*words, "--out", tmp_path / "e") == 0
    assert results(tmp_path / "e")["scores"][0]["niqe_basicsr"] is None


def test_scenes_that_were_trained_on_are_named(pairs: Path, tmp_path: Path) -> None:
    arguments = {"height": 80, "width": 80, "stem": 2, "enhancer_stem": 0}
    torch.manual_seed(0)
    mark = fingerprint(np.asarray(Image.open(pairs / "high/rocket.png")))
    facts = {"task": "enhancement", "model": {"name": "tml", "arguments": arguments}}
    facts["protocol"] = {"fingerprints": [mark]}
    path = save_checkpoint(tmp_path / "w.safetensors", TML(**arguments).state_dict(), facts)
    assert evaluate("--weights", path, "--data.root", pairs) == 0
    notes = results(tmp_path / "evaluation")["protocol"]["notes"]
    assert any("1 of the 5 scenes" in note and "rocket" in note for note in notes)


def test_a_broken_file_is_left_out_and_counted(pairs: Path, tmp_path: Path, capsys) -> None:
    for side in ("low", "high"):
        folder = tmp_path / "data" / side
        folder.mkdir(parents=True)
        for name in ("coffee.png", "rocket.png"):
            (folder / name).write_bytes((pairs / side / name).read_bytes())
    broken = tmp_path / "data/low/rocket.png"
    broken.write_bytes(broken.read_bytes()[:3000])  # its header still tells the size
    words = ["--model", "gamma", "--data.root", tmp_path / "data", "--out", tmp_path / "e"]
    assert evaluate(*words) == 3
    assert "left out" in capsys.readouterr().out
    assert results(tmp_path / "e")["protocol"]["images"] == 1


def test_what_cannot_be_scored_is_refused(pairs: Path, tmp_path: Path, capsys) -> None:
    gamma = ["--model", "gamma", "--out", tmp_path / "e"]
    for words, reason in (
        (["--data.root", pairs], "--weights is missing"),
        ([*gamma], "--data.root is missing"),
        ([*gamma, "--data.root", pairs / "low"], "niqe is unavailable"),
        ([*gamma, "--data.root", pairs / "low", "--metrics", "psnr"], "no well-lit partners"),
        ([*gamma, "--data.root", pairs, "--metrics", "niqe"], "niqe is unavailable"),
        ([*gamma, "--data.root", pairs, "--metrics", "lpips"], "lpips is unavailable"),
        ([*gamma, "--data.root", pairs, "--rivals", "gamma"], "one name"),
        ([*gamma, "--data.root", pairs, "--rivals", "gama"], "'gamma'"),
        ([*gamma, "--data.low", pairs / "low"], "belong together"),
        ([*gamma, "--data.root", pairs, "--niqe_params", pairs], "do not exist"),
        ([*gamma, "--data.root", tmp_path / "none"], "does not exist"),
    ):
        assert evaluate(*words) == 2, words
        error = capsys.readouterr().err
        assert reason in error and "Traceback" not in error, error
