"""`crossband medical predict`: findings and heatmaps, without names."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossband.medical.data.radiographs import read_radiograph
from crossband.medical.data.synthetic import FAMILY_NAME
from crossband.medical.predict import find_studies
from crossband.medical.privacy import Names
from crossband.shared import load

FINDINGS = ("Cardiomegaly", "Effusion", "Mass", "Nodule", "Pneumothorax")


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


@pytest.fixture
def studies(dicoms: Path, tmp_path: Path) -> Path:
    """Four DICOM files named after people, one without a suffix, and something else."""
    folder = tmp_path / "in"
    (folder / "ward").mkdir(parents=True)
    for number, path in enumerate(sorted((dicoms / "images").iterdir())[:4]):
        name = f"{FAMILY_NAME}_{path.stem}" + ("" if number == 3 else ".dcm")
        shutil.copy(path, folder / ("ward" if number % 2 else ".") / name)
    (folder / "notes.txt").write_text("of the ward")
    return folder


def test_rows_are_what_the_python_interface_gives(run, studies, medical, tmp_path: Path) -> None:
    weights, out = run / "best.safetensors", tmp_path / "out/findings.csv"
    assert medical("predict", studies, "--weights", weights, "--out", out, "--quiet") == 0
    reader = load(weights, device="cpu")
    paths, others = find_studies([str(studies)])
    assert len(paths) == 4 and others == 1
    rows = {row["image"]: row for row in table(out)}
    index = [json.loads(line) for line in (out.parent / "predictions.jsonl").open()]
    assert len(rows) == len(index) == 4
    for path, entry in zip(paths, index, strict=True):
        row = rows[Names(False).image(path)]
        found = reader.predict(read_radiograph(path).pixels)
        for name in FINDINGS:
            assert float(row[name]) == pytest.approx(found[name], abs=1e-6)
            assert entry["findings"][name] == pytest.approx(found[name], abs=1e-6)
        present = {n for n in FINDINGS if found[n] >= reader.thresholds.get(n, 0.5)}
        assert set(filter(None, row["present"].split("|"))) == present == set(entry["present"])
        assert entry["size"] == [64, 64]
    assert medical("predict", studies, "--weights", weights, "--threshold", "half", "--quiet",
                   "--out", out) == 0  # fmt: skip
    for row in table(out):
        present = {name for name in FINDINGS if float(row[name]) >= 0.5}
        assert set(filter(None, row["present"].split("|"))) == present


def test_nobody_is_named(run, studies, medical, tmp_path: Path, capsys) -> None:
    import pydicom

    headers = [pydicom.dcmread(path) for path in find_studies([str(studies)])[0]]
    words = [str(header[name].value) for header in headers for name in ("PatientName", "PatientID")]
    words += [FAMILY_NAME, "MRN0", *(p.stem for p in find_studies([str(studies)])[0])]
    broken = studies / f"{FAMILY_NAME}_broken.dcm"
    broken.write_bytes((studies / sorted(studies.glob("*.dcm"))[0]).read_bytes()[:900])
    out = tmp_path / "out/findings.csv"
    line = [studies, "--weights", run / "best.safetensors", "--out", out]
    capsys.readouterr()
    for more in ([], ["--heatmaps"], ["--json", "--heatmaps"]):
        assert medical("predict", *line, *more) == 3
        told = capsys.readouterr()
        for word in words:
            assert word not in told.out + told.err
    assert len(list(out.parent.rglob("*"))) > 6
    for path in out.parent.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for word in words:
            assert word not in path.name and word.encode() not in content
    entries = [json.loads(line) for line in (out.parent / "predictions.jsonl").open()]
    (failed,) = [entry for entry in entries if "error" in entry]
    assert failed["input"] == Names(False).image(broken) and failed["input"] in failed["error"]
    assert len(table(out)) == 4


def test_the_only_file_is_broken(run, medical, tmp_path: Path, capsys) -> None:
    path = tmp_path / f"{FAMILY_NAME}.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 50)
    line = [path, "--weights", run / "best.safetensors", "--out", tmp_path / "f.csv"]
    assert medical("predict", *line) == 2
    error = capsys.readouterr().err
    assert FAMILY_NAME not in error and "image-" in error and error.count("\n") == 1
    assert not (tmp_path / "f.csv").exists()
    assert medical("predict", *line, "--keep-ids") == 2
    assert str(path) in capsys.readouterr().err


def test_names_are_shown_when_asked(run, studies, medical, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out/f.csv"
    line = [studies, "--weights", run / "best.safetensors", "--out", out, "--keep-ids"]
    assert medical("predict", *line) == 0
    printed = capsys.readouterr().out
    paths = [str(path) for path in find_studies([str(studies)])[0]]
    assert [row["image"] for row in table(out)] == paths
    assert all(path in printed for path in paths)
    assert "passed over 1 file" in printed and "not a medical device" in printed


def test_heatmaps_are_overlays_of_the_size_of_the_image(run, medical, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    wide = tmp_path / "wide.png"
    Image.fromarray(random.integers(0, 255, (50, 90), np.uint8)).save(wide)
    out = tmp_path / "out/f.csv"
    line = [wide, "--weights", run / "best.safetensors", "--out", out, "--heatmaps", "--quiet"]
    assert medical("predict", *line) == 0
    (entry,) = (json.loads(line) for line in (out.parent / "predictions.jsonl").open())
    wanted = entry["present"] or [max(entry["findings"], key=entry["findings"].get)]
    assert list(entry["heatmaps"]) == wanted
    for path in entry["heatmaps"].values():
        assert Path(path).parent == out.parent / "f_heatmaps"
        with Image.open(path) as image:
            assert image.size == (90, 50) and image.mode == "RGB"
            pixels = np.asarray(image).astype(int)
        # What the network was not shown, left and right of the middle, has no colour.
        assert np.abs(pixels[:, :15, 0] - pixels[:, :15, 2]).mean() < 12
    assert medical("predict", *line, "--heatmap_method", "rollout") == 0
    (entry,) = (json.loads(line) for line in (out.parent / "predictions.jsonl").open())
    assert list(entry["heatmaps"]) == ["attention"]


def test_images_of_one_name_do_not_overwrite_each_other(
    run, lungs, xrays, medical, tmp_path: Path
) -> None:
    first, second = sorted((xrays / "images").iterdir())[:2]
    for folder, path in (("a", first), ("b", second)):
        (tmp_path / "in" / folder).mkdir(parents=True)
        shutil.copy(path, tmp_path / "in" / folder / "1.png")
    Image.open(second).save(tmp_path / "in/a/1.tif")
    Image.open(first).save(tmp_path / "in/a_1.png")
    line = [tmp_path / "in", "--keep-ids", "--quiet"]
    out = tmp_path / "out/f.csv"
    more = ["--weights", run / "best.safetensors", "--out", out, "--heatmaps"]
    assert medical("predict", *line, *more) == 0
    entries = [json.loads(line) for line in (out.parent / "predictions.jsonl").open()]
    files = [path for entry in entries for path in entry["heatmaps"].values()]
    assert len(entries) == 4 and len(files) == len(set(files)) == len(
        list((tmp_path / "out/f_heatmaps").iterdir())
    )
    masks = ["--weights", lungs / "best.safetensors", "--out", tmp_path / "masks"]
    assert medical("predict", *line, *masks) == 0
    assert len(list((tmp_path / "masks").glob("*.png"))) == 4


def test_a_lateral_view_is_noted(run, dicoms, medical, tmp_path: Path, capsys) -> None:
    import pydicom

    header = pydicom.dcmread(sorted((dicoms / "images").iterdir())[0])
    header.ViewPosition = "LL"
    header.save_as(tmp_path / "side.dcm")
    out = tmp_path / "f.csv"
    line = [tmp_path / "side.dcm", "--weights", run / "best.safetensors", "--out", out]
    assert medical("predict", *line) == 0
    (row,) = table(out)
    assert row["notes"] == "The view is LATERAL, not a frontal one."
    assert row["notes"] in capsys.readouterr().out


def test_a_colour_image_is_noted(run, medical, tmp_path: Path) -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:20, :, 0] = 200
    Image.fromarray(pixels).save(tmp_path / "c.png")
    line = [tmp_path / "c.png", "--weights", run / "best.safetensors"]
    assert medical("predict", *line, "--out", tmp_path / "f.csv", "--quiet") == 0
    assert table(tmp_path / "f.csv")[0]["notes"] == "The image has colours and was taken as grey."


def test_json_is_one_object(run, studies, medical, tmp_path: Path, capsys) -> None:
    line = [studies, "--weights", run / "best.safetensors", "--out", tmp_path / "f.csv", "--json"]
    assert medical("predict", *line) == 0
    found = json.loads(capsys.readouterr().out)["predictions"]
    assert [row["findings"][FINDINGS[0]] for row in found] == [
        pytest.approx(float(row[FINDINGS[0]]), abs=1e-6) for row in table(tmp_path / "f.csv")
    ]


def test_windows_of_dicom_files_change_what_is_read(run, studies, medical, tmp_path) -> None:
    weights = ["--weights", run / "best.safetensors", "--quiet"]
    rows = []
    for number, more in enumerate(([], ["--window", 1000, 500])):
        out = tmp_path / f"{number}.csv"
        assert medical("predict", studies, *weights, "--out", out, *more) == 0
        rows.append(table(out))
    path = find_studies([str(studies)])[0][0]
    found = load(run / "best.safetensors").predict(read_radiograph(path, (1000, 500)).pixels)
    row = next(row for row in rows[1] if row["image"] == Names(False).image(path))
    assert float(row["Mass"]) == pytest.approx(found["Mass"], abs=1e-6)
    assert rows[0] != rows[1]


def test_what_cannot_be_is_one_sentence(run, lungs, mae, xrays, medical, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    findings = ["--weights", run / "best.safetensors"]
    for line, reason in (
        (findings, "needs inputs"),
        ([tmp_path / "empty", *findings], "no radiograph in"),
        ([tmp_path / "nowhere", *findings], "does not exist"),
        ([xrays / "images", *findings, "--out", tmp_path / "masks"], "ending in .csv"),
        ([xrays / "images", "--weights", mae], "of the task 'pre-training'"),
        ([xrays / "images", "--weights", tmp_path / "x.safetensors"], "does not exist"),
        ([xrays / "images", *findings, "--window", 3, "--out", tmp_path / "f.csv"], "window"),
        ([xrays / "images", "--weights", lungs / "best.safetensors", "--heatmaps"], "of findings"),
    ):
        assert medical("predict", *line, "--quiet") == 2, line
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1, (line, error)
