"""Scores and files of masks that boxes ask for."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from crossband.medical.cli import DOMAIN
from crossband.medical.data.records import Record
from crossband.medical.privacy import Names
from crossband.medical.prompted.evaluation import evaluate
from crossband.medical.prompted.frames import bounds
from crossband.medical.prompted.prediction import predict
from crossband.shared import load
from crossband.shared.cli.parser import parse
from crossband.shared.errors import ConfigError, DataError


def records_of(root: Path) -> list[Record]:
    rows = [r for r in csv.DictReader((root / "labels.csv").open()) if r["split"] == "test"]
    return [Record(root / r["image"], r["image"], mask=root / r["lung_mask"]) for r in rows]


def score(prompted: Path, records: list[Record], out: Path, *more: object) -> tuple[Any, Any]:
    words = ["--weights", prompted, "--data.root", "x", "--device", "cpu", "--keep-ids"]
    words += ["--bootstrap", 50, "--distances", "false", *more]
    config = parse(DOMAIN.verbs["evaluate"], list(map(str, words)))
    code = evaluate(config, load(prompted, device="cpu"), records, {"split": "test"}, out)
    return code, json.loads((out / "metrics.json").read_text())


def run(prompted: Path, paths: list[Path], out: Path, *more: object) -> int | None:
    words = [*paths, "--weights", prompted, "--out", out, "--device", "cpu", *more]
    config = parse(DOMAIN.verbs["predict"], list(map(str, words)))
    return predict(config, paths, Names(config.keep_ids))


def write(path: Path, rows: list[tuple[Any, ...]], *more: str) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "x0", "y0", "x1", "y1", *more), *rows])
    return path


def boxes_of(records: list[Record]) -> list[tuple[Any, ...]]:
    return [(r.name, *bounds(np.asarray(Image.open(r.mask)) > 0).tolist()) for r in records]


def test_scores_are_those_of_the_masks_own_boxes(
    prompted: Path, xrays: Path, tmp_path: Path, capsys
) -> None:
    records = records_of(xrays)
    code, results = score(prompted, records, tmp_path / "e")
    assert code is None and "lung" in capsys.readouterr().out
    assert "exact" in results["protocol"]["boxes"]
    assert results["protocol"]["images"] == len(records)
    segmenter, dice, iou = load(prompted, device="cpu"), [], []
    for record, row in zip(records, results["rows"], strict=True):
        truth = np.asarray(Image.open(record.mask)) > 0
        pixels = np.asarray(Image.open(record.path).convert("L"))
        found = segmenter.predict(pixels, bounds(truth)[None])[0]
        both = (found & truth).sum()
        dice.append(2 * both / (found.sum() + truth.sum()))
        iou.append(both / (found | truth).sum())
        assert row["dice"]["lung"] == pytest.approx(dice[-1])
    assert results["dice"]["value"] == pytest.approx(np.mean(dice))
    entry = results["classes"]["lung"]
    assert entry["iou"]["value"] == pytest.approx(np.mean(iou))
    assert entry["dice"]["low"] < entry["dice"]["value"] < entry["dice"]["high"]
    assert "Worst images" in (tmp_path / "e/report.html").read_text()


def test_scores_of_boxes_of_a_csv(prompted: Path, xrays: Path, tmp_path: Path, capsys) -> None:
    records = records_of(xrays)
    exact = write(tmp_path / "exact.csv", boxes_of(records))
    _, own = score(prompted, records, tmp_path / "a")
    _, same = score(prompted, records, tmp_path / "b", "--boxes", exact)
    assert same["dice"] == own["dice"] and same["protocol"]["boxes"] == str(exact)
    tiny = [(name, 0, 0, 2, 2) for name, *_ in boxes_of(records)[1:]]
    code, other = score(
        prompted, records, tmp_path / "c", "--boxes", write(tmp_path / "t.csv", tiny)
    )
    assert code == 3 and len(other["left_out"]) == 1 and "has no box" in other["left_out"][0]
    assert len(other["rows"]) == len(records) - 1
    assert other["dice"]["value"] < same["dice"]["value"]


def test_broken_files_are_listed_without_names(
    prompted: Path, xrays: Path, tmp_path: Path, capsys
) -> None:
    root = tmp_path / "x"
    shutil.copytree(xrays, root)
    records = records_of(root)
    records[0].path.write_bytes(b"nothing")
    records[1].mask.write_bytes(b"nothing")
    code, results = score(prompted, records, tmp_path / "e", "--keep-ids", "false")
    assert code == 3 and len(results["left_out"]) == 2
    told = capsys.readouterr().out + json.dumps(results)
    assert not any(record.path.stem in told for record in records[:2])


def test_masks_and_overlays_are_written_at_the_size_of_the_image(
    prompted: Path, tmp_path: Path, capsys
) -> None:
    draw, paths = np.random.default_rng(0), []
    for name, shape in (("Doe", (50, 90)), ("tall", (200, 70)), ("none", (30, 30))):
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(draw.integers(0, 255, shape, np.uint8)).save(paths[-1])
    rows = [(Names(False).image(paths[0]), 5, 5, 60, 40), ("tall.png", 0, 0, 20, 20)]
    rows += [("tall.png", 30, 100, 69, 199), ("stranger.png", 0, 0, 1, 1)]
    boxes, out = write(tmp_path / "boxes.csv", rows), tmp_path / "masks"
    assert run(prompted, paths, out, "--boxes", boxes) == 3
    printed = capsys.readouterr().out
    assert "left out image-" in printed and "has no box" in printed and "1 row(s)" in printed
    assert "Doe" not in printed
    entries = [json.loads(line) for line in (out / "predictions.jsonl").open()]
    assert [entry.get("boxes") for entry in entries] == [1, 2, None]
    segmenter = load(prompted, device="cpu")
    for path, entry, own in zip(paths, entries, ([rows[0]], rows[1:3]), strict=False):
        pixels = np.asarray(Image.open(path))
        mask = np.asarray(Image.open(entry["mask"]))
        found = segmenter.predict(pixels, np.array([row[1:] for row in own], np.float32))
        np.testing.assert_array_equal(mask, found.any(0))
        assert mask.shape == pixels.shape == tuple(entry["size"])
        assert entry["area"]["lung"] == pytest.approx(mask.mean(), abs=1e-6)
        with Image.open(entry["overlay"]) as image:
            assert image.size == pixels.shape[::-1]
    assert "Doe" not in Path(entries[0]["mask"]).name


def test_predict_without_boxes_is_one_sentence(prompted: Path, tmp_path: Path, xrays: Path) -> None:
    path = records_of(xrays)[0].path
    with pytest.raises(ConfigError, match="give --boxes boxes.csv"):
        run(prompted, [path], tmp_path / "m")
    boxes = write(tmp_path / "b.csv", [("stranger.png", 0, 0, 1, 1)])
    with pytest.raises(DataError, match="No row of .* is of one of the images"):
        run(prompted, [path], tmp_path / "m", "--boxes", boxes)
    outside = write(tmp_path / "b.csv", [(path.name, 500, 0, 600, 1)])
    with pytest.raises(DataError, match="none within an image of 64 x 64"):
        run(prompted, [path], tmp_path / "m", "--boxes", outside)
    with pytest.raises(ConfigError, match="written to a folder"):
        run(prompted, [path], tmp_path / "m.csv", "--boxes", boxes)
    with pytest.raises(ConfigError, match="--heatmaps are of findings"):
        run(prompted, [path], tmp_path / "m", "--boxes", boxes, "--heatmaps")
