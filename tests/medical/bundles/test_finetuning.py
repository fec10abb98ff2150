"""A bundle learns new data, and then says nothing of its old weights."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medical_bundles import FINDINGS
from PIL import Image

from crossband.shared.bundles.folder import Bundle

Run = Callable[..., int]


def shades(folder: Path, count: int = 24) -> Path:
    """Write plain images with a table: bright, dark, and a finding that is seldom known."""
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(0)
    rows = [["image", "patient", *FINDINGS]]
    for n in range(count):
        bright = n % 2
        pixels = random.normal(180 if bright else 70, 8, (48, 40)).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"images/{n}.png")
        rows.append([f"{n}.png", f"p{n // 4}", bright, 1 - bright, "" if n % 3 else 0])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return shades(tmp_path / "ours")


def test_a_table_of_labels_is_learned(
    findings_bundle: Path, data: Path, tmp_path: Path, bundle: Run
) -> None:
    before = Bundle.open(findings_bundle).metadata
    words = ["--data", data, "--out", tmp_path / "new", "--epochs", 15, "--batch_size", 8]
    assert bundle("finetune", findings_bundle, *words, "--learning_rate", 0.003) == 0
    assert bundle("run", tmp_path / "new", data / "images", "--out", tmp_path / "o",
                  "--set", "keep_ids=true") == 0  # fmt: skip
    with (tmp_path / "o/predictions.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert (float(row["Bright"]) > 0.5) == (int(Path(row["image"]).stem) % 2 == 1)
    new = Bundle.open(tmp_path / "new")
    assert new.metadata["eval_metrics"] == {"val_auroc": 1.0}  # not the 0.9 of the old weights
    assert "chosen on" in new.metadata["eval_protocol"]["scored_on"]
    assert new.metadata["eval_protocol"]["images"] == {"training": 20, "validation": 4}
    assert new.metadata["version"] == "0.2.0" and "0.2.0" in new.metadata["changelog"]
    assert "data_license" not in new.metadata and new.metadata_problems() == []
    assert new.configs["inference.json"]["temperature"] == 1.0
    assert not (tmp_path / "new/dataset.json").exists()
    assert Bundle.open(findings_bundle).metadata == before
    assert bundle("check", tmp_path / "new") == 0


def test_a_list_with_vectors_of_labels(findings_bundle, data, tmp_path, bundle: Run) -> None:
    items = [{"image": f"images/{n}.png", "label": [n % 2, 1 - n % 2, 0]} for n in range(12)]
    listing = {"training": items[:8], "validation": items[8:]}
    (data / "dataset.json").write_text(json.dumps(listing))
    words = ["--data", data, "--out", tmp_path / "new", "--epochs", 1]
    assert bundle("finetune", findings_bundle, *words) == 0
    metrics = Bundle.open(tmp_path / "new").metadata["eval_metrics"]
    assert 0 <= metrics["val_auroc"] <= 1


def test_masks_are_learned(lungs_bundle: Path, tmp_path: Path, bundle: Run) -> None:
    data = tmp_path / "ours"
    random = np.random.default_rng(0)
    for part in ("images", "labels"):
        (data / part).mkdir(parents=True)
    for n in range(11):  # nine to train on: a last batch of one, which batch norms do not take
        mask = np.zeros((50, 60), bool)
        top, left = random.integers(5, 20, 2)
        mask[top : top + 20, left : left + 25] = True
        image = np.where(mask, 40, 200) + random.normal(0, 5, mask.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(data / f"images/{n}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(data / f"labels/{n}.png")
    words = ["--data", data, "--out", tmp_path / "new", "--epochs", 30, "--learning_rate", 0.01]
    assert bundle("finetune", lungs_bundle, *words) == 0
    assert bundle("run", tmp_path / "new", data / "images", "--out", tmp_path / "o",
                  "--set", "keep_ids=true") == 0  # fmt: skip
    dice = []
    for n in range(11):
        truth = np.array(Image.open(data / f"labels/{n}.png")) > 0
        found = np.array(Image.open(tmp_path / f"o/{n}_mask.png")) > 0
        dice.append(2 * (truth & found).sum() / (truth.sum() + found.sum()))
    assert np.mean(dice) > 0.8
    assert Bundle.open(tmp_path / "new").metadata["eval_metrics"].keys() == {"val_mean_dice"}


def changed(data: Path, change: Callable[[list[list[str]]], Any]) -> None:
    with (data / "labels.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    change(rows)
    with (data / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def absent(rows: list[list[str]]) -> None:
    for row in rows[1:]:
        row[2:] = ["0", "0", "0"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows[0].__setitem__(0, "name"), "no column image"),
        (lambda rows: rows[0].__setitem__(3, "Darkness"), "no column 'Dark'"),
        (lambda rows: rows[2].__setitem__(2, "maybe"), "line 3 has the label 'maybe'"),
        (lambda rows: rows[2].__setitem__(0, "gone.png"), "line 3 names an image"),
        (absent, "no class is both present and absent"),
        (lambda rows: rows.__delitem__(slice(2, None)), "too few"),
    ],
)
def test_tables_that_do_not_fit(
    change, reason: str, findings_bundle: Path, data: Path, tmp_path: Path, bundle: Run, capsys
) -> None:
    changed(data, change)
    assert bundle("finetune", findings_bundle, "--data", data, "--out", tmp_path / "new") == 2
    assert reason in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_lists_that_do_not_fit(findings_bundle, data, tmp_path, bundle: Run, capsys) -> None:
    words = ["finetune", findings_bundle, "--data", data, "--out", tmp_path / "new"]
    for label in ([1, 0], 1, [1, 0, 7], "x.png"):
        items = [{"image": "images/0.png", "label": label}]
        (data / "dataset.json").write_text(json.dumps({"training": items, "validation": items}))
        assert bundle(*words) == 2
        assert "give 3 numbers of 0 and 1" in capsys.readouterr().err
    (data / "dataset.json").write_text(json.dumps({"training": items}))
    assert bundle(*words) == 2 and "validation" in capsys.readouterr().err
    (data / "dataset.json").unlink()
    (data / "labels.csv").unlink()
    assert bundle(*words) == 2 and "labels.csv" in capsys.readouterr().err
