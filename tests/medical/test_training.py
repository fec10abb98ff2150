"""`crossband medical train`: findings and classes, from data to a checkpoint that is used."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from crossband.medical import networks
from crossband.medical.classification import calibrated, loss_weights
from crossband.medical.cli import DOMAIN
from crossband.medical.config import LossConfig, SourceConfig, TrainConfig
from crossband.medical.data.csv_set import read
from crossband.medical.data.radiographs import read_radiograph
from crossband.medical.data.records import Record
from crossband.medical.data.synthetic import make_synthetic
from crossband.medical.scoring import Readings
from crossband.shared import load
from crossband.shared.checkpoints import read_config
from crossband.shared.cli.parser import parse, recipes_of
from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.metrics.calibration import fit_temperature
from crossband.shared.tasks.base import Task

from .conftest import TINY

FINDINGS = ["Cardiomegaly", "Effusion", "Mass", "Nodule", "Pneumothorax"]


def words(root: Path, out: Path, *more: object) -> list[object]:
    return [*TINY, "--data.root", root, "--out", out, "--quiet", *more]


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
    assert config["reading"] == {"resize": 36, "window": []}
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
    ("tuning", "trained", "part"),
    [
        (("linear",), ("head.",), 1 / 10),
        (("lora", "--tuner.rank", 2), ("head.", "fc_norm.", "lora_"), 1 / 5),
        (("dvpt", "--tuner.prompts", 4, "--tuner.rank", 2), ("head.", "fc_norm.", "!"), 1 / 2),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_tuning_trains_what_it_says(
    mae: Path, xrays: Path, medical, tmp_path: Path, capsys, tuning, trained, part
) -> None:
    base = shutil.copy(mae, tmp_path / "mae.safetensors")
    out = tmp_path / "r"
    more = ["--tuning", *tuning, "--weights", base, "--optimizer.lr", "1e-2"]
    assert medical("train", *words(xrays, out, *more), "--trainer.max_epochs", 2) == 0
    best, tuned = out / "best.safetensors", out / "tuned.safetensors"
    # What came with the base file is as it was; what moved is the head and what was added.
    before, whole = load_file(base), load_file(best)
    kept = {k: k.replace(".layer.", ".") for k in whole if k in before}
    assert len(kept) >= 28 - 4 and all(torch.equal(whole[k], before[k]) for k in kept)
    moved = load_file(tuned).keys()
    assert not moved & before.keys() and "head.weight" in moved
    if "!" not in trained:
        assert all(any(word in key for word in trained) for key in moved)
    assert tuned.stat().st_size < best.stat().st_size
    numbers = sum(v.numel() for v in load_file(tuned).values())
    assert numbers < part * sum(v.numel() for v in whole.values())
    # The part and its base give what the whole gives.
    image = read_radiograph(sorted((xrays / "images").iterdir())[0]).pixels
    assert load(tuned).predict(image) == pytest.approx(load(best).predict(image), abs=1e-7)
    assert load(tuned).thresholds == load(best).thresholds
    capsys.readouterr()
    bundle = ["--format", "monai-bundle", "--out", tmp_path / "bundle"]
    assert medical("export", "--weights", tuned, *bundle) == 2
    assert "give best.safetensors" in capsys.readouterr().err
    moved_on = tmp_path / "elsewhere"
    shutil.copytree(out, moved_on)
    shutil.move(base, moved_on / "mae.safetensors")  # beside the part it is found too
    there = load(moved_on / "tuned.safetensors").predict(image)
    assert there == pytest.approx(load(best).predict(image), abs=1e-7)
    with pytest.raises(CheckpointError, match="is not there"):
        load(tuned)
    other = {k: v + 1e-3 for k, v in before.items()}
    save_file(other, base)
    with pytest.raises(CheckpointError, match="has changed since"):
        load(tuned)
    line = ["--weights", tuned, "--out", tmp_path / "f.csv"]
    assert medical("predict", xrays / "images", *line) == 2
    assert "has changed since" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["densenet121", "resnet50"])
def test_the_head_of_a_cnn_alone(model: str) -> None:
    """Statistics of batches stay too, so that the base is as it was."""
    pytest.importorskip("monai", reason="extra medical")
    config = TrainConfig(model=model, tuning="linear")
    description = networks.describe(config, 3)
    network = networks.build(description)
    networks.tune(network, description)
    head = networks.head_of(network)
    learned = {name for name, p in network.named_parameters() if p.requires_grad}
    assert learned == {f"{head}.weight", f"{head}.bias"}
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network.train()(torch.randn(2, 3, 64, 64)).sum().backward()
    after = network.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


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


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--model", "chest_mae_vit_smal"), "Did you mean"),
        (("--model", "unet"), "gives masks: take --task segmentation"),
        (("--model", "chest_mae_vit_tiny_upernet"), "gives masks: take --task segmentation"),
        (("--model", "densenet121", "--optimizer.layer_decay", 0.55), "is for plain ViTs"),
        (("--tuning", "lora"), "give pre-trained weights"),
        (("--loss.name", "ce"), "does not fit findings"),
        (("--loss.name", "ce_dice"), "are for masks"),
        (("--loss.class_weights", 1, 2), "give --loss.pos_weight"),
        (("--loss.pos_weight", 1, 2), "2 numbers for 5 outputs"),
        (("--loss.balance", -1), "a power above 0"),
        (("--data.labels", "Cardiomegally"), "Did you mean 'Cardiomegaly'"),
        (("--data.target", "weight"), "weight"),
        (("--data.val_fraction", 0.9, "--data.test_fraction", 0.2), "below 1"),
        (("--statistics", 0.5), "give mean and deviation"),
        (("--weights", "nowhere.pth"), "nowhere.pth does not exist"),
        (("--data.folds", 2, "--data.fold", 5), "a fold from 0"),
        (("--augment.resize", 16), "less than the crop of 32"),
        (("--augment.crop_min", 0), "between 0 and 1"),
        (("--augment.auto_augment", "hard"), "not a RandAugment policy"),
        (("--monitor", "dice"), "are for masks"),
        (("--model", "statistics", "--tuning", "linear"), "takes no --weights"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_options_that_cannot_work_are_one_sentence(
    xrays: Path, medical, tmp_path: Path, capsys, more: tuple, message: str
) -> None:
    assert medical("train", *words(xrays, tmp_path / "r"), *more, "--dry-run") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
    assert not (tmp_path / "r").exists()


def test_weights_of_another_network_are_refused(
    run: Path, lungs: Path, xrays: Path, medical, tmp_path: Path, capsys
) -> None:
    line = words(xrays, tmp_path / "r", "--dry-run")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    assert medical("train", *line, "--weights", tmp_path / "other.pth") == 2
    assert "other.pth" in capsys.readouterr().err
    wide = ["--network.arguments", "embed_dim=48", "depth=2", "num_heads=2", "patch_size=8"]
    assert medical("train", *line, "--weights", run / "best.safetensors", *wide) == 2
    error = capsys.readouterr().err
    assert str(run / "best.safetensors") in error and error.count("\n") == 1


@pytest.mark.parametrize("name", sorted(recipes_of(DOMAIN.verbs["train"])))
def test_recipes_read_their_first_batch(name: str, nih: Path, medical, tmp_path: Path) -> None:
    config = parse(DOMAIN.verbs["train"], ["--recipe", name])
    root = nih
    if config.task == "segmentation":
        root = make_synthetic(tmp_path / "x", 12, size=64, layout="csv")
    more = ["--loader.num_workers", 0, "--loader.batch_size", 2, "--data.val_fraction", 0.3]
    more += ["--dry-run", "--quiet"]
    if config.data.labels:  # CheXpert's names
        more += ["--data.labels", "Cardiomegaly", "Edema"]
    if config.monitor == "accuracy":
        more += ["--data.target", "view"]
    line = ["--recipe", name, "--data.root", root, *more, "--out", tmp_path / "r"]
    assert medical("train", *line) == 0 and not (tmp_path / "r").exists()


def test_recipes_are_the_published_ones() -> None:
    verb = DOMAIN.verbs["train"]
    for name, rate in (("nih", 0.55), ("nih_base", 0.55), ("nih_cnn", 1.0), ("chexpert", 0.55)):
        config = parse(verb, ["--recipe", name])
        batch = 8 * config.loader.batch_size  # on the paper's eight devices
        assert batch == 1024 and config.optimizer.lr == pytest.approx(2.5e-4 * batch / 256)
        assert config.optimizer.layer_decay == rate and config.trainer.max_epochs == 75
        warmup = config.schedule.warmup_fraction * config.trainer.max_epochs
        assert warmup == pytest.approx(5, rel=1e-2)
        assert config.augment.auto_augment == "rand-m6-mstd0.5-inc1"
        assert config.select_on == "val"
