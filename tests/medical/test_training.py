"""`crossband medical train`: findings and classes, from data to a checkpoint that is used."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from crossband.medical import networks
from crossband.medical.classification import calibrated, loss_weights
from crossband.medical.config import LossConfig, SourceConfig, TrainConfig
from crossband.medical.data.csv_set import read
from crossband.medical.data.radiographs import read_radiograph
from crossband.medical.data.records import Record
from crossband.medical.data.synthetic import make_synthetic
from crossband.medical.scoring import Readings
from crossband.shared import load
from crossband.shared.checkpoints import read_config
from crossband.shared.errors import ConfigError
from crossband.shared.metrics.calibration import fit_temperature
from crossband.shared.tasks.base import Task

from .conftest import words

FINDINGS = ["Cardiomegaly", "Effusion", "Mass", "Nodule", "Pneumothorax"]


def changed(first: Path, second: Path) -> set[str]:
    """Return the names of the tensors that differ."""
    one, two = load_file(first), load_file(second)
    return {k for k in one.keys() & two.keys() if not torch.equal(one[k], two[k])}


def test_a_run_leaves_what_every_run_leaves(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    wanted = {"config.yaml", "metrics.csv", "metrics.json", "best.safetensors", "last.ckpt"}
    assert wanted | {"report.html"} <= names
    results = json.loads((run / "metrics.json").read_text())
    assert [row["finding"] for row in results["val"]["findings"]] == FINDINGS
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert {"val_auroc", "val_loss", "val_accuracy"} <= set(rows[0]) and len(rows) == 2
    best = max(float(row["val_auroc"]) for row in rows)
    assert results["best"]["val_auroc"] == pytest.approx(best)
    report = (run / "report.html").read_text()
    assert "not a medical device" in report and "TEST" not in report
    assert "http" not in report.replace("http-equiv", "")


def test_scores_of_the_report_are_those_that_chose_the_weights(run: Path) -> None:
    results = json.loads((run / "metrics.json").read_text())
    assert results["val"]["mean_auroc"]["value"] == pytest.approx(results["best"]["val_auroc"])
    assert results["headline"]["mean_auroc"] == results["val"]["mean_auroc"]["value"]


def test_a_checkpoint_says_what_its_users_need(run: Path, xrays: Path) -> None:
    config = read_config(run / "best.safetensors")
    assert config["task"] == "medical classification" and config["classes"] == FINDINGS
    assert config["multilabel"] is True and config["input_size"] == [32, 32]
    assert config["normalisation"] == {"mean": [0.5056] * 3, "std": [0.252] * 3}
    assert config["reading"] == {"resize": 36, "window": [], "colours": False}
    assert "not a medical device" in config["intended_use"]
    protocol = config["protocol"]
    records = read(xrays, SourceConfig(root=[str(xrays)])).records
    counts = {split: [r for r in records if r.split == split] for split in ("train", "val")}
    assert protocol["images"] == {split: len(found) for split, found in counts.items()}
    assert protocol["patients"] == {
        split: len({r.patient for r in found}) for split, found in counts.items()
    }
    assert protocol["weights_chosen_on"] == "validation images" and len(protocol["sha256"]) == 64
    assert set(config["thresholds"]) <= set(FINDINGS) and config["thresholds"]
    results = json.loads((run / "metrics.json").read_text())
    assert results["thresholds"] == config["thresholds"]
    assert config["metrics"]["val_mean_auroc"] == results["val"]["mean_auroc"]["value"]
    for row in results["val"]["findings"]:
        if row["finding"] in config["thresholds"]:  # the point of operation is what was stored
            threshold = config["thresholds"][row["finding"]]
            assert row["operating_point"]["threshold"] == threshold
            sensitivity = row["best_points_here"]["youden"]["sensitivity"]
            assert row["operating_point"]["sensitivity"] == pytest.approx(sensitivity)


def test_patients_and_files_are_not_told(run: Path, xrays: Path) -> None:
    records = read(xrays, SourceConfig(root=[str(xrays)])).records
    texts = [(run / n).read_text() for n in ("report.html", "metrics.json", "metrics.csv")]
    texts.append(json.dumps(read_config(run / "best.safetensors")))
    for record in records:
        for word in (record.path.stem, str(record.patient)):
            assert not any(word in text for text in texts)


def test_temperature_and_thresholds_come_from_validation_images() -> None:
    random = np.random.default_rng(0)
    labels = (random.random((400, 2)) < 0.4).astype(np.float32)
    logits = 3 * (2 * labels - 1 + random.normal(0, 1.5, labels.shape)).astype(np.float32)
    records = [Record(Path(), str(n), labels=tuple(row)) for n, row in enumerate(labels)]
    found = calibrated(Readings(records, logits), False, ("a", "b"), True)
    assert found["temperature"] == pytest.approx(fit_temperature(logits, labels, False))
    assert found["temperature"] > 1.2  # they are too sure
    for k, name in enumerate(("a", "b")):
        chance = 1 / (1 + np.exp(-logits[:, k] / found["temperature"]))

        def youden(limit: float, chance=chance, k=k) -> float:
            said, true = chance >= limit, labels[:, k] == 1
            return float(said[true].mean() - said[~true].mean())

        threshold = found["thresholds"][name]
        assert youden(threshold) == pytest.approx(max(map(youden, chance)))
        assert np.abs(chance - threshold).min() > 1e-6  # no image lies on it
    plain = calibrated(Readings(records, logits), False, ("a", "b"), False)
    assert plain["temperature"] == 1.0


def test_classes_have_a_temperature_and_no_thresholds() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(3, size=500)
    labels = np.eye(3, dtype=np.float32)[truth]
    logits = (4 * (labels + random.normal(0, 0.8, labels.shape))).astype(np.float32)
    records = [Record(Path(), str(n), labels=tuple(row)) for n, row in enumerate(labels)]
    found = calibrated(Readings(records, logits), True, ("a", "b", "c"), True)
    assert found["thresholds"] == {}
    assert found["temperature"] == pytest.approx(fit_temperature(logits, truth, True))

    def loss(temperature: float) -> float:
        scaled = torch.from_numpy(logits) / temperature
        return float(nn.functional.cross_entropy(scaled, torch.from_numpy(truth)))

    best = found["temperature"]
    assert loss(best) < min(loss(best * 0.9), loss(best * 1.1))


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many drawn chests as a small network needs to learn something."""
    return make_synthetic(tmp_path_factory.mktemp("many"), 160, size=64, layout="csv")


