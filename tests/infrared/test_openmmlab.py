"""Two roads, one result: the shipped configs under mmseg's runner, the recipes under ours."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

for library in ("mmengine", "mmcv", "mmseg", "cv2"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: extra openmmlab", allow_module_level=True)

import crossband.infrared.openmmlab  # noqa: E402, F401, I001 - before mmseg
import unip_roads as roads  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from mmseg.evaluation import IoUMetric  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402

from crossband.infrared import networks  # noqa: E402
from crossband.infrared.config import EvaluateConfig, EvaluateSource  # noqa: E402
from crossband.infrared.data.synthetic import STREET, make_synthetic  # noqa: E402
from crossband.infrared.evaluation import evaluate  # noqa: E402
from crossband.infrared.segment import Segmenter  # noqa: E402
from crossband.infrared.training import window_facts  # noqa: E402
from crossband.infrared.unip.official import from_official, to_mmseg  # noqa: E402
from crossband.shared.checkpoints import load_checkpoint  # noqa: E402
from crossband.shared.errors import ConfigError  # noqa: E402
from crossband.shared.training.optimizers import poly_factor  # noqa: E402

SIRST = "unip-s_ll-fpn_upernet_sirst-512x512.py"
CLASSES = len(STREET)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14, 3 and 3 scenes of 72 x 96: some parts of windows lie outside after scaling."""
    return make_synthetic(tmp_path_factory.mktemp("street"), 20, size=(72, 96))


class Recorder(Hook):
    """Keeps loss and rate of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.rates.append(max(runner.optim_wrapper.get_lr()["lr"]))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.losses.append(outputs["loss"].item())


def runner(data: Path, out: Path, **options: Any) -> Runner:
    """Build the runner of the shipped config, made small."""
    settings = Config.fromfile(roads.RECIPES / SIRST)
    settings.merge_from_dict(roads.their_options(CLASSES) | {"data_root": str(data)})
    settings.merge_from_dict(options)
    settings.work_dir, settings.log_level = str(out), "ERROR"
    settings.experiment_name = f"{out.parent.name}-{out.name}"
    return Runner.from_cfg(settings)


@pytest.fixture(scope="module")
def both(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Both roads from the same weights: losses, rates, folders and what was trained."""
    folder = tmp_path_factory.mktemp("roads")
    config = roads.our_config(data)
    model, description = roads.our_network(CLASSES)
    start = roads.save(config, model, description, folder / "start.safetensors")
    losses, rates = roads.train_ours(config, model, folder / "ours")
    theirs = runner(data, folder / "theirs", load_from=str(start))
    recorder = Recorder()
    theirs.register_hook(recorder, priority="VERY_LOW")
    theirs.train()
    return {
        "ours": (losses, rates, model), "theirs": (recorder.losses, recorder.rates, theirs),
        "start": start, "folder": folder, "description": description, "config": config,
    }  # fmt: skip


class TestTraining:
    def test_every_loss_is_the_same(self, both: dict[str, Any]) -> None:
        ours, theirs = both["ours"][0], both["theirs"][0]
        assert len(ours) == len(theirs) == roads.STEPS
        np.testing.assert_allclose(theirs, ours, rtol=1e-5)
        assert max(ours) - min(ours) > 0.1  # it moves

    def test_every_rate_is_the_same(self, both: dict[str, Any]) -> None:
        ours, theirs = both["ours"][1], both["theirs"][1]
        np.testing.assert_allclose(theirs, ours, rtol=1e-6)
        expected = [
            roads.LR * poly_factor(i, roads.STEPS, roads.WARMUP) for i in range(roads.STEPS)
        ]
        np.testing.assert_allclose(ours, expected, rtol=1e-9)

    def test_the_weights_are_the_same(self, both: dict[str, Any]) -> None:
        ours = to_mmseg(both["ours"][2].state_dict())
        theirs = both["theirs"][2].model.state_dict()
        start = to_mmseg(load_checkpoint(both["start"]).state_dict)
        assert ours.keys() == theirs.keys()
        far, moved = {}, []
        for key, value in ours.items():
            difference, change = value - theirs[key], value - start[key]
            if key.endswith("qkv.bias"):  # the softmax takes the keys' bias out again
                query, _, value_part = range(3)
                thirds = [part.chunk(3) for part in (difference, change)]
                difference, change = (torch.cat([t[query], t[value_part]]) for t in thirds)
            step = change.float().norm()
            apart = difference.float().norm() / step.clamp(min=1e-6)
            moved += [key] if step else []
            if apart > 1e-3:
                far[key] = float(apart)
        # Adam divides by the gradient's size, so where that is rounding the steps are noise: biases
        # that a batch norm takes out again, and the mean that it takes them out by.
        noise = {"neck.fpn1.0.bias", "neck.fpn1.3.bias", "neck.fpn2.0.bias"}
        assert far.keys() <= noise | {"decode_head.lateral_convs.0.bn.running_mean"}, far
        assert len(moved) > 0.9 * len(ours)

    def test_chance_is_at_work_and_the_same(
        self, both: dict[str, Any], data: Path, tmp_path: Path
    ) -> None:
        """With another seed per step the first loss differs: drop path and dropout are on."""
        theirs = runner(
            data, tmp_path / "unseeded", load_from=str(both["start"]), custom_hooks=[],
            **{"train_cfg.max_iters": 1, "train_cfg.val_interval": 99},
        )  # fmt: skip
        recorder = Recorder()
        theirs.register_hook(recorder)
        theirs.train()
        assert abs(recorder.losses[0] / both["theirs"][0][0] - 1) > 1e-4

    def test_a_resumed_run_is_bitwise_the_same(
        self, both: dict[str, Any], data: Path, tmp_path: Path
    ) -> None:
        """Stopped in mid-epoch, after 6 of 8 steps of 4 a pass, and before a shorter last batch."""
        checkpoint = both["folder"] / "theirs" / "iter_6.pth"
        theirs = runner(data, tmp_path / "resumed", load_from=str(checkpoint), resume=True)
        recorder = Recorder()
        theirs.register_hook(recorder)
        theirs.train()
        assert recorder.losses == both["theirs"][0][6:]
        whole = both["theirs"][2].model.state_dict()
        for key, value in theirs.model.state_dict().items():
            assert torch.equal(value, whole[key]), key

    def test_the_run_folder_is_ours(self, both: dict[str, Any]) -> None:
        folder = both["folder"] / "theirs"
        checkpoint = load_checkpoint(folder / "best.safetensors")
        ours = both["description"]["arguments"]
        stored = checkpoint.config["model"]["arguments"]
        assert {key: stored[key] for key in ours} == ours
        assert checkpoint.config["classes"] == list(STREET)
        assert checkpoint.config["window"] == window_facts(both["config"])
        assert (folder / "report.html").is_file() and (folder / "metrics.csv").is_file()


