from __future__ import annotations

import csv
import importlib.util
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

for library in ("mmengine", "mmcv", "mmdet", "pycocotools"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: extra openmmlab", allow_module_level=True)

import crossband.shared.compat  # noqa: E402, F401

from crossband.medical.cli import DOMAIN  # noqa: E402
from crossband.medical.data.radiographs import read_radiograph  # noqa: E402
from crossband.medical.data.transforms import IMAGENET  # noqa: E402
from crossband.medical.detection import engine, evaluation, prediction, training  # noqa: E402
from crossband.medical.detection.detector import Detector  # noqa: E402
from crossband.medical.detection.model import build, describe, require_openmmlab  # noqa: E402
from crossband.shared.checkpoints import load_checkpoint, read_config  # noqa: E402
from crossband.shared.cli.parser import parse  # noqa: E402
from crossband.shared.errors import (  # noqa: E402
    CheckpointError,
    ConfigError,
    DataError,
    MissingExtraError,
)

# A ResNet that is quick on one core.
SMALL = ("channels=[8,8,16,16]", "stem_width=8", "anchor_scales=4", "fpn_channels=16")
SPLIT = ("--data.val_fraction", "0.25", "--data.test_fraction", "0.25")
ARGUMENTS = (*SMALL, "fc_channels=32", "proposals=60")


def options(verb: str, *words: object):
    return parse(DOMAIN.verbs[verb], [*map(str, words), "--device", "cpu"])


def training_options(root: Path, out: Path, *more: object):
    words = ["--task", "detection", "--model", "timm:resnet10t", "--size", 64, "--data.root", root]
    words += ["--network.arguments", *ARGUMENTS, "--loader.batch_size", 4, "--quiet"]
    words += ["--optimizer.lr", "3e-3", "--optimizer.weight_decay", "1e-4", *SPLIT]
    return options("train", *words, "--out", out, *more)


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of five epochs."""
    out = tmp_path_factory.mktemp("detection") / "run"
    long = ("--trainer.max_epochs", 5, "--trainer.check_val_every_n_epoch", 3)
    training.train(training_options(shapes, out, *long))
    return out


def test_the_run_folder(run: Path) -> None:
    names = ("best.safetensors", "last.ckpt", "config.yaml", "detector.py", "report.html")
    for name in (*names, "metrics.csv", "metrics.json", "annotations/train.json"):
        assert (run / name).is_file(), name
    stored = read_config(run / "best.safetensors")
    assert stored["task"] == "medical detection" and stored["classes"] == ["disc", "square"]
    assert stored["protocol"]["images"] == {"train": 13, "val": 5}
    assert stored["protocol"]["weights_chosen_on"] == "validation images"
    results = json.loads((run / "metrics.json").read_text())
    assert [row["epoch"] for row in results["history"]] == [3, 5]
    assert "0.50, 0.55" in results["protocol"]["explanation"]
    assert results["headline"]["ap50"] == pytest.approx(results["best"]["val_ap50"], abs=1e-6)
    assert results["headline"]["ap50"] > 0
    assert "data:image/png" in (run / "report.html").read_text()


def test_the_detector_equals_mmdets_own_pipeline(run: Path, shapes: Path) -> None:
    from mmdet.apis import inference_detector
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    detector = Detector.load(run / "best.safetensors", device="cpu")
    path = shapes / "images" / "003.png"
    found = detector.boxes(read_radiograph(path).pixels)
    model, config = detector.opened.module, Config.fromfile(run / "detector.py")
    model.cfg = config
    pipeline = config.val_dataloader.dataset.pipeline
    model.cfg.test_dataloader = config.val_dataloader
    assert pipeline[0].type == "crossband.LoadPicture"
    config.val_dataloader.dataset.pipeline = [p for p in pipeline if p.type != "LoadAnnotations"]
    with DefaultScope.overwrite_default_scope("mmdet"), torch.no_grad():
        other = inference_detector(model, str(path)).pred_instances
    assert len(found) == len(other) > 0
    np.testing.assert_allclose(found.scores, np.sort(other.scores.numpy())[::-1], atol=1e-5)


@pytest.mark.slow
def test_a_resumed_run_equals_an_unbroken_one(shapes: Path, tmp_path: Path, capsys) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    training.train(training_options(shapes, whole, "--trainer.max_epochs", 2))
    stop = ("--trainer.max_epochs", 2, "--trainer.max_minutes", "1e-6")
    training.train(training_options(shapes, out, *stop))
    assert len(json.loads((out / "metrics.json").read_text())["history"]) == 1
    config = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(config.replace("max_minutes: 1.0e-06", "max_minutes: 0.0"))
    capsys.readouterr()
    training.train(options("train", "--resume", out, "--json"))
    printed = json.loads(capsys.readouterr().out)
    assert printed["headline"] == json.loads((out / "metrics.json").read_text())["headline"]
    assert len(json.loads((out / "metrics.json").read_text())["history"]) == 2
    first, second = (torch.load(f / "last.ckpt", weights_only=False) for f in (whole, out))
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name


def test_changed_data_are_not_resumed(run: Path) -> None:
    path = run / "annotations" / "val.json"
    text = path.read_text()
    path.write_text(text.replace('"height": 64', '"height": 65'))
    with pytest.raises(DataError, match="have changed"):
        training.train(options("train", "--resume", run, "--quiet"))
    path.write_text(text)


def test_evaluate(run: Path, shapes: Path, tmp_path: Path) -> None:
    words = ["--weights", run / "best.safetensors", "--data.root", shapes, *SPLIT]
    words += ["--out", tmp_path]
    code = evaluation.evaluate(options("evaluate", *words, "--quiet", "--bootstrap", 20))
    assert code is None
    results = json.loads((tmp_path / "metrics.json").read_text())
    assert results["images"] == results["protocol"]["images"] == 6
    assert set(results["classes"]) == {"disc", "square"}
    rows = json.loads((tmp_path / "predictions.json").read_text())
    assert {"image_id", "category_id", "bbox", "score"} <= set(rows[0])
    assert rows[0]["image"].startswith("image-")  # no name of a file
    assert (tmp_path / "report.html").is_file()
    drawn = [*words, "--quiet", "--data.seed", 5]
    with pytest.raises(ConfigError, match="--data.seed 0"):
        evaluation.evaluate(options("evaluate", *drawn))


def test_predict_goes_on_past_broken_files(run: Path, shapes: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "scans", tmp_path / "boxes"
    folder.mkdir()
    grey = Image.open(shapes / "images" / "000.png")
    grey.save(folder / "a.png")
    deep = np.asarray(grey).astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "b.png")
    (folder / "c.png").write_bytes(b"broken")
    words = [folder, "--weights", run / "best.safetensors", "--out", out, "--score", "0.01"]
    assert prediction.predict(options("predict", *words, "--quiet", "--keep_ids")) == 3
    with (out / "boxes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["image"]).name for row in rows} == {"a.png", "b.png"}
    assert list(rows[0]) == ["image", "class", "score", "x0", "y0", "x1", "y1"]
    same = [[r for r in rows if r["image"].endswith(n)] for n in ("a.png", "b.png")]
    assert [r["score"] for r in same[0]] == [r["score"] for r in same[1]]
    assert len(list(out.glob("*_boxes.jpg"))) == 2
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert "error" in lines[2] and len(lines[0]["boxes"]) == len(same[0])
    none = [*words[:-1], "1", "--quiet"]
    assert prediction.predict(options("predict", *none)) == 3
    assert (out / "boxes.csv").read_text().count("\n") == 1


@pytest.mark.slow
def test_training_goes_on_past_broken_files(shapes: Path, tmp_path: Path, capsys) -> None:
    import shutil

    root = shutil.copytree(shapes, tmp_path / "shapes")
    data = training._Job(training_options(root, tmp_path / "x")).data
    for item in (data.train[0], data.val[0]):
        buffer = io.BytesIO()
        Image.open(item.record.path).save(buffer, "jpeg")
        item.record.path.write_bytes(buffer.getvalue()[:-400])  # the header is whole
    config = training_options(root, tmp_path / "run", "--trainer.max_epochs", 1)
    training.train(config)
    said = capsys.readouterr()
    assert len(set(said.err.splitlines())) == 2 and "left out: image-" in said.err
    assert "000.png" not in said.err
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert results["val"]["images"] == 4 and len(results["val"]["left_out"]) == 1
    assert results["headline"]["ap50"] == pytest.approx(results["best"]["val_ap50"], abs=1e-6)


def test_a_dry_run_writes_nothing(shapes: Path, tmp_path: Path, capsys) -> None:
    training.train(training_options(shapes, tmp_path / "run", "--dry_run"))
    assert "dry run" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_vindr_as_dicom(dicoms: Path, tmp_path: Path, capsys) -> None:
    """Boxes of three readers in DICOM files, half of them MONOCHROME1."""
    root = tmp_path / "vindr"
    (root / "train").mkdir(parents=True)
    rows = ["image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"]
    for path in sorted(dicoms.rglob("*.dcm")):
        (root / "train" / path.name).symlink_to(path)
        rows += [f"{path.stem},Cardiomegaly,3,R{k},{20 + k},20,50,50" for k in range(3)]
    (root / "train.csv").write_text("\n".join(rows) + "\n")
    job = training._Job(training_options(root, tmp_path / "run"))
    boxes = [item.boxes for item in job.train]
    assert all(found.corners.tolist() == [[21, 20, 50, 50]] for found in boxes) and boxes
    training.train(training_options(root, tmp_path / "run", "--dry_run"))
    assert "dry run" in capsys.readouterr().out


def test_weights_that_do_not_fit_leave_nothing_behind(shapes: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError):
        training.train(
            training_options(shapes, tmp_path / "run", "--weights", tmp_path / "other.pth")
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--tuning", "lora"), "--tuning lora"),
        (("--loss.name", "focal"), "--loss.name focal"),
        (("--optimizer.name", "lion"), "--optimizer.name lion"),
        (("--trainer.devices", 2), "dist_train"),
        (("--precision", "16"), "--precision 16"),
        (("--size", 8), "--size 8"),
        (("--model", "chest_mae_vit_tiny"), "pyramid|feature maps|backbone"),
        (("--network.arguments", "anchor_scales=0"), "above 0"),
        (("--network.arguments", "fusion=mean"), "fusion=mean"),
    ],
)
def test_options_that_cannot_be(shapes: Path, tmp_path: Path, words, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        training.train(training_options(shapes, tmp_path / "run", *words))
    assert not (tmp_path / "run").exists()


def test_a_split_without_boxes(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'val'"):
        training.train(training_options(shapes, tmp_path / "run", "--data.val_fraction", 0))


def test_weights_of_the_authors(tmp_path: Path, shapes: Path) -> None:
    """A file under torchvision's keys reaches the backbone; one of another network is refused."""
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict
    from mmengine.registry import DefaultScope

    from crossband.medical.detection.model import mmdet_model
    from crossband.shared.registry import create_model

    require_openmmlab()
    config = replace(training_options(shapes, tmp_path / "run"), model="resnet50")
    description = describe(config, 2, {"fpn_channels": 8, "fc_channels": 8})
    torch.manual_seed(3)
    state = create_model("lvm_med_resnet50", num_classes=5).state_dict()
    torch.save(state, tmp_path / "lvmmed_resnet.torch")
    torch.save({"conv1.weight": state["conv1.weight"]}, tmp_path / "other.pth")

    def started(name: str):
        with DefaultScope.overwrite_default_scope("mmdet"):
            given = mmdet_model(description, IMAGENET, str(tmp_path / name))
            model = MODELS.build(ConfigDict(given))
            model.init_weights()
        return model.train()

    model = started("lvmmed_resnet.torch")
    own = model.backbone.network.state_dict()
    assert all(torch.equal(own[key], state[key]) for key in own)
    trained = {n for n, p in model.backbone.named_parameters() if p.requires_grad}
    assert not any(n.startswith(("network.conv1", "network.layer1")) for n in trained)
    assert any(n.startswith("network.layer2") for n in trained)
    assert not model.backbone.network.layer4[0].bn1.training
    with pytest.raises(CheckpointError):
        started("other.pth")


def test_an_encoder_of_pretrain_in_a_network_of_timm(tmp_path: Path, shapes: Path) -> None:
    from crossband.medical.pretraining.encoders import plain_keys
    from crossband.shared.checkpoints import save_checkpoint

    config = training_options(shapes, tmp_path / "run", "--trainer.max_epochs", 1)
    description = describe(config, 2)
    torch.manual_seed(4)
    encoder = build(description, IMAGENET).backbone.network
    facts = {"task": "pre-training", "method": "lvm-med"}
    path = save_checkpoint(tmp_path / "encoder.safetensors", plain_keys(encoder), facts)
    job = training._Job(replace(config, weights=str(path)))
    given = job.engine(tmp_path / "run", tmp_path / "annotations")
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(ConfigDict(given["model"]))
        model.init_weights()
    own = model.backbone.network.state_dict()
    assert all(torch.equal(own[key], value) for key, value in encoder.state_dict().items())
    assert model.backbone.frozen_stages == 1
    assert not model.backbone.network.net.layer1[0].conv1.weight.requires_grad


def test_without_the_extra(monkeypatch) -> None:
    found = importlib.util.find_spec
    missing = lambda name, *rest: None if name == "mmdet" else found(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", missing)
    with pytest.raises(MissingExtraError, match=r"crossband\[openmmlab\]"):
        require_openmmlab()


@pytest.mark.parametrize("name", ["vindr", "kvasir_detection"])
def test_recipes(name: str) -> None:
    config = options("train", "--recipe", name)
    engine.refuse(config)
    assert config.task == "detection" and config.size == 512 and config.loader.batch_size == 8
    assert config.optimizer.lr == {"vindr": 1e-4, "kvasir_detection": 2.5e-4}[name]


@pytest.mark.slow
def test_mmdets_own_script_runs_the_config(run: Path, tmp_path: Path) -> None:
    """Loss by loss the same run: the same weights at the end."""
    script = Path(importlib.util.find_spec("mmdet").origin).parent / ".mim/tools/train.py"
    out = tmp_path / "again"
    line = [sys.executable, str(script), str(run / "detector.py"), "--work-dir", str(out)]
    done = subprocess.run(line, capture_output=True, text=True, env=_one_thread())
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (load_checkpoint(f / "best.safetensors").state_dict for f in (run, out))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (out / "config.yaml").read_text() == (run / "config.yaml").read_text()


def _one_thread() -> dict[str, str]:
    import os

    return {**os.environ, "OMP_NUM_THREADS": "1"}