def test_a_small_vit_learns_large_hearts(many: Path, medical, tmp_path: Path) -> None:
    more = ["--data.labels", "Cardiomegaly", "--optimizer.lr", "3e-3", "--trainer.max_epochs", 25]
    more += ["--network.arguments", "embed_dim=48", "depth=2", "num_heads=3", "patch_size=8"]
    more += ["--augment.crop_min", 0.8, "--augment.flip", 0, "--augment.resize", 32]
    more += ["--loader.batch_size", 16, "--data.shrink", 32]
    assert medical("train", *words(many, tmp_path / "r", *more)) == 0
    weights = tmp_path / "r/best.safetensors"
    score = ["--weights", weights, "--data.root", many, "--heatmaps", 0, "--quiet"]
    assert medical("evaluate", *score) == 0
    results = json.loads((tmp_path / "r/evaluation/metrics.json").read_text())
    assert results["protocol"]["images"] == 27
    assert results["mean_auroc"]["value"] > 0.9


def test_the_linear_model_on_statistics_learns_the_view(many: Path, medical, tmp_path) -> None:
    data = ["--data.root", many, "--data.target", "view", "--quiet"]
    assert medical("train", "--model", "statistics", *data, "--out", tmp_path / "r") == 0
    best = tmp_path / "r/best.safetensors"
    assert medical("evaluate", "--weights", best, *data) == 0
    results = json.loads((tmp_path / "r/evaluation/metrics.json").read_text())
    assert results["mean_auroc"]["value"] > 0.95 and results["accuracy"]["value"] > 0.9
    assert np.array(results["confusion"]).sum() == results["protocol"]["images"]
    assert (tmp_path / "r/report.html").is_file()
    image = next(iter(sorted((many / "images").iterdir())))
    found = load(best).predict(read_radiograph(image).pixels)
    assert sum(found.values()) == pytest.approx(1) and set(found) == {"AP", "PA"}
    out = tmp_path / "f.csv"
    assert medical("predict", image, "--weights", best, "--out", out, "--quiet") == 0
    (row,) = csv.DictReader(out.open())
    assert float(row["AP"]) == pytest.approx(found["AP"], abs=1e-6)
    assert row["present"] == max(found, key=lambda name: found[name])


def test_classes_exclude_each_other(nih: Path, medical, tmp_path: Path) -> None:
    out = tmp_path / "r"
    more = ["--data.target", "view", "--trainer.max_epochs", 1, "--data.val_fraction", 0.4]
    assert medical("train", *words(nih, out, *more)) == 0
    config = read_config(out / "best.safetensors")
    assert config["classes"] == ["AP", "PA"] and config["multilabel"] is False
    assert config["thresholds"] == {}
    results = json.loads((out / "metrics.json").read_text())["val"]
    assert np.array(results["confusion"]).sum() == results["findings"][0]["images"]
    recalls = [row["sensitivity"] for row in results["per_class"]]
    counts = np.array(results["confusion"])
    assert recalls == pytest.approx((counts.diagonal() / counts.sum(1)).tolist())