def captured(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Have mmseg's metric keep the class IoU, which it prints only."""
    found: list[np.ndarray] = []
    plain = IoUMetric.total_area_to_metrics

    def keep(*arguments: Any, **options: Any) -> Any:
        metrics = plain(*arguments, **options)
        found.append(np.asarray(metrics["IoU"]))
        return metrics

    monkeypatch.setattr(IoUMetric, "total_area_to_metrics", staticmethod(keep))
    return found


def our_scores(weights: Path, root: Path, out: Path, split: str = "test") -> dict[str, Any]:
    source = EvaluateSource(root=[str(root)], split=split)
    evaluate(EvaluateConfig(weights=str(weights), data=source, out=str(out), quiet=True, worst=1))
    return json.loads((out / "metrics.json").read_text())


class TestScores:
    @pytest.mark.parametrize("made_by", ["ours", "theirs"])
    def test_the_same_on_the_same_weights(
        self, both: dict[str, Any], data: Path, tmp_path: Path, made_by: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        if made_by == "ours":
            config, description = both["config"], both["description"]
            path = roads.save(config, both["ours"][2], description, tmp_path / "ours.safetensors")
        else:
            path = both["folder"] / "theirs" / "best.safetensors"
        found = captured(monkeypatch)
        theirs = runner(data, tmp_path / "tested", load_from=str(path)).test()
        ours = our_scores(path, data, tmp_path / "scored")
        iou = [ours["classes"][name]["iou"] for name in STREET]
        np.testing.assert_allclose(found[0], iou, atol=2e-4)
        assert theirs["mIoU"] == pytest.approx(100 * ours["mIoU"], abs=0.02)
        assert theirs["aAcc"] == pytest.approx(100 * ours["aAcc"], abs=0.02)
        assert sum(np.array(iou) > 0.01) >= 1

    def test_on_real_frames_of_many_sizes(
        self, both: dict[str, Any], shared_dir: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        root = shared_dir / "data" / "infrared" / "sirst_v2"
        if not root.is_dir():
            pytest.skip("no SIRST here")
        config = roads.our_config(root, "--data.layout", "sirst")
        model, description = roads.our_network(2)
        path = roads.save(config, model, description, tmp_path / "x.safetensors")
        found = captured(monkeypatch)
        options = roads.their_options(2) | {
            f"{part}_dataloader.dataset.layout": "sirst" for part in ("train", "val", "test")
        }
        theirs = runner(root, tmp_path / "tested", load_from=str(path), **options)
        theirs.test()
        ours = our_scores(path, root, tmp_path / "scored")
        iou = [ours["classes"][name]["iou"] for name in ("background", "target")]
        np.testing.assert_allclose(found[0], iou, atol=1e-5)

    def test_logits_and_masks(self, both: dict[str, Any], data: Path, tmp_path: Path) -> None:
        """`inference_model` of mmseg's own interface against `Segmenter`."""
        from mmseg.apis import inference_model, init_model

        config, description = both["config"], both["description"]
        path = roads.save(config, both["ours"][2], description, tmp_path / "ours.safetensors")
        settings = Config.fromfile(roads.RECIPES / SIRST)
        settings.merge_from_dict(roads.their_options(CLASSES))
        settings.test_pipeline[1].scale = (2048, 80)
        theirs = init_model(settings, str(path), device="cpu")
        segmenter = Segmenter.load(path, device="cpu")
        for file in sorted((data / "images").iterdir())[:3]:
            pixels = read(file)
            sample = inference_model(theirs, str(file))
            logits = segmenter.logits(pixels)
            torch.testing.assert_close(sample.seg_logits.data, logits, rtol=1e-4, atol=1e-4)
            same = sample.pred_sem_seg.data[0].numpy() == segmenter.predict(pixels)
            assert same.mean() > 0.9999

    def test_images_smaller_than_a_window(self, both: dict[str, Any], tmp_path: Path) -> None:
        small = make_synthetic(tmp_path / "small", 4, size=(40, 100), seed=3)
        keep = {f"{part}_dataloader.dataset.scale.short_side": 0 for part in ("val", "test")}
        config = roads.our_config(small, "--data.scale.short_side", "0")
        saved = roads.save(
            config, both["ours"][2], both["description"], tmp_path / "ours.safetensors"
        )
        theirs = runner(small, tmp_path / "tested", load_from=str(saved), **keep).test()
        ours = our_scores(saved, small, tmp_path / "scored")
        assert theirs["mIoU"] == pytest.approx(100 * ours["mIoU"], abs=0.02)


def read(path: Path) -> np.ndarray:
    from crossband.infrared.data.frames import read_frame

    return read_frame(path)


def test_weights_convert_both_ways(both: dict[str, Any], tmp_path: Path) -> None:
    theirs = both["theirs"][2].model.state_dict()
    model, _ = roads.our_network(CLASSES)
    model.load_state_dict(from_official(theirs))  # strict
    back = to_mmseg(model.state_dict())
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in back)


def test_weights_of_both_roads_start_a_run_of_ours(both: dict[str, Any]) -> None:
    """mmseg's own file with its logs, and ours, as they are."""
    folder = both["folder"] / "theirs"
    last = to_mmseg(from_official(both["theirs"][2].model.state_dict()))
    for path in (folder / "iter_8.pth", folder / "best.safetensors"):
        fresh, _ = roads.our_network(CLASSES)
        networks.load_pretrained(fresh, str(path))
        if path.suffix == ".pth":
            assert all(torch.equal(v, last[k]) for k, v in to_mmseg(fresh.state_dict()).items())


def test_init_cfg_takes_checkpoints_of_both_roads(both: dict[str, Any]) -> None:
    small = {key: value for key, value in roads.TINY.items() if key != "drop_path_rate"}
    for path in (both["start"], both["folder"] / "theirs" / "best.safetensors"):
        theirs = MODELS.build({
            "type": "crossband.UNIPBackbone", "out_indices": (2,), "layer_scale_init": 1.0,
            "init_cfg": {"type": "Pretrained", "checkpoint": str(path)}, **small,
        })  # fmt: skip
        theirs.init_weights()
        state = load_checkpoint(path).state_dict
        own = {k.removeprefix("backbone.vit."): v for k, v in state.items() if ".vit." in k}
        assert all(torch.equal(v, own[k]) for k, v in theirs.state_dict().items())


def test_the_hook_refuses_what_predict_could_not_build(data: Path, tmp_path: Path) -> None:
    other = runner(data, tmp_path / "run", **{"model.decode_head.pool_scales": (1, 2)})
    with pytest.raises(ConfigError, match="not UNIP's network.*RunFolderHook"):
        other.train()


@pytest.mark.slow
def test_mmsegs_own_scripts_from_anywhere(data: Path, tmp_path: Path) -> None:
    tools = Path(importlib.util.find_spec("mmseg").origin).parent / ".mim" / "tools"
    options = roads.their_options(CLASSES) | {
        "data_root": data, "train_cfg.max_iters": 2, "train_cfg.val_interval": 2,
        "default_hooks.checkpoint.interval": 2,
    }  # fmt: skip
    words = [f"{key}={str(value).replace(' ', '')}" for key, value in options.items()]

    def script(name: str, *arguments: Any) -> str:
        command = [sys.executable, tools / name, roads.RECIPES / SIRST, *arguments]
        command += ["--work-dir", tmp_path / "run", "--cfg-options", *words]
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    script("train.py")
    best = tmp_path / "run" / "best.safetensors"
    for weights in (tmp_path / "run" / "iter_2.pth", best):
        text = script("test.py", weights)
        assert "mIoU" in text and "person" in text
    ours = our_scores(best, data, tmp_path / "scored")
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert results["best"]["step"] == 2  # what training wrote is kept
    theirs = results["test"]
    assert theirs["mIoU"] == pytest.approx(100 * ours["mIoU"], abs=0.02)
