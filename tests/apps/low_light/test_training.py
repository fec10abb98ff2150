"""`crossband low-light train`, from photographs to a checkpoint that predicts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from crossband.apps.low_light.data.photos import fingerprint
from crossband.apps.low_light.data.synthetic import embedded_photos, make_synthetic
from crossband.apps.low_light.model import UGDC, normalise
from crossband.apps.low_light.training import Prepare, load_stage
from crossband.apps.main import main
from crossband.shared import load
from crossband.shared.checkpoints import read_config

SMALL = ["--size", "80", "80", "--stem", "2", "--enhancer_stem", "2", "--troublemaker_stem", "2"]
QUICK = ["--loader.batch_size", "4", "--trainer.max_epochs", "2", "--data.repeats", "2"]


def train(*words: object) -> int:
    return main(["low-light", "train", "--device", "cpu", *map(str, words)])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "pairs"
    make_synthetic(root, longest=120)
    return root


@pytest.fixture(scope="module")
def three_stages(pairs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train(*SMALL, *QUICK, "--data.paired", pairs, "--out", out) == 0
    return out


def test_three_stages_leave_one_checkpoint_and_a_report(three_stages: Path) -> None:
    config = read_config(three_stages / "best.safetensors")
    assert config["model"]["name"] == "tml" and config["model"]["arguments"]["stem"] == 2
    assert list(config["stages"]) == ["troublemaker", "predictor", "enhancer"]
    assert len(config["protocol"]["fingerprints"]) == 4
    assert 0 < config["darkest_light"] < 1
    for stage in config["stages"]:
        assert (three_stages / stage / "metrics.csv").is_file()
    results = json.loads((three_stages / "metrics.json").read_text())
    assert [row["method"] for row in results["scores"]][:2] == ["this run", "input"]
    report = (three_stages / "report.html").read_text()
    assert report.count("data:image/") >= 4 and "http" not in report.replace("http-equiv", "")
    image = np.asarray(Image.open(embedded_photos()[0]).convert("RGB"))[:100, :130]
    assert load(three_stages / "best.safetensors").predict(image).shape == image.shape


def test_later_stages_leave_the_earlier_networks_alone(three_stages: Path) -> None:
    pair = load_file(three_stages / "best.safetensors")
    for part, stage in (("pm", "predictor"), ("em", "enhancer")):
        alone = load_file(three_stages / stage / "best.safetensors")
        assert all(torch.equal(pair[f"{part}.{key}"], value) for key, value in alone.items())


def test_stages_can_be_trained_one_by_one(three_stages, pairs, tmp_path, capsys) -> None:
    words = [*SMALL, *QUICK, "--data.paired", pairs, "--trainer.max_epochs", 1]
    assert train(*words, "--stage", "predictor", "--out", tmp_path / "p") == 2
    assert "needs the troublemaker: give --troublemaker" in capsys.readouterr().err
    dark = three_stages / "troublemaker/best.safetensors"
    words += ["--troublemaker", dark]
    assert train(*words, "--stage", "predictor", "--out", tmp_path / "p") == 0
    assert read_config(tmp_path / "p/best.safetensors")["model"]["arguments"]["enhancer_stem"] == 0
    words += ["--predictor", tmp_path / "p/best.safetensors"]
    assert train(*words, "--stage", "enhancer", "--out", tmp_path / "e") == 0
    both = load_file(tmp_path / "e/best.safetensors")
    first = load_file(tmp_path / "p/best.safetensors")
    assert all(torch.equal(both[key], value) for key, value in first.items())
    capsys.readouterr()
    image = tmp_path / "a.png"
    Image.new("RGB", (20, 20)).save(image)
    words = ["low-light", "predict", image, "--weights", dark, "--out", tmp_path / "o"]
    assert main([str(word) for word in words]) == 2
    assert "troublemaker alone, which darkens" in capsys.readouterr().err


def test_inputs_and_targets_of_the_stages_are_the_papers() -> None:
    bright, dark = torch.rand(2, 3, 80, 80), torch.rand(2, 3, 80, 80)
    predictor = UGDC(80, 80, 2).eval()
    made = Prepare("troublemaker", lambda x: x, None)({"image": dark, "target": bright})
    torch.testing.assert_close(made["image"], normalise(bright))
    torch.testing.assert_close(made["target"], normalise(dark))
    made = Prepare("predictor", lambda x: normalise(x / 4), None)({"target": bright})
    torch.testing.assert_close(made["image"], normalise(bright / 4))
    torch.testing.assert_close(made["target"], normalise(bright))
    made = Prepare("enhancer", lambda x: normalise(x / 4), predictor)({"target": bright})
    torch.testing.assert_close(made["image"], predictor(normalise(bright / 4)))


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch, capsys) -> None:
    """Stopped in the second stage; the first is not trained again."""
    from crossband.shared.tasks.base import Task

    words = [*SMALL, "--dimming", "camera", "--loader.batch_size", 2, "--trainer.max_epochs", 2]
    words += ["--data.root", *embedded_photos(), "--data.longest", 100]
    assert train(*words, "--out", tmp_path / "whole") == 0
    plain, calls = Task.training_step, []

    def stop(self, batch, index):
        calls.append(index)
        if len(calls) == 7:  # two steps an epoch: in the second epoch of the enhancer
            raise KeyboardInterrupt
        return plain(self, batch, index)

    monkeypatch.setattr(Task, "training_step", stop)
    assert train(*words, "--out", tmp_path / "cut") != 0
    monkeypatch.setattr(Task, "training_step", plain)
    steps: list[int] = []
    monkeypatch.setattr(
        Task, "training_step", lambda self, b, i: steps.append(i) or plain(self, b, i)
    )
    assert train("--resume", tmp_path / "cut") == 0
    assert len(steps) <= 4
    a, b = (load_file(tmp_path / name / "best.safetensors") for name in ("whole", "cut"))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_network_learns_to_brighten(tmp_path: Path) -> None:
    """Two hundred small steps on four photographs help on the fifth."""
    words = ["--size", 80, 80, "--stem", 4, "--enhancer_stem", 0, "--dimming", "camera"]
    words += ["--data.root", *embedded_photos(), "--data.longest", 200, "--data.repeats", 15]
    words += ["--loader.batch_size", 4, "--trainer.max_epochs", 14, "--optimizer.lr", 5e-3]
    assert train(*words, "--drop_path", 0.0, "--out", tmp_path / "run") == 0
    rows = json.loads((tmp_path / "run/metrics.json").read_text())["scores"]
    scores = {row["method"]: row["psnr"] for row in rows}
    assert scores["this run"] > scores["input"] + 2


def test_a_stage_takes_the_authors_file(tmp_path: Path) -> None:
    network = UGDC(400, 640, 2)
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "Pred.pth.tar")
    loaded = load_stage(tmp_path / "Pred.pth.tar", "predictor")
    assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.training
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_wrong_options_get_a_sentence(pairs: Path, tmp_path: Path, capsys) -> None:
    for words, reason in (
        ([], "nothing to train on"),
        (["--data.root", pairs / "high"], "learns from pairs: give --data.paired"),
        (["--data.paired", tmp_path], "no pairs there"),
        (["--data.paired", pairs, "--size", "90", "80"], "multiples of 80"),
        (["--data.paired", pairs, "--size", "80", "80", "80"], "give height and width"),
        (["--data.paired", pairs, "--stages", "{predictr: {}}"], "'predictor'"),
        (["--data.paired", pairs, "--stages", "{predictor: {epochs: 1}}"], "no option 'epochs'"),
        (["--data.paired", pairs, "--data.val_fraction", "0.99"], "leaves none"),
        (["--data.paired", pairs, "--dimming", "camera", "--camera", "fone"], "'phone'"),
        (["--resume", tmp_path], "there is no run there"),
        (
            ["--data.root", pairs / "high", "--data.val", pairs / "high", "--dimming", "camera"],
            "nothing is left to train on",
        ),
    ):
        assert train(*words, "--dry-run", "--out", tmp_path / "x") == 2, words
        error = capsys.readouterr().err
        assert reason in error and "Traceback" not in error, error
    assert not (tmp_path / "x").exists()


def test_a_dry_run_writes_nothing(pairs: Path, tmp_path: Path, capsys) -> None:
    words = [*SMALL, *QUICK, "--data.paired", pairs, "--out", tmp_path / "x", "--dry-run"]
    assert train(*words) == 0
    assert "nothing was written" in capsys.readouterr().out and not (tmp_path / "x").exists()


def test_a_broken_file_of_a_pair_takes_its_partner_with_it(pairs, tmp_path, capsys) -> None:
    root = tmp_path / "pairs"
    shutil.copytree(pairs, root)
    broken = root / "low/rocket.png"
    broken.write_bytes(broken.read_bytes()[:3000])
    words = [*SMALL, *QUICK, "--data.paired", root, "--out", tmp_path / "r", "--stage"]
    assert train(*words, "troublemaker", "--trainer.max_epochs", 1) == 0
    assert "left out" in capsys.readouterr().out
    protocol = read_config(tmp_path / "r/best.safetensors")["protocol"]
    assert protocol["pairs"] == {"train": 3, "val": 1}


def test_broken_photographs_are_left_out(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for n, path in enumerate(embedded_photos()[:3]):
        Image.open(path).convert("RGB").resize((120, 100)).save(folder / f"{n}.png")
    (folder / "3.png").write_bytes((folder / "0.png").read_bytes()[:500])
    words = [*SMALL, *QUICK, "--dimming", "camera", "--data.root", folder, "--out", tmp_path / "r"]
    assert train(*words, "--data.val", folder / "2.png", "--trainer.max_epochs", 1) == 0
    assert "left out" in capsys.readouterr().out
    marks = read_config(tmp_path / "r/best.safetensors")["protocol"]["fingerprints"]
    wanted = [fingerprint(np.asarray(Image.open(folder / f"{n}.png"))) for n in (0, 1)]
    assert sorted(marks) == sorted(wanted)