def test_selection_on_test_images_is_said(xrays: Path, medical, tmp_path: Path, capsys) -> None:
    out = tmp_path / "r"
    more = [w for w in words(xrays, out, "--select_on", "test") if w != "--quiet"]
    assert medical("train", *more, "--trainer.max_epochs", 1) == 0
    assert "(of the TEST split)" in capsys.readouterr().out
    config = read_config(out / "best.safetensors")
    assert "TEST images" in config["protocol"]["weights_chosen_on"]
    assert "too good" in config["protocol"]["weights_chosen_on"]
    results = json.loads((out / "metrics.json").read_text())
    assert "val" not in results and results["protocol"]["split"] == "test"
    assert "Test images" in (out / "report.html").read_text()
    assert "chosen on these TEST images" in (out / "report.html").read_text()
    weights = ["--weights", out / "best.safetensors", "--data.root", xrays, "--quiet"]
    assert medical("evaluate", *weights, "--out", tmp_path / "e", "--heatmaps", 0) == 0
    results = json.loads((tmp_path / "e/metrics.json").read_text())
    assert "TEST images" in results["protocol"]["weights_chosen_on"]
    assert "TEST images" in (tmp_path / "e/report.html").read_text()


def test_labels_that_are_not_known_teach_nothing(xrays: Path, medical, tmp_path: Path) -> None:
    """The output of a finding that is never known stays as it began."""
    root = tmp_path / "x"
    shutil.copytree(xrays, root)
    rows = list(csv.DictReader((root / "labels.csv").open()))
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows([row | {"Mass": -1} for row in rows])
    more = ["--data.uncertain", "ignore", "--optimizer.lr", "1e-2", "--optimizer.weight_decay", 0]
    assert medical("train", *words(root, tmp_path / "r", *more), "--trainer.max_epochs", 1) == 0
    best = tmp_path / "r/best.safetensors"
    torch.manual_seed(0)
    begun = networks.build(read_config(best)["model"]).state_dict()
    for key in ("head.weight", "head.bias"):
        moved = (load_file(best)[key] - begun[key]).abs().reshape(5, -1).amax(1) > 0
        assert moved.tolist() == [True, True, False, True, True]
    results = json.loads((tmp_path / "r/metrics.json").read_text())
    assert [row["images"] > 0 for row in results["val"]["findings"]] == moved.tolist()


