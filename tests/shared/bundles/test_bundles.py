"""Bundles that we write are MONAI's, and any bundle runs through `crossband bundle`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crossband.apps.main import main
from crossband.shared import create_model
from crossband.shared.bundles.folder import SCHEMA, Bundle, UnsafeBundleError
from crossband.shared.bundles.images import find_images
from crossband.shared.bundles.running import finetune, missing_ids, run_inference
from crossband.shared.bundles.writing import write_bundle
from crossband.shared.checkpoints import load_checkpoint, save_checkpoint
from crossband.shared.errors import CheckpointError, ConfigError, DataError


def bundle(*words: object) -> int:
    return main(["bundle", *map(str, words)])


def monai(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "monai.bundle", *map(str, words)],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def with_config(source: Path, folder: Path, change) -> Path:
    shutil.copytree(source, folder)
    path = folder / "configs/inference.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", ["segmentation_bundle", "classification_bundle"])
def test_what_we_write_meets_the_specification(kind: str, request, capsys) -> None:
    folder = request.getfixturevalue(kind)
    opened = Bundle.open(folder)
    assert opened.metadata_problems() == [] and opened.findings() == []
    assert missing_ids(opened, "inference") == [] and missing_ids(opened, "train") == []
    assert set(opened.workflows) == {"inference", "train", "evaluate"}
    assert bundle("check", folder) == 0
    assert "are in order" in capsys.readouterr().out
    for name in ("LICENSE", "docs/README.md", "docs/data_license.txt", "models/model.pt"):
        assert (folder / name).is_file()


def test_every_field_of_the_metadata_is_asked_for(segmentation_bundle: Path) -> None:
    opened = Bundle.open(segmentation_bundle)
    required = json.loads(SCHEMA.read_text())["required"]
    assert len(required) == 9
    for name in required:
        opened.metadata.pop(name)
        assert any(name in problem for problem in opened.metadata_problems()), name


def test_the_bundle_gives_what_the_network_gives(
    segmenter: Path, segmentation_bundle: Path, discs: Path, tmp_path: Path
) -> None:
    """Preprocessing by hand, in numpy, against MONAI's transforms."""
    images = find_images([discs / "images"])[:2]
    run_inference(Bundle.open(segmentation_bundle), images, tmp_path / "out", device="cpu")
    stored = load_checkpoint(segmenter)
    network = create_model(stored.config["model"]["name"], **stored.config["model"]["arguments"])
    network.load_state_dict(stored.state_dict)
    for path in images:
        pixels = torch.from_numpy(np.array(Image.open(path), np.float32))[None, None]
        small = torch.nn.functional.interpolate(pixels, (32, 48), mode="bilinear")
        with torch.no_grad():
            probability = network.eval()((small / 255 - 0.4) / 0.2).softmax(1)
        whole = torch.nn.functional.interpolate(probability, (40, 60), mode="bilinear")
        wanted = whole.argmax(1)[0].numpy()
        found = np.array(Image.open(tmp_path / "out" / f"{path.stem}_mask.png"))
        assert found.shape == (40, 60)
        assert (found == wanted).mean() > 0.98


def test_a_folder_goes_on_past_broken_files(
    segmentation_bundle: Path, discs: Path, tmp_path: Path, capsys
) -> None:
    source = discs / "images"
    for path in find_images([source])[3:]:
        path.unlink()
    (source / "bad.png").write_bytes(b"no image")
    (source / "zero.png").write_bytes(b"")
    rgba = Image.open(source / "0.png").convert("RGBA")
    rgba.save(source / "colour.png")
    out = tmp_path / "out"
    assert bundle("run", segmentation_bundle, source, "--out", out) == 3
    printed = capsys.readouterr().out
    assert "bad.png cannot be read" in printed and "zero.png is empty" in printed
    masks = {path.name for path in out.glob("*.png")}
    assert masks == {"0_mask.png", "1_mask.png", "2_mask.png", "colour_mask.png"}
    entries = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert sum("error" in entry for entry in entries) == 2 and len(entries) == 6
    assert bundle("run", segmentation_bundle, source, "--out", source) == 2
    assert "name another folder" in capsys.readouterr().err


def test_classification_writes_a_table(classification_bundle, discs, tmp_path: Path) -> None:
    words = [classification_bundle, discs / "images/0.png", "--out", tmp_path / "out"]
    assert bundle("run", *words) == 0
    header, row = (tmp_path / "out/predictions.csv").read_text().splitlines()
    assert header == "image,a,b,c"
    name, *values = row.split(",")
    assert name.endswith("0.png") and sum(map(float, values)) == pytest.approx(1, abs=1e-5)


