from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from crossband.apps.main import main
from crossband.infrared.data.frames import read_frame
from crossband.infrared.data.synthetic import make_synthetic
from crossband.infrared.segment import Segmenter
from crossband.shared import load
from crossband.shared.errors import DataError


@pytest.fixture(scope="session")
def weights(run: Path) -> str:
    return str(run / "best.safetensors")


def test_evaluate_scores_and_reports(
    weights: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["infrared", "evaluate", "--weights", weights, "--data.root", str(scenes)]
    assert main([*words, "--out", str(tmp_path), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["protocol"]["images"] == 2 and "small_targets" not in results
    ious = [row["iou"] for row in results["classes"].values() if row["iou"] is not None]
    assert results["mIoU"] == pytest.approx(np.mean(ious))
    assert (tmp_path / "report.html").read_text().count("data:image/png") >= 2


def test_scores_are_those_of_the_predictions(weights: str, scenes: Path, tmp_path: Path) -> None:
    words = ["infrared", "evaluate", "--weights", weights, "--data.root", str(scenes)]
    assert main([*words, "--out", str(tmp_path), "--quiet"]) == 0
    results = json.loads((tmp_path / "metrics.json").read_text())
    segmenter = Segmenter.load(weights)
    hit = total = 0
    for name in (scenes / "test.txt").read_text().split():
        ids = segmenter.predict(read_frame(scenes / f"images/{name}.png"))
        mask = np.asarray(Image.open(scenes / f"masks/{name}.png"))
        hit, total = hit + int((ids == mask).sum()), total + mask.size
    assert results["aAcc"] == pytest.approx(hit / total)


def test_other_classes_are_refused(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_synthetic(tmp_path, 4, size=(48, 48), kind="targets")
    words = ["infrared", "evaluate", "--weights", weights, "--data.root", str(other)]
    assert main(words) == 2
    assert "knows 4 classes" in capsys.readouterr().err
    (tmp_path / "classes.txt").write_text("background\nroad\nperson\ncar\n")
    assert main(words) == 2
    assert "class 2 is 'car'" in capsys.readouterr().err


def test_predict_writes_ids_colours_overlays_and_areas(
    weights: str, scenes: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    (source / "deep").mkdir(parents=True)
    frame = read_frame(scenes / "images/scene_0000.png")
    Image.fromarray(frame).save(source / "a.png")
    cv2.imwrite(str(source / "deep/b.png"), frame.astype(np.uint16) * 10 + 7000)
    (source / "broken.png").write_bytes(b"nothing")
    (source / "notes.txt").write_text("hello")
    out = tmp_path / "out"
    assert main(["infrared", "predict", str(source), "--weights", weights, "--out", str(out)]) == 3
    ids = np.asarray(Image.open(out / "a.png"))
    assert np.array_equal(ids, Segmenter.load(weights).predict(frame))
    assert np.asarray(Image.open(out / "a_colour.png")).shape == (*frame.shape, 3)
    assert (out / "a_overlay.jpg").is_file() and (out / "deep/b.png").is_file()
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [("error" in line) for line in lines] == [False, True, False]
    assert sum(lines[0]["pixels"].values()) == frame.size
    assert sum(lines[0]["area"].values()) == pytest.approx(1, abs=1e-4)


def test_videos_and_pages_get_a_mask_per_frame(weights: str, scenes: Path, tmp_path: Path) -> None:
    import tifffile

    pages = np.stack([read_frame(scenes / f"images/scene_{i:04d}.png") for i in (0, 1)])
    tifffile.imwrite(tmp_path / "film.tiff", pages, photometric="minisblack")
    out = tmp_path / "out"
    words = ["infrared", "predict", str(tmp_path / "film.tiff"), "--weights", weights]
    assert main([*words, "--out", str(out), "--overlay", "false"]) == 0
    assert sorted(p.name for p in out.glob("*.png")) == [
        *("film_tiff_00000.png", "film_tiff_00000_colour.png"),
        *("film_tiff_00001.png", "film_tiff_00001_colour.png"),
    ]
    entry = json.loads((out / "predictions.jsonl").read_text())
    assert [frame["frame"] for frame in entry["frames"]] == [0, 1]


def test_predict_never_replaces_an_input(
    weights: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = read_frame(scenes / "images/scene_0000.png")
    Image.fromarray(frame).save(tmp_path / "a.png")
    words = ["infrared", "predict", str(tmp_path), "--weights", weights, "--out", str(tmp_path)]
    assert main(words) == 2
    assert "write over the input" in capsys.readouterr().err
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), frame)


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_exported_networks_predict_the_same(
    weights: str, scenes: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"net.{kind}"
    words = ["infrared", "export", "--weights", weights, "--format", kind, "--out", str(path)]
    assert main(words) == 0
    frame = read_frame(scenes / "images/scene_0001.png")
    exported, own = load(path), load(weights)
    theirs, ours = exported.logits(frame), own.logits(frame)
    assert float((theirs - ours).abs().max()) < 1e-3
    assert (theirs.argmax(0) == ours.argmax(0)).float().mean() > 0.999


def test_arrays_that_are_no_images(weights: str) -> None:
    with pytest.raises(DataError, match="is no image"):
        Segmenter.load(weights).predict(np.zeros((4, 4), np.float32))


def test_random_weights_are_never_used(
    scenes: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["infrared", "predict", str(scenes / "images"), "--out", str(tmp_path)]
    assert main([*words, "--weights", "nothing.safetensors"]) == 2
    assert "nothing.safetensors" in capsys.readouterr().err


def test_the_threshold_is_the_best_on_the_images_it_is_chosen_on(run: Path, scenes: Path) -> None:
    from crossband.infrared.data.layouts import Item
    from crossband.infrared.scoring import best_threshold

    class Shifted:
        """Logits of class 1 that are 3 too high, and one that is false all the same."""

        def logits(self, pixels: np.ndarray, window: object) -> torch.Tensor:
            ahead = torch.from_numpy(pixels.astype(np.float32)) / 10 - 8 + 3
            return torch.stack([torch.zeros_like(ahead), ahead])

    class Two:
        def read(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
            pixels = np.array([[100, 100, 20, 60, 90]], np.uint8)  # ahead by 5, 5, -3, 1, 4
            return pixels, np.array([[1, 1, 0, 0, 255]], np.uint8)

    item = Item("a", Path("a"), Path("a"))
    found = best_threshold(Shifted(), [item], Two())  # type: ignore[arg-type]
    assert 1 < found <= 5


def test_offsets_of_a_checkpoint_move_the_threshold(run: Path, scenes: Path) -> None:
    segmenter = Segmenter.load(run / "best.safetensors")
    frame = read_frame(scenes / "images/scene_0000.png")
    plain = segmenter.logits(frame)
    segmenter.offsets = torch.tensor([0.0, 0.0, 0.0, 1e4]).view(-1, 1, 1)
    assert (segmenter.predict(frame) == 3).all()
    torch.testing.assert_close(segmenter.logits(frame)[:3], plain[:3])


def test_results_of_equal_names_are_refused(
    weights: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = Image.fromarray(read_frame(scenes / "images/scene_0000.png"))
    for folder in ("day", "night"):
        (tmp_path / folder).mkdir()
        frame.save(tmp_path / folder / "a.png")
    words = ["infrared", "predict", str(tmp_path / "day"), str(tmp_path / "night")]
    assert main([*words, "--weights", weights, "--out", str(tmp_path / "out")]) == 2
    assert "would both become" in capsys.readouterr().err
    both = ["infrared", "predict", str(tmp_path), "--weights", weights]
    assert main([*both, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/night/a.png").is_file()


def test_no_threshold_without_targets() -> None:
    from crossband.infrared.data.layouts import Item
    from crossband.infrared.scoring import best_threshold

    class Nothing:
        classes = ("background", "target")

        def read(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
            return np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)

        def logits(self, pixels: np.ndarray, window: object) -> torch.Tensor:
            return torch.zeros(2, 4, 4)

    item = Item("a", Path("a"), Path("a"))
    with pytest.raises(DataError, match="no threshold can be chosen"):
        best_threshold(Nothing(), [item], Nothing())  # type: ignore[arg-type]


def test_images_of_any_size_go_through_whole(scenes: Path) -> None:
    from crossband.shared.heads.vit_segmentor import ViTSegmentor

    torch.manual_seed(0)
    size = {"embed_dim": 24, "depth": 1, "num_heads": 2, "img_size": 32}
    model = ViTSegmentor(num_classes=3, detail=4, **size).eval()
    with torch.no_grad():
        for height, width in ((33, 47), (16, 16), (5, 5), (15, 200)):
            assert model(torch.randn(1, 3, height, width)).shape == (1, 3, height, width)