def test_weights_that_balance_findings_and_classes() -> None:
    def records(*labels: tuple[float, ...]) -> list[Record]:
        return [Record(Path(), str(n), labels=row) for n, row in enumerate(labels)]

    config = TrainConfig(loss=LossConfig(balance=1.0))
    some = records((1, 0), (0, 0), (0, float("nan")), (0, 1))  # one in four, one in three
    found = loss_weights(config, some, False, ("a", "b"))["pos_weight"]
    assert found == pytest.approx([3.0, 2.0])
    config.loss.balance = 0.5
    found = loss_weights(config, some, False, ("a", "b"))["pos_weight"]
    assert found == pytest.approx([3**0.5, 2**0.5])
    nobody = records((1, float("nan")), (0, float("nan")))  # knows the second
    found = loss_weights(config, nobody, False, ("a", "b"))["pos_weight"]
    assert found == pytest.approx([1.0, 1.0])
    config.loss.balance = 1.0
    classes = records((1, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    found = loss_weights(config, classes, True, ("a", "b", "c"))["class_weights"]
    share = np.array([0.5, 0.25, 0.25])
    assert np.array(found) * share == pytest.approx([1 / 3] * 3)
    config.loss = LossConfig(pos_weight=[1.0, 2.0, 3.0])
    with pytest.raises(ConfigError, match="3 numbers for 2 outputs"):
        loss_weights(config, some, False, ("a", "b"))
    with pytest.raises(ConfigError, match=r"give --loss\.class_weights"):
        loss_weights(config, classes, True, ("a", "b", "c"))


def test_every_fold_is_trained_once(xrays: Path, medical, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "folds"
    line = words(xrays, out, "--data.labels", "Cardiomegaly", "Effusion")
    line += ["--data.folds", 2, "--data.fold", -1, "--trainer.max_epochs", 2]
    plain = Task.training_step

    def stop(self, batch, index):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return plain(self, batch, index)

    assert medical("train", *line, "--dry-run") == 0 and not out.exists()
    first = ["--data.fold", 0, "--out", out / "fold-0"]
    assert medical("train", *line, *first) == 0  # the last word counts
    kept = (out / "fold-0/best.safetensors").read_bytes()
    monkeypatch.setattr(Task, "training_step", stop)
    assert medical("train", *line) != 0 and not (out / "folds.json").exists()
    monkeypatch.setattr(Task, "training_step", plain)
    assert medical("train", *line) == 0
    assert (out / "fold-0/best.safetensors").read_bytes() == kept
    folds = json.loads((out / "folds.json").read_text())
    assert [row["fold"] for row in folds["folds"]] == [0, 1]
    values = [row["mean_auroc"] for row in folds["folds"]]
    assert folds["summary"]["mean_auroc"]["mean"] == pytest.approx(np.mean(values))
    assert folds["summary"]["mean_auroc"]["std"] == pytest.approx(np.std(values, ddof=1))
    stored = [json.loads((out / f"fold-{n}/metrics.json").read_text()) for n in (0, 1)]
    assert values == [row["headline"]["mean_auroc"] for row in stored]
    assert [len(row["history"]) for row in stored] == [2, 2]  # the second went on, in its epoch


def test_a_stopped_run_goes_on_exactly(run: Path, xrays: Path, medical, tmp_path, monkeypatch):
    plain, calls = Task.training_step, []

    def stop(self, batch, index):
        calls.append(index)
        if self.current_epoch == 1 and index == 1:
            raise KeyboardInterrupt
        return plain(self, batch, index)

    more = ["--optimizer.lr", "2e-3", "--trainer.max_epochs", 2, "--trainer.save_every_n_steps", 1]
    monkeypatch.setattr(Task, "training_step", stop)
    assert medical("train", *words(xrays, tmp_path / "r", *more)) != 0
    monkeypatch.setattr(Task, "training_step", plain)
    assert medical("train", "--resume", tmp_path / "r", "--quiet") == 0
    assert changed(run / "best.safetensors", tmp_path / "r/best.safetensors") == set()
    ours, theirs = (json.loads((f / "metrics.json").read_text()) for f in (run, tmp_path / "r"))
    assert ours["val"] == theirs["val"]


@pytest.mark.parametrize(
    "more",
    [
        ("--trainer.accumulate_grad_batches", 2, "--trainer.ema_decay", 0.5),
        ("--precision", "bf16", "--loss.name", "focal"),
        ("--loss.name", "asymmetric", "--loss.label_smoothing", 0.1, "--network.pool", "token"),
        ("--loss.sampling", "balanced", "--loss.balance", 0.5, "--monitor", "loss"),
        ("--optimizer.layer_decay", 0.5, "--network.drop_path", 0.2, "--statistics", 0.4, 0.2),
    ],
    ids=lambda value: value[0],
)
def test_options_that_change_the_run(
    run: Path, xrays: Path, medical, tmp_path: Path, more: tuple
) -> None:
    short = ["--optimizer.lr", "2e-3", "--trainer.max_epochs", 2]
    assert medical("train", *words(xrays, tmp_path / "r", *short, *more)) == 0
    best = tmp_path / "r/best.safetensors"
    assert changed(run / "best.safetensors", best)
    assert all(v.isfinite().all() for v in load_file(best).values())
    rows = list(csv.DictReader((tmp_path / "r/metrics.csv").open()))
    if "--trainer.accumulate_grad_batches" in more:
        batches = int(list(csv.DictReader((run / "metrics.csv").open()))[0]["step"])
        assert [int(row["step"]) for row in rows] == [-(-batches // 2), 2 * -(-batches // 2)]
    if "--statistics" in more:
        assert read_config(best)["normalisation"]["mean"] == [0.4] * 3


def test_statistics_of_the_weights_are_taken_over(mae: Path, xrays: Path, medical, tmp_path):
    other = load_file(mae)
    from crossband.shared.checkpoints import save_checkpoint

    config = read_config(mae) | {"normalisation": {"mean": [0.3] * 3, "std": [0.1] * 3}}
    path = save_checkpoint(tmp_path / "other.safetensors", other, config)
    more = ["--weights", path, "--trainer.max_epochs", 1]
    assert medical("train", *words(xrays, tmp_path / "r", *more)) == 0
    stored = read_config(tmp_path / "r/best.safetensors")["normalisation"]
    assert stored == {"mean": [0.3] * 3, "std": [0.1] * 3}


def test_json_is_one_object(xrays: Path, medical, tmp_path: Path, capsys) -> None:
    line = [w for w in words(xrays, tmp_path / "r") if w != "--quiet"]
    assert medical("train", *line, "--trainer.max_epochs", 1, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights"].endswith("best.safetensors") and found["headline"]["mean_auroc"]
