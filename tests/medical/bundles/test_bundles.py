"""Bundles of medical networks give what the library gives, and tell nobody's name."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from medical_bundles import FINDINGS, SECRET, SMALL, classifier, write_dicom
from PIL import Image

from crossband.medical.bundles.transforms import LoadMaskd
from crossband.medical.data.radiographs import is_radiograph_file, read_radiograph
from crossband.medical.privacy import Names
from crossband.shared import load
from crossband.shared.bundles.folder import Bundle
from crossband.shared.bundles.running import missing_ids, run_workflow
from crossband.shared.errors import DataError

Run = Callable[..., int]


def table(path: Path) -> tuple[list[str], dict[str, list[float]]]:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    return header, {name: list(map(float, values)) for name, *values in rows}


def expected(weights: Path, studies: Path) -> dict[str, list[float]]:
    reader = load(weights, device="cpu")
    paths = sorted(p for p in studies.rglob("*") if p.is_file() and is_radiograph_file(p))
    assert len(paths) == 6
    found = {p: reader.predict(read_radiograph(p).pixels) for p in paths}
    return {Names(False).image(p): list(values.values()) for p, values in found.items()}


def told(folder: Path) -> str:
    return "".join(
        str(path.relative_to(folder)) + path.read_bytes().decode("latin-1")
        for path in folder.rglob("*")
        if path.is_file()
    )


def test_findings_are_those_of_the_library(
    findings_file: Path, findings_bundle: Path, studies: Path, tmp_path: Path, bundle: Run, capsys
) -> None:
    out = tmp_path / "out"
    assert bundle("run", findings_bundle, studies, "--out", out) == 0
    header, found = table(out / "predictions.csv")
    wanted = expected(findings_file, studies)
    assert header == ["image", *FINDINGS] and found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name] == pytest.approx(values, abs=1e-5)
    spread = np.ptp(np.array(list(found.values())), axis=0)
    assert spread.max() > 1e-3  # the images are told apart
    assert SECRET not in told(out) + "".join(capsys.readouterr())


def test_names_are_shown_when_asked_for(findings_bundle, studies, tmp_path, bundle: Run) -> None:
    words = ["run", findings_bundle, studies, "--out", tmp_path, "--set", "keep_ids=true"]
    assert bundle(*words) == 0
    _, found = table(tmp_path / "predictions.csv")
    assert all(Path(name).is_file() for name in found) and len(found) == 6
    assert SECRET in (tmp_path / "predictions.jsonl").read_text()


def test_a_window_of_the_user_is_taken(findings_file, findings_bundle, tmp_path, bundle) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    values = np.add.outer(np.arange(40) * 40.0, np.arange(50) * 20.0)
    write_dicom(folder / "x.dcm", values, WindowCenter=1800, WindowWidth=2500)
    words = ["run", findings_bundle, folder, "--out", tmp_path / "o", "--set", "window=[900,600]"]
    assert bundle(*words) == 0
    _, found = table(tmp_path / "o/predictions.csv")
    pixels = read_radiograph(folder / "x.dcm", (900, 600)).pixels
    wanted = load(findings_file, device="cpu").predict(pixels)
    assert next(iter(found.values())) == pytest.approx(list(wanted.values()), abs=1e-5)


def test_masks_are_those_of_the_library(
    lungs_file: Path, lungs_bundle: Path, studies: Path, tmp_path: Path, bundle: Run
) -> None:
    assert bundle("run", lungs_bundle, studies, "--out", tmp_path) == 0
    segmenter = load(lungs_file, device="cpu")
    paths = [p for p in studies.rglob("*") if p.is_file()]
    seen = set()
    for path in paths:
        pixels = read_radiograph(path).pixels
        mask = np.array(Image.open(tmp_path / f"{Names(False).image(path)}_mask.png"))
        assert mask.shape == pixels.shape
        assert (mask == segmenter.predict(pixels)).mean() > 0.999
        seen |= set(np.unique(mask))
    assert len(list(tmp_path.glob("*.png"))) == len(paths) and seen == {0, 1}
    assert SECRET not in told(tmp_path)


def test_broken_files_are_left_out_without_their_names(
    findings_bundle: Path, studies: Path, tmp_path: Path, bundle: Run, capsys
) -> None:
    folder = shutil.copytree(studies, tmp_path / "s")
    (folder / f"{SECRET}_cut.dcm").write_bytes((folder / "1.2.840.113").read_bytes()[:900])
    (folder / f"{SECRET}_bad.png").write_bytes(b"no image")
    write_dicom(folder / f"{SECRET}_side.dcm", np.eye(40) * 3000, ViewPosition="LL")
    assert bundle("run", findings_bundle, folder, "--out", tmp_path / "out") == 3
    printed = capsys.readouterr()
    assert printed.out.count("left out: ") == 2 and "The view is LATERAL" in printed.out
    assert SECRET not in printed.out + printed.err + told(tmp_path / "out")
    assert len(table(tmp_path / "out/predictions.csv")[1]) == 7


@pytest.mark.parametrize("kind", ["findings_bundle", "lungs_bundle"])
def test_they_meet_the_specification(kind: str, request, bundle: Run, capsys) -> None:
    folder = request.getfixturevalue(kind)
    opened = Bundle.open(folder)
    assert opened.metadata_problems() == [] and opened.findings() == []
    assert missing_ids(opened, "inference") == [] and missing_ids(opened, "train") == []
    assert bundle("check", folder) == 0 and "are in order" in capsys.readouterr().out
    meta = opened.metadata
    assert "not a medical device" in meta["intended_use"]
    assert meta["eval_metrics"] == {"auroc": 0.9}
    assert meta["eval_protocol"] == {"split": "patients"}  # and no path of the training machine
    assert "/home/me" not in told(folder / "configs")


@pytest.mark.parametrize("kind", ["findings", "lungs"])
def test_the_general_writer_knows_the_domains(kind: str, request, tmp_path, bundle: Run) -> None:
    weights = request.getfixturevalue(f"{kind}_file")
    name = {"findings": "chest", "lungs": "lungs"}[kind]
    words = ["write", "--weights", weights, "--out", tmp_path / name]
    assert bundle(*words) == 0
    ours = request.getfixturevalue(f"{kind}_bundle") / "configs/inference.json"
    assert (tmp_path / name / "configs/inference.json").read_text() == ours.read_text()


def test_classes_that_exclude_each_other(tmp_path: Path, studies: Path, bundle: Run) -> None:
    from crossband.medical.bundles.writing import write

    weights = classifier(tmp_path / "x.safetensors", multilabel=False, temperature=0.5)
    assert bundle("run", write(weights, tmp_path / "b"), studies, "--out", tmp_path / "o") == 0
    _, found = table(tmp_path / "o/predictions.csv")
    for name, values in expected(weights, studies).items():
        assert found[name] == pytest.approx(values, abs=1e-5)
        assert sum(values) == pytest.approx(1, abs=1e-5)


def test_a_network_with_low_rank_adapters(tmp_path: Path, studies: Path, bundle: Run) -> None:
    from crossband.medical.bundles.writing import write

    arguments = {**SMALL, "num_classes": 3, "global_pool": "avg"}
    description = {"name": "chest_mae_vit_tiny", "arguments": arguments}
    description["tuning"] = {"kind": "lora", "rank": 2}
    weights = classifier(tmp_path / "x.safetensors", model=description)
    assert bundle("run", write(weights, tmp_path / "b"), studies, "--out", tmp_path / "o") == 0
    _, found = table(tmp_path / "o/predictions.csv")
    for name, values in expected(weights, studies).items():
        assert found[name] == pytest.approx(values, abs=1e-5)


def test_monais_workflow_finds_the_files_itself(
    findings_file: Path, findings_bundle: Path, studies: Path, tmp_path: Path, caplog
) -> None:
    folder = shutil.copytree(studies, tmp_path / "s")
    (folder / f"{SECRET}_bad.png").write_bytes(b"no image")
    opened = Bundle.open(findings_bundle)
    given = {"bundle_root": str(findings_bundle), "dataset_dir": str(folder)}
    given |= {"output_dir": str(tmp_path / "out"), "device": "$torch.device('cpu')"}
    run_workflow(opened, [opened.config_file("inference")], "inference", given)
    _, found = table(tmp_path / "out/predictions.csv")
    assert found.keys() == expected(findings_file, studies).keys()
    assert SECRET not in told(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["findings", "lungs"])
def test_monais_own_command(kind: str, request, studies: Path, tmp_path: Path) -> None:
    source = request.getfixturevalue(f"{kind}_bundle")
    shutil.copytree(source, tmp_path / "chest_bundle")
    shutil.copytree(studies, tmp_path / "studies")
    words = "run --bundle_root chest_bundle --config_file chest_bundle/configs/inference.json"
    words += " --dataset_dir studies/ --output_dir out/"
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", *words.split()],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert SECRET not in done.stdout + done.stderr + told(tmp_path / "out")
    if kind == "lungs":
        assert len(list((tmp_path / "out").glob("image-*_mask.png"))) == 6
        return
    _, found = table(tmp_path / "out/predictions.csv")
    for name, values in expected(request.getfixturevalue("findings_file"), studies).items():
        assert found[name] == pytest.approx(values, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["findings", "lungs"])
def test_monais_commands_train_and_evaluate(kind: str, request, tmp_path: Path) -> None:
    folder = shutil.copytree(request.getfixturevalue(f"{kind}_bundle"), tmp_path / "b")
    items = []
    for n in range(8):
        Image.fromarray(np.full((40, 40), 20 + 25 * n, np.uint8)).save(tmp_path / f"{n}.png")
        Image.fromarray(np.eye(40, dtype=np.uint8)).save(tmp_path / f"{n}_m.png")
        label = f"{n}_m.png" if kind == "lungs" else [n % 2, 1 - n % 2, 0]
        items.append({"image": f"{n}.png", "label": label})
    listing = {"training": items[:5], "validation": items[4:]}
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    common = ["--bundle_root", ".", "--dataset_dir", tmp_path]
    both = "['configs/train.json','configs/evaluate.json']"
    for words in (
        ["run", "--config_file", "configs/train.json", *common, "--epochs", 1],
        ["run", "--config_file", both, *common, "--output_dir", tmp_path / "eval"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "monai.bundle", *map(str, words)],
            cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    assert (folder / "models/best.pt").is_file() and list((tmp_path / "eval").glob("*.csv"))


def test_a_broken_mask_is_not_called_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / f"{SECRET}.png"
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="The mask image-[0-9a-f]{12} cannot be read") as caught:
        LoadMaskd("label", 8)({"label": str(path)})
    assert SECRET not in str(caught.value) and caught.value.__cause__ is None
