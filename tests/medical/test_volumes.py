"""Volumes from training to masks: slices of NIfTI files, scores in mm, bundles."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from crossband.medical.data.scans import open_scan
from crossband.shared import load
from crossband.shared.checkpoints import read_config

SPACING = (1.5, 1.0, 3.0)
NETWORK = (
    *("--model", "timm:resnet10t", "--size", 32, "--network.arguments"),
    'backbone_arguments={"channels":[8,8,8,8],"stem_width":8}',
    "decoder_channels=[8,8,8,8,8]",
)


def put_volume(folder: Path, name: str, seed: int) -> None:
    """Write a bright ball in noise and its mask; every other volume is flipped and turned."""
    random = np.random.default_rng(seed)
    shape = (26, 34, 8)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) * SPACING
    centre = random.uniform(0.4, 0.6, 3) * shape * SPACING
    ball = np.linalg.norm(places - centre, axis=-1) < 9
    values = (100 + 20 * random.standard_normal(shape) + 300 * ball).astype(np.int16)
    affine = np.diag([*SPACING, 1.0])
    if seed % 2:
        affine = affine @ np.diag([-1.0, 1, 1, 1])[[1, 0, 2, 3]]
    affine[:3, 3] = (5, -7, 11)
    for part, array in (("images", values), ("labels", ball.astype(np.uint8))):
        (folder / part).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, affine), folder / part / f"{name}.nii.gz")


@pytest.fixture(scope="module")
def balls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("balls")
    for number in range(10):
        put_volume(root, f"case_{number:02}", number)
    return root


@pytest.fixture(scope="module")
def trained(balls: Path, medical, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    line = ["--task", "segmentation", *NETWORK, "--data.root", balls, "--quiet", "--out", out]
    line += ["--data.classes", "background", "ball", "--loss.sampling", "balanced"]
    line += ["--optimizer.lr", "1e-2", "--loader.batch_size", 8, "--trainer.max_epochs", 6]
    assert medical("train", *line) == 0
    return out


def test_a_run_on_slices(trained: Path) -> None:
    config = read_config(trained / "best.safetensors")
    assert config["reading"]["volumes"] and config["classes"] == ["background", "ball"]
    assert "slice by slice" in config["description"]
    results = json.loads((trained / "metrics.json").read_text())
    assert results["val"]["dice"]["value"] > 0.5
    assert "volume" in results["protocol"]["explanation"]


def test_masks_lie_on_the_voxels_of_their_volumes(
    trained: Path, balls: Path, medical, tmp_path: Path
) -> None:
    line = ["--weights", trained / "best.safetensors", "--keep-ids"]
    root = ["--data.root", balls]
    assert medical("evaluate", *line, *root, "--out", tmp_path / "e") == 0
    results = json.loads((tmp_path / "e/metrics.json").read_text())
    assert results["protocol"]["volumes"] == len(results["rows"]) > 0
    images = [balls / row["image"] for row in results["rows"]]
    assert medical("predict", *images, *line, "--out", tmp_path / "m") == 0
    entries = [json.loads(text) for text in (tmp_path / "m/predictions.jsonl").open()]
    for path, entry, row in zip(images, entries, results["rows"], strict=True):
        volume, mask = nibabel.load(path), nibabel.load(entry["mask"])
        np.testing.assert_allclose(mask.affine, volume.affine)
        found = np.asarray(mask.dataobj)
        truth = np.asarray(nibabel.load(balls / "labels" / path.name).dataobj)
        assert found.shape == volume.shape and entry["size"] == list(found.shape)
        assert entry["volume_ml"]["ball"] == pytest.approx(
            found.sum() * np.prod(SPACING) / 1000, abs=1e-3
        )
        dice = 2 * (found * truth).sum() / (found.sum() + truth.sum())
        assert row["dice"]["ball"] == pytest.approx(dice)
        assert row["iou"]["ball"] == pytest.approx(dice / (2 - dice))
        assert Path(entry["overlay"]).is_file()
    assert results["classes"]["ball"]["hd95"]["value"] > 0
    segmenter = load(trained / "best.safetensors", device="cpu")
    again = segmenter.predict_scan(open_scan(images[0]), batch_size=3)
    np.testing.assert_array_equal(again, np.asarray(nibabel.load(entries[0]["mask"]).dataobj))


def test_a_broken_volume_never_stops_a_folder(
    trained: Path, balls: Path, medical, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "scans"
    put_volume(folder, "one", 1)
    whole = (folder / "images/one.nii.gz").read_bytes()
    (folder / "images/secret_name.nii.gz").write_bytes(whole[:200])
    line = ["--weights", trained / "best.safetensors", "--out", tmp_path / "m"]
    assert medical("predict", folder, *line) == 3
    told = capsys.readouterr().out
    assert "left out" in told and "secret" not in told and "passed over 1 file" in told
    assert len(list((tmp_path / "m").glob("*.nii.gz"))) == 1
    png = tmp_path / "a.png"
    png.write_bytes(b"x")
    assert medical("predict", png, *line) == 2
    assert "is no volume" in capsys.readouterr().err


def test_a_bundle_gives_the_masks_of_predict(
    trained: Path, balls: Path, medical, tmp_path: Path
) -> None:
    from crossband.apps.main import main

    weights = ["--weights", trained / "best.safetensors"]
    bundle = tmp_path / "bundle"
    assert medical("export", *weights, "--format", "monai-bundle", "--out", bundle) == 0
    path = balls / "images/case_01.nii.gz"
    run = ["bundle", "run", str(bundle), str(path), "--out", str(tmp_path / "b")]
    assert main([*run, "--device", "cpu"]) == 0
    assert medical("predict", path, *weights, "--out", tmp_path / "m") == 0
    (ours,) = (tmp_path / "m").glob("*.nii.gz")
    (theirs,) = (tmp_path / "b").glob("*.nii.gz")
    one, two = nibabel.load(ours), nibabel.load(theirs)
    np.testing.assert_allclose(one.affine, two.affine)
    np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(two.dataobj).squeeze())
    tune = ["bundle", "finetune", str(bundle), "--data", str(balls), "--out", str(tmp_path / "f")]
    assert main([*tune, "--epochs", "1", "--device", "cpu"]) == 0


def test_images_and_volumes_are_not_mixed(
    balls: Path, xrays: Path, medical, tmp_path: Path, capsys
) -> None:
    line = ["--task", "segmentation", *NETWORK, "--data.root", balls, "--data.root", xrays]
    assert medical("train", *line, "--out", tmp_path / "r") == 2
    assert "both images and volumes" in capsys.readouterr().err


def test_sequences_are_channels_from_training_to_bundles(medical, tmp_path: Path) -> None:
    """As BraTS: three sequences of a study; evaluate and predict take those of the training."""
    from crossband.apps.main import main

    root, random = tmp_path / "studies", np.random.default_rng(0)
    for number in range(8):
        put_volume(tmp_path / "one", f"s{number}", number)
        folder = root / f"s{number}"
        folder.mkdir(parents=True)
        image = nibabel.load(tmp_path / f"one/images/s{number}.nii.gz")
        (tmp_path / f"one/labels/s{number}.nii.gz").rename(folder / f"s{number}_seg.nii.gz")
        for name in ("flair", "t1ce", "t2"):
            noise = random.integers(0, 50, image.shape).astype(np.int16)
            values = noise if name == "flair" else np.asarray(image.dataobj) + noise
            one = nibabel.Nifti1Image(values, image.affine)
            nibabel.save(one, folder / f"s{number}_{name}.nii.gz")
    line = ["--task", "segmentation", *NETWORK, "--data.root", root, "--quiet"]
    line += ["--data.sequences", "flair", "t1ce", "t2", "--out", tmp_path / "r"]
    line += ["--optimizer.lr", "1e-2", "--loader.batch_size", 8, "--trainer.max_epochs", 4]
    assert medical("train", *line) == 0
    best = ["--weights", tmp_path / "r/best.safetensors"]
    assert read_config(best[1])["reading"]["colours"] is True
    assert medical("evaluate", *best, "--data.root", root, "--keep-ids") == 0
    results = json.loads((tmp_path / "r/evaluation/metrics.json").read_text())
    assert medical("predict", root, *best, "--out", tmp_path / "m", "--keep-ids") == 0
    for row in results["rows"]:
        stem = Path(row["image"]).name.removesuffix(".nii.gz")
        (found,) = (tmp_path / "m").glob(f"*{stem}.nii.gz")
        mask = np.asarray(nibabel.load(found).dataobj)
        path = root / row["image"]
        truth = nibabel.load(path.with_name(path.name.replace("flair", "seg")))
        truth = np.asarray(truth.dataobj)
        dice = 2 * (mask * truth).sum() / (mask.sum() + truth.sum())
        assert row["dice"]["foreground"] == pytest.approx(dice)
    assert len(list((tmp_path / "m").glob("*.nii.gz"))) == 8
    bundle = tmp_path / "bundle"
    assert medical("export", *best, "--format", "monai-bundle", "--out", bundle) == 0
    run = ["bundle", "run", str(bundle), str(root), "--out", str(tmp_path / "b")]
    assert main([*run, "--device", "cpu", "--set", "keep_ids=true"]) == 0
    ours = sorted((tmp_path / "m").glob("*.nii.gz"))
    theirs = sorted((tmp_path / "b").glob("*.nii.gz"))
    assert len(ours) == len(theirs) == 8
    for one, two in zip(ours, theirs, strict=True):
        a, b = (np.asarray(nibabel.load(path).dataobj).squeeze() for path in (one, two))
        assert (a != b).mean() < 2e-3  # logits that are all but equal, rounded in another layout


def test_a_bundle_takes_windows_of_volumes_and_leaves_single_slices_out(
    balls: Path, medical, tmp_path: Path, capsys
) -> None:
    from crossband.apps.main import main

    line = ["--task", "segmentation", *NETWORK, "--sliding", "--data.root", balls, "--quiet"]
    assert medical("train", *line, "--trainer.max_epochs", 1, "--out", tmp_path / "r") == 0
    weights, folder = ["--weights", tmp_path / "r/best.safetensors"], tmp_path / "scans"
    folder.mkdir()
    image = nibabel.load(balls / "images/case_01.nii.gz")
    nibabel.save(image, folder / "whole.nii.gz")
    nibabel.save(image.slicer[:, :, 3:4], folder / "slice.nii.gz")
    bundle = tmp_path / "bundle"
    assert medical("export", *weights, "--format", "monai-bundle", "--out", bundle) == 0
    run = ["bundle", "run", str(bundle), str(folder), "--out", str(tmp_path / "b")]
    assert main([*run, "--device", "cpu", "--set", "keep_ids=true"]) == 3
    assert "is a single slice" in "".join(capsys.readouterr())
    assert medical("predict", folder, *weights, "--out", tmp_path / "m", "--keep-ids") == 0
    (ours,) = (tmp_path / "m").glob("*whole.nii.gz")
    (theirs,) = (tmp_path / "b").glob("*.nii.gz")
    one, two = (np.asarray(nibabel.load(path).dataobj) for path in (ours, theirs))
    assert one.shape == two.shape and (one != two).mean() < 1e-3


def test_a_folder_of_pictures_is_no_series(
    trained: Path, balls: Path, medical, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "scans"
    put_volume(folder, "one", 1)
    (folder / "shots").mkdir()
    (folder / "shots/a.png").write_bytes(b"x")
    line = ["--weights", trained / "best.safetensors", "--out", tmp_path / "m"]
    assert medical("predict", folder, *line) == 0
    assert "passed over 2 file(s)" in capsys.readouterr().out