def test_finetuning_learns_and_leaves_the_old_bundle_alone(
    segmentation_bundle: Path, discs: Path, tmp_path: Path, capsys
) -> None:
    before = (segmentation_bundle / "models/model.pt").read_bytes()
    words = ["--data", discs, "--out", tmp_path / "new", "--epochs", 15, "--learning_rate", 0.02]
    assert bundle("finetune", segmentation_bundle, *words) == 0
    assert (segmentation_bundle / "models/model.pt").read_bytes() == before
    assert bundle("run", tmp_path / "new", discs / "images", "--out", tmp_path / "out") == 0
    dice = []
    for path in find_images([discs / "labels"]):
        truth = np.array(Image.open(path)) > 0
        found = np.array(Image.open(tmp_path / f"out/{path.stem}_mask.png")) > 0
        dice.append(2 * (truth & found).sum() / (truth.sum() + found.sum()))
    assert np.mean(dice) > 0.7
    assert bundle("finetune", segmentation_bundle, *words) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_hostile_bundle_is_not_run(segmentation_bundle, discs, tmp_path: Path, capsys) -> None:
    victim = tmp_path / "touched"
    code = f"$__import__('pathlib').Path({str(victim)!r}).write_text('x')"

    def poison(config: dict) -> None:
        config["initialize"].append(code)

    folder = with_config(segmentation_bundle, tmp_path / "evil", poison)
    image = discs / "images/0.png"
    assert bundle("run", folder, image, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "was not run" in error and "initialize::1" in error and "--trust" in error
    assert bundle("check", folder) == 1
    assert bundle("info", folder) == 0
    assert "initialize::1" in capsys.readouterr().out
    assert not victim.exists()
    with pytest.raises(UnsafeBundleError):
        finetune(Bundle.open(folder), discs, tmp_path / "f", overrides={})
    assert bundle("run", folder, image, "--out", tmp_path / "out", "--trust") == 0
    assert victim.read_text() == "x"


def test_own_scripts_run_only_when_trusted(segmentation_bundle, discs, tmp_path, capsys) -> None:
    def own(config: dict) -> None:
        arguments = {k: v for k, v in config["network_def"].items() if k != "_target_"}
        config["network_def"] = {"_target_": "scripts.net.make", **arguments}

    folder = with_config(segmentation_bundle, tmp_path / "own", own)
    (folder / "scripts").mkdir()
    (folder / "scripts/__init__.py").write_text("")
    (folder / "scripts/net.py").write_text("from crossband.shared import create_model as make\n")
    words = ["run", folder, discs / "images/0.png", "--out", tmp_path / "out"]
    assert bundle(*words) == 2 and "scripts.net.make" in capsys.readouterr().err
    assert bundle("info", folder) == 0 and "scripts/net.py" in capsys.readouterr().out
    assert bundle(*words, "--trust") == 0


def test_archives_are_opened_and_those_that_leave_their_folder_refused(
    segmentation_bundle: Path, discs: Path, tmp_path: Path, capsys
) -> None:
    archive = shutil.make_archive(
        str(tmp_path / "seg"), "zip", segmentation_bundle.parent, segmentation_bundle.name
    )
    assert bundle("run", archive, discs / "images/0.png", "--out", tmp_path / "out") == 0
    with zipfile.ZipFile(tmp_path / "slip.zip", "w") as slip:
        slip.writestr("../outside.txt", "x")
    assert bundle("info", tmp_path / "slip.zip") == 2
    assert "leaves its folder" in capsys.readouterr().err


def test_bad_input_gets_a_sentence(segmentation_bundle, discs, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    broken = shutil.copytree(segmentation_bundle, tmp_path / "broken")
    (broken / "configs/inference.json").write_text("{")
    image = discs / "images/0.png"
    for words, reason in (
        (["info", tmp_path / "none"], "does not exist"),
        (["info", image], "is no bundle"),
        (["info", tmp_path / "empty"], "has no folder configs/"),
        (["info", broken], "cannot be read as a configuration"),
        (["run", segmentation_bundle], "needs images"),
        (["run", segmentation_bundle, tmp_path / "empty"], "no image"),
        (["run", segmentation_bundle, image, "--set", "dataset#transform=7"], "failed"),
        (["finetune", segmentation_bundle, "--data", discs, "--out", tmp_path / "n",
          "--set", "a=1"],
         "no setting 'a'"),
        (["finetune", segmentation_bundle, "--data", tmp_path, "--out", tmp_path / "n"], "neither"),
    ):  # fmt: skip
        extra = ["--out", tmp_path / "o"] if words[0] == "run" else []
        assert bundle(*words, *extra) in (1, 2), words
        error = capsys.readouterr().err
        assert reason in error and "Traceback" not in error, error


def test_checkpoints_that_do_not_say_enough_are_refused(segmenter, tmp_path: Path) -> None:
    stored = load_checkpoint(segmenter)
    for change, reason in (
        ({"task": "forecasting"}, "of the task"),
        ({"classes": []}, "no classes"),
    ):
        path = save_checkpoint(
            tmp_path / "x.safetensors", stored.state_dict, stored.config | change
        )
        with pytest.raises(CheckpointError, match=reason):
            write_bundle(path, tmp_path / "b")
    with pytest.raises(ConfigError, match="already holds a bundle"):
        write_bundle(segmenter, write_bundle(segmenter, tmp_path / "twice"))
    with pytest.raises(DataError, match="does not exist"):
        Bundle.open(tmp_path / "none")


def test_monais_own_command_runs_it(segmentation_bundle, discs, tmp_path: Path) -> None:
    done = monai(
        segmentation_bundle, "run", "--config_file", "configs/inference.json", "--meta_file",
        "configs/metadata.json", "--bundle_root", ".", "--dataset_dir", discs / "images",
        "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "out").glob("*_mask.png"))) == 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["segmentation_bundle", "classification_bundle"])
def test_monais_commands_train_evaluate_verify_and_export(
    kind: str, request, discs: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(request.getfixturevalue(kind), tmp_path / "bundle")
    images = find_images([discs / "images"])
    segments = kind == "segmentation_bundle"
    items = [
        {"image": str(p), "label": str(discs / "labels" / p.name) if segments else n % 3}
        for n, p in enumerate(images)
    ]
    listing = {"training": items[:6], "validation": items[4:]}
    (discs / "dataset.json").write_text(json.dumps(listing))
    meta = ["--meta_file", "configs/metadata.json"]
    common = [*meta, "--bundle_root", ".", "--dataset_dir", discs]
    size = "[1,1,32,48]" if segments else "[1,3,32,32]"
    checkpoint = ["--ckpt_file", "models/model.pt", *meta, "--use_trace", "True"]
    checkpoint += ["--config_file", "configs/inference.json", "--input_shape", size]
    both = "['configs/train.json','configs/evaluate.json']"
    for words in (
        ["run", "--config_file", "configs/train.json", *common, "--epochs", 1],
        ["run", "--config_file", both, *common, "--output_dir", tmp_path / "eval"],
        ["verify_net_in_out", "network_def", *meta, "--config_file", "configs/inference.json"],
        ["verify_metadata", *meta, "--filepath", SCHEMA],
        ["ckpt_export", "network_def", "--filepath", "models/model.ts", *checkpoint],
        ["onnx_export", "network_def", "--filepath", "models/model.onnx", *checkpoint],
    ):
        done = monai(folder, *words)
        assert done.returncode == 0, (words, done.stderr[-2000:])
    assert (tmp_path / "eval/metrics.csv").is_file()
    assert {p.name for p in (folder / "models").iterdir()} >= {"best.pt", "model.ts", "model.onnx"}


@pytest.mark.slow
def test_a_foreign_bundle_trains_and_runs(shared_dir: Path, discs: Path, tmp_path: Path) -> None:
    """The minimal bundle that was tried with MONAI alone, through our commands."""
    source = shared_dir / "fixtures/medical/monai_bundle_minimal"
    folder = tmp_path / "bundle"
    (folder / "models").mkdir(parents=True)
    (folder / "configs").mkdir()
    for path in (source / "configs").iterdir():
        shutil.copyfile(path, folder / "configs" / path.name)
    config = json.loads((folder / "configs/inference.json").read_text())["network_def"]
    network = create_model("monai:UNet", **{k: v for k, v in config.items() if k != "_target_"})
    torch.save(network.state_dict(), folder / "models/model.pt")
    assert bundle("info", folder) == 0 and bundle("check", folder) == 0
    assert bundle("run", folder, discs / "images", "--out", tmp_path / "out") == 0
    assert len(list((tmp_path / "out").glob("*_trans.png"))) == 10
