"""`crossband medical evaluate`: the scores are those of what it writes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from crossband.medical.config import SourceConfig
from crossband.medical.data.csv_set import read
from crossband.medical.data.radiographs import read_radiograph
from crossband.medical.data.records import Record
from crossband.medical.data.synthetic import make_synthetic
from crossband.shared import load
from crossband.shared.checkpoints import load_checkpoint, save_checkpoint
from crossband.shared.errors import ConfigError

from .conftest import TINY

FINDINGS = ("Cardiomegaly", "Effusion", "Mass", "Nodule", "Pneumothorax")


@pytest.fixture(scope="module")
def evaluated(run: Path, xrays: Path, medical, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated")
    line = ["--weights", run / "best.safetensors", "--data.root", xrays, "--quiet"]
    assert medical("evaluate", *line, "--data.split", "train", "--out", out) == 0
    return out


def records_of(root: Path, split: str) -> list[Record]:
    found = read(root, SourceConfig(root=[str(root)])).records
    return [record for record in found if record.split == split]


def predictions(out: Path) -> tuple[list[dict[str, str]], np.ndarray, np.ndarray]:
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    label, chance = (
        np.array([[float(row[f"{word} {name}"]) for name in FINDINGS] for row in rows])
        for word in ("label", "probability")
    )
    return rows, label, chance


def test_scores_are_scikit_learns_on_the_predictions(evaluated: Path) -> None:
    results = json.loads((evaluated / "metrics.json").read_text())
    _, label, chance = predictions(evaluated)
    areas = []
    for k, row in enumerate(results["findings"]):
        assert row["finding"] == FINDINGS[k] and row["positives"] == label[:, k].sum()
        assert 0 < row["positives"] < row["images"] == len(label)
        areas.append(roc_auc_score(label[:, k], chance[:, k]))
        assert row["auroc"]["value"] == pytest.approx(areas[-1], abs=1e-9)
        precision = average_precision_score(label[:, k], chance[:, k])
        assert row["auprc"]["value"] == pytest.approx(precision, abs=1e-9)
        squares = brier_score_loss(label[:, k], chance[:, k])
        assert row["brier"] == pytest.approx(squares, abs=1e-5)
        assert row["auroc"]["low"] <= row["auroc"]["value"] <= row["auroc"]["high"]
    assert results["mean_auroc"]["value"] == pytest.approx(np.mean(areas))


def test_predictions_are_those_of_the_python_interface(run, xrays, evaluated) -> None:
    rows, label, chance = predictions(evaluated)
    reader = load(run / "best.safetensors", device="cpu")
    records = records_of(xrays, "train")
    assert len(rows) == len(records)
    for record, y, p in zip(records, label, chance, strict=True):
        assert list(record.labels) == y.tolist()
        found = reader.predict(read_radiograph(record.path).pixels)
        assert [found[name] for name in FINDINGS] == pytest.approx(p.tolist(), abs=2e-6)


def test_subgroups_are_scored_by_themselves(evaluated: Path, xrays: Path) -> None:
    results = json.loads((evaluated / "metrics.json").read_text())
    _, label, chance = predictions(evaluated)
    records = records_of(xrays, "train")
    groups = {row["group"]: row for row in results["subgroups"]}
    wanted = {f"sex {r.sex}" for r in records} | {f"view {r.view}" for r in records}
    assert wanted <= groups.keys() and any(name.startswith("age ") for name in groups)
    for sex in "FM":
        inside = np.array([r.sex == sex for r in records])
        row = groups[f"sex {sex}"]
        assert row["images"] == inside.sum()
        areas = [
            roc_auc_score(y, p)
            for y, p in zip(label[inside].T, chance[inside].T, strict=True)
            if 0 < y.sum() < len(y)
        ]
        assert row["mean_auroc"]["value"] == pytest.approx(np.mean(areas))
    assert sum(row["images"] for name, row in groups.items() if name.startswith("age ")) == len(
        records
    )


def test_the_report_says_what_it_is(evaluated: Path) -> None:
    report = (evaluated / "report.html").read_text()
    assert "not a medical device" in report and "Subgroups" in report
    assert "where a disease is" in report  # beside the heatmaps
    assert "http" not in report.replace("http-equiv", "")
    protocol = json.loads((evaluated / "metrics.json").read_text())["protocol"]
    assert protocol["split"] == "train" and len(protocol["sha256"]) == 64
    assert protocol["weights_chosen_on"] == "validation images"
    assert "resampling patients" in protocol["explanation"]


def test_nobody_is_named_unless_asked(run, xrays, evaluated, medical, tmp_path, capsys) -> None:
    records = records_of(xrays, "train")
    texts = [path.read_text() for path in evaluated.iterdir()]
    for record in records:
        assert not any(record.path.stem in text or record.patient in text for text in texts)
    rows, *_ = predictions(evaluated)
    patients = {}
    for record, row in zip(records, rows, strict=True):  # one patient, one name
        assert row["image"].startswith("image-") and row["patient"].startswith("patient-")
        assert patients.setdefault(record.patient, row["patient"]) == row["patient"]
    assert len(set(patients.values())) == len(patients)
    capsys.readouterr()
    line = ["--weights", run / "best.safetensors", "--data.root", xrays, "--keep-ids"]
    assert medical("evaluate", *line, "--out", tmp_path, "--heatmaps", 0) == 0
    tested = records_of(xrays, "test")
    rows, *_ = predictions(tmp_path)
    assert [row["image"] for row in rows] == [record.name for record in tested]
    assert [row["patient"] for row in rows] == [record.patient for record in tested]
    assert "not a medical device" in capsys.readouterr().out


def test_a_broken_file_is_listed_and_left_out(run, xrays, medical, tmp_path, capsys) -> None:
    root = tmp_path / "x"
    shutil.copytree(xrays, root)
    first = records_of(root, "test")[0]
    first.path.write_bytes(first.path.read_bytes()[:300])
    line = ["--weights", run / "best.safetensors", "--data.root", root, "--out", tmp_path / "e"]
    assert medical("evaluate", *line, "--heatmaps", 0) == 3
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "e/metrics.json").read_text())
    assert results["protocol"]["images"] == len(records_of(root, "test")) - 1
    (problem,) = results["left_out"]
    assert "image-" in problem and f"left out: {problem}" in printed
    report = (tmp_path / "e/report.html").read_text()
    assert "Left out" in report
    for text in (problem, printed, report):
        assert first.path.stem not in text


def test_labels_that_are_not_known_do_not_count(run, xrays, medical, tmp_path: Path) -> None:
    root = tmp_path / "x"
    shutil.copytree(xrays, root)
    rows = list(csv.DictReader((root / "labels.csv").open()))
    for number, row in enumerate(rows):
        row["Effusion"] = "" if number % 2 else row["Effusion"]
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    line = ["--weights", run / "best.safetensors", "--data.root", root, "--quiet"]
    more = ["--data.split", "train", "--heatmaps", 0, "--out", tmp_path / "e"]
    assert medical("evaluate", *line, *more) == 0
    written = list(csv.DictReader((tmp_path / "e/predictions.csv").open()))
    known = [row for row in written if row["label Effusion"]]
    found = json.loads((tmp_path / "e/metrics.json").read_text())["findings"][1]
    assert 0 < len(known) < len(written) and found["images"] == len(known)
    label = [float(row["label Effusion"]) for row in known]
    chance = [float(row["probability Effusion"]) for row in known]
    assert found["auroc"]["value"] == pytest.approx(roc_auc_score(label, chance))


def test_results_go_beside_the_weights_by_split(run, xrays, medical, tmp_path: Path) -> None:
    weights = shutil.copy(run / "best.safetensors", tmp_path / "best.safetensors")
    line = ["--weights", weights, "--data.root", xrays, "--heatmaps", 0, "--quiet"]
    assert medical("evaluate", *line) == 0
    assert medical("evaluate", *line, "--data.split", "val") == 0
    assert (tmp_path / "evaluation/metrics.json").is_file()
    again = json.loads((tmp_path / "evaluation-val/metrics.json").read_text())
    first = json.loads((run / "metrics.json").read_text())["val"]
    assert again["mean_auroc"] == first["mean_auroc"] and again["findings"] == first["findings"]


def test_json_is_one_object(run, xrays, medical, tmp_path: Path, capsys) -> None:
    line = ["--weights", run / "best.safetensors", "--data.root", xrays, "--out", tmp_path]
    assert medical("evaluate", *line, "--heatmaps", 0, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "metrics.json").read_text())


def test_what_does_not_fit_is_refused(run, xrays, nih, medical, tmp_path: Path, capsys) -> None:
    weights = ["--weights", run / "best.safetensors"]
    checkpoint = load_checkpoint(run / "best.safetensors")
    other = tmp_path / "infrared.safetensors"
    save_checkpoint(other, checkpoint.state_dict, checkpoint.config | {"task": "anomaly"})
    plain = tmp_path / "plain"
    shutil.copytree(xrays / "images", plain)
    for line, reason in (
        ([*weights, "--data.root", xrays, "--data.labels", "Mass"], "name those of the network"),
        ([*weights, "--data.root", xrays, "--data.target", "view"], "name those of the network"),
        ([*weights, "--data.root", plain, "--data.split", "train"], "no labels"),
        ([*weights, "--data.root", xrays, "--data.split", "dev"], "no image in the split 'dev'"),
        ([*weights, "--data.root", tmp_path / "none"], "does not exist"),
        (["--weights", other, "--data.root", xrays], "infrared.safetensors"),
        (["--weights", tmp_path / "none.safetensors", "--data.root", xrays], "does not exist"),
        ([*weights, "--data.root", xrays, "--bootstrap", -1], "--bootstrap"),
        ([*weights, "--data.root", xrays, "--batch_size", 0], "--batch_size"),
    ):
        assert medical("evaluate", *line, "--out", tmp_path / "e", "--quiet") == 2, line
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1, (line, error)
    assert not (tmp_path / "e").exists()


def test_weights_of_another_domain_are_refused(xrays: Path, medical, tmp_path, capsys) -> None:
    """A segmentation network of thermal images says which command made it."""
    from crossband.apps.main import main
    from crossband.infrared.data.synthetic import make_synthetic

    scenes = make_synthetic(tmp_path / "scenes", 12, size=(64, 80))
    line = ["--model", "unip_tiny", "--network.img_size", "64", "--network.channels", "16"]
    line += ["--network.auxiliary", "false", "--data.crop", "64", "--data.scale.short_side", "64"]
    line += ["--loader.batch_size", "4", "--trainer.max_epochs", "1", "--quiet"]
    words = [*line, "--data.root", str(scenes), "--out", str(tmp_path / "r"), "--device", "cpu"]
    assert main(["infrared", "train", *words]) == 0
    capsys.readouterr()
    weights = tmp_path / "r/best.safetensors"
    assert medical("evaluate", "--weights", weights, "--data.root", xrays) == 2
    assert "of another domain" in capsys.readouterr().err
    for out in ("f.csv", "masks"):
        more = ["--weights", weights, "--out", tmp_path / out]
        assert medical("predict", xrays / "images", *more) == 2
        assert "crossband medical train" in capsys.readouterr().err
    assert medical("export", "--weights", weights, "--out", tmp_path / "x.onnx") == 2
    assert "crossband medical train" in capsys.readouterr().err


def test_classes_must_be_those_of_the_network(nih: Path, run, medical, tmp_path, capsys) -> None:
    more = ["--data.root", nih, "--data.target", "view", "--data.val_fraction", 0.4, "--quiet"]
    line = [*TINY, *more, "--trainer.max_epochs", 1, "--out", tmp_path / "r"]
    assert medical("train", *line) == 0
    weights = ["--weights", tmp_path / "r/best.safetensors", "--data.root", nih, "--quiet"]
    assert medical("evaluate", *weights, "--data.target", "view", "--heatmaps", 2) == 0
    results = json.loads((tmp_path / "r/evaluation/metrics.json").read_text())
    counts = np.array(results["confusion"])
    assert results["accuracy"]["value"] == pytest.approx(counts.trace() / counts.sum())
    capsys.readouterr()
    for other in ([], ["--data.target", "sex"]):
        assert medical("evaluate", *weights, *other) == 2
        assert "--data.target" in capsys.readouterr().err


def test_splits_are_not_drawn_in_another_way_than_in_training(
    run: Path, medical, tmp_path: Path, capsys
) -> None:
    """Else images that were learned from could be among those that are scored."""
    root = make_synthetic(tmp_path / "x", 32, size=64, layout="csv")
    checkpoint = load_checkpoint(run / "best.safetensors")
    drawn_by = {"seed": 3, "test_fraction": 0.3, "val_fraction": 0.1, "folds": 0, "fold": 0}
    about = {"data_sets": ["x (csv)"], "drawn_by": drawn_by}
    config = checkpoint.config | {"protocol": checkpoint.config["protocol"] | about}
    weights = save_checkpoint(tmp_path / "w.safetensors", checkpoint.state_dict, config)
    line = ["--weights", weights, "--data.root", root, "--quiet", "--heatmaps", 0]
    line += ["--bootstrap", 20, "--out", tmp_path / "e"]
    assert medical("evaluate", *line) == 0  # the set has splits of its own
    anew = ["--data.columns", "split="]
    capsys.readouterr()
    assert medical("evaluate", *line, *anew) == 2
    assert "give --data.seed 3 --data.test_fraction 0.3." in capsys.readouterr().err
    same = ["--data.seed", 3, "--data.test_fraction", 0.3, "--data.val_fraction", 0.2]
    assert medical("evaluate", *line, *anew, *same) == 0
    assert medical("evaluate", *line, *anew, *same, "--data.split", "val") == 2
    assert "give --data.val_fraction 0.1." in capsys.readouterr().err
    elsewhere = root.rename(tmp_path / "other")
    line[3] = elsewhere
    assert medical("evaluate", *line, *anew) == 0


def test_a_network_without_maps_is_scored_without_heatmaps(
    run: Path, xrays: Path, medical, tmp_path: Path, monkeypatch
) -> None:
    def none(*_: object) -> None:
        raise ConfigError("It ends in no feature map.")

    monkeypatch.setattr("crossband.medical.heatmaps.gradient_heatmap", none)
    line = ["--weights", run / "best.safetensors", "--data.root", xrays, "--quiet"]
    assert medical("evaluate", *line, "--bootstrap", 20, "--out", tmp_path) == 0
    report = (tmp_path / "report.html").read_text()
    assert report.count("No heatmaps: It ends in no feature map.") == 1
