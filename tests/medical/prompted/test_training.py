"""The mask decoder learns, the encoder runs once per image, and a run can be gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from crossband.medical.data.masks import MaskClasses
from crossband.medical.data.records import Record
from crossband.medical.jobs import reading
from crossband.medical.privacy import Names
from crossband.medical.prompted.items import BoxItems, look
from crossband.medical.prompted.maps import MapStore
from crossband.medical.prompted.training import describe, freeze, load, prepare
from crossband.shared.checkpoints import read_config
from crossband.shared.errors import CheckpointError, ConfigError, DataError
from crossband.shared.promptable import SAM
from crossband.shared.training import loop
from crossband.shared.training.sampler import EpochIndex

from .conftest import options, sam


def test_a_run_leaves_what_every_run_leaves(prompted: Path, weights: Path) -> None:
    folder = prompted.parent
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "metrics.csv", "metrics.json", "last.ckpt", "report.html"} <= names
    config = read_config(prompted)
    results = json.loads((folder / "metrics.json").read_text())
    dice = results["val"]["dice"]["value"]
    assert config["metrics"] == {"val_mean_dice": dice} and 0 <= dice <= 1
    assert "masks themselves" in results["protocol"]["boxes"]
    assert results["val"]["classes"]["lung"]["iou"]["low"] is not None
    assert "not a medical device" in (folder / "report.html").read_text()
    before, after = torch.load(weights), load_file(prompted)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and all(key.startswith("mask_decoder.") for key in changed)
    assert not any("iou_prediction_head" in key for key in changed)


def test_boxes_and_images_become_lungs(xrays: Path, weights: Path, trainer, tmp_path) -> None:
    more = ("--trainer.max_epochs", 20, "--optimizer.lr", "1e-2")
    folder, task = trainer(options(xrays, weights, *more), tmp_path / "r")
    results = json.loads(folder.results.read_text())
    assert results["headline"]["dice"] > 0.6
    losses = [row["val_loss"] for row in results["history"]]
    assert losses[-1] < 0.7 * losses[0]
    assert all(group["amsgrad"] for group in task.trainer.optimizers[0].param_groups)


def test_the_encoder_runs_once_for_each_image(
    xrays: Path, weights: Path, trainer, tmp_path: Path, monkeypatch
) -> None:
    calls = []
    encode = SAM.encode
    monkeypatch.setattr(
        SAM, "encode", lambda self, x: calls.append((len(x), self.training)) or encode(self, x)
    )
    config = options(xrays, weights, "--trainer.max_epochs", 3)
    job = prepare(config)
    images = len(job.train.images) + len(job.val.images)
    calls.clear()
    trainer(config, tmp_path / "r")
    # Once in the trial, once in training; validation images again for their scores and pictures.
    again = len(job.val.images) + min(6, len(job.val.images))
    assert len(calls) == 1 + images + again and {count for count, _ in calls} == {1}


@pytest.mark.parametrize("gigabytes", [2.0, 0.0])
def test_maps_are_the_encoders_wherever_they_are_kept(
    xrays: Path, weights: Path, gigabytes: float, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = options(xrays, weights)
    job, model = prepare(config), sam()
    records = [image.record for image in job.train.images]
    store = MapStore(records, reading(config), gigabytes)
    first, places = store.maps(model, [3, 0, 3])
    assert places == [0, 1, 2] and torch.equal(first[0], first[2])
    again, _ = store.maps(sam(seed=1), [0, 3])  # other weights are not asked
    assert torch.equal(again, first[[1, 0]])
    assert len(list(tmp_path.glob("crossband-maps-*/*.npy"))) == (0 if gigabytes else 2)
    pixels = torch.tensor(reading(config).read(records[3].path)).float().expand(3, -1, -1)
    wanted = model.encode(model.preprocess(pixels)[None])
    torch.testing.assert_close(first[:1], wanted, rtol=2e-3, atol=2e-3)
    store.clear()
    other, _ = store.maps(sam(seed=1), [3])
    assert not torch.allclose(other[0], first[0], atol=1e-2)
    del store
    assert not list(tmp_path.glob("crossband-maps-*"))


@pytest.mark.parametrize("stop", [3, 7])
def test_a_stopped_run_ends_with_the_same_weights(
    xrays: Path, weights: Path, trainer, tmp_path: Path, monkeypatch, stop: int
) -> None:
    class Stop(loop.ReseedEachStep):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if trainer.global_step == stop:
                raise RuntimeError("killed")

    more = ("--trainer.max_epochs", 3, "--trainer.save_every_n_steps", 2)
    config = options(xrays, weights, *more, "--trainer.ema_decay", 0.9)
    whole, _ = trainer(config, tmp_path / "whole")
    make = loop.Trainer
    with monkeypatch.context() as patch:
        patch.setattr(
            loop,
            "Trainer",
            lambda *, callbacks, **kw: make(callbacks=[*callbacks, Stop(0)], **kw),
        )
        with pytest.raises(RuntimeError, match="killed"):
            trainer(config, tmp_path / "parts")
    parts, _ = trainer(config, tmp_path / "parts", resume=True)
    a, b = load_file(whole.best), load_file(parts.best)
    assert all(torch.equal(a[key], b[key]) for key in a)
    states = [torch.load(folder.last, weights_only=True)["state_dict"] for folder in (whole, parts)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_boxes_of_training_differ_by_epoch_and_those_of_validation_do_not(
    xrays: Path, weights: Path
) -> None:
    config = options(xrays, weights)
    one, two = prepare(config), prepare(config)
    first = [one.train[EpochIndex(0, epoch)]["box"] for epoch in (0, 1)]
    assert not torch.equal(*first)
    assert torch.equal(two.train[EpochIndex(0, 1)]["box"], first[1])
    exact = one.train.images[0].boxes[0]
    assert np.abs(first[0].numpy() - exact).max() <= 64 * 20 / 1024
    assert torch.equal(one.val[EpochIndex(0, 0)]["box"], one.val[EpochIndex(0, 5)]["box"])
    assert one.val[0]["image"] == len(one.train.images)
    item = one.train[0]
    assert item["mask"].shape == (1, 32, 32) and item["mask"].any()


def test_an_item_for_each_class_that_can_be_seen(tmp_path: Path, capsys) -> None:
    ids = np.zeros((128, 64), np.uint8)
    ids[10:60, 5:40], ids[100:120, 10:60], ids[127, 63] = 1, 2, 3
    blank = np.zeros((64, 64), np.uint8)
    records = []
    for name, mask in (("a", ids), ("b", blank), ("c", ids[::2, ::2]), ("Doe", None)):
        image, path = tmp_path / f"{name}.png", tmp_path / f"{name}_mask.png"
        size = (128, 64) if name == "c" else (64, 64) if mask is None else mask.shape
        Image.fromarray(np.zeros(size, np.uint8)).save(image)
        if mask is None:
            path.write_bytes(b"nothing")
        else:
            Image.fromarray(mask).save(path)
        records.append(Record(image, image.name, mask=path))
    config = options(tmp_path, tmp_path)
    classes = MaskClasses(("background", "x", "y", "z"))
    found, small = look(records, reading(config), classes, 64, 16, Names(False))
    assert small == 1 and [image.kinds.tolist() for image in found] == [[1, 2], [], [1, 2]]
    assert "Doe" not in (error := capsys.readouterr().err) and "cannot be read" in error
    assert found[0].inner == (64, 32) and found[0].boxes[0].tolist() == [2.5, 5, 19.5, 29.5]
    items = BoxItems(found, 16, first=7)
    assert [int(items[n]["image"]) for n in range(len(items))] == [7, 7, 9, 9]
    masks = torch.stack([items[n]["mask"] for n in range(len(items))])
    assert masks[0].sum() > 0 and not (masks[0] & masks[1]).any()
    assert (masks[0] == masks[2]).float().mean() > 0.95  # a mask of half the image's size
    with pytest.raises(DataError, match="None of the 1 mask shows one of the classes"):
        look(records[1:2], reading(config), classes, 64, 16, Names(False))


def test_broken_files_are_told_and_left_out(
    xrays: Path, weights: Path, trainer, tmp_path: Path, capsys
) -> None:
    root = tmp_path / "x"
    shutil.copytree(xrays, root)
    records = [image.record for image in prepare(options(root, weights)).train.images]
    records[0].path.write_bytes(records[0].path.read_bytes()[:300])  # the header is all right
    records[1].mask.write_bytes(b"nothing")
    config = options(root, weights, "--trainer.max_epochs", 2, "--loader.batch_size", 8)
    trainer(config, tmp_path / "r")
    error = capsys.readouterr().err
    assert error.count("left out: ") == 2 and "image-" in error
    assert records[0].path.stem not in error and records[1].mask.stem not in error
    store = MapStore(records[:1], reading(config), 1.0)
    with pytest.raises(DataError, match="None of the 2 images of a batch can be read"):
        store.maps(sam(), [0, 0])


def test_another_encoder_is_put_in(xrays: Path, weights: Path, tmp_path: Path) -> None:
    other = {
        key.removeprefix("image_encoder."): value
        for key, value in sam(seed=5).state_dict().items()
        if key.startswith("image_encoder.") and not key.endswith("pos_embed")
    }
    path = tmp_path / "lvmmed_vit.pth"
    torch.save(other, path)
    config, model = options(xrays, weights, "--network.encoder", path), sam(seed=9)
    line = load(model, config)
    assert "sam.pth" in line and "lvmmed_vit.pth" in line
    assert not model.image_encoder.pos_embed.any()
    state, whole = model.state_dict(), torch.load(weights)
    for key, value in other.items():
        assert torch.equal(state[f"image_encoder.{key}"], value)
    rest = [key for key in whole if not key.startswith("image_encoder.")]
    assert len(rest) > 50 and all(torch.equal(state[key], whole[key]) for key in rest)
    larger = sam(img_size=96)
    load(larger, config)
    assert larger.image_encoder.pos_embed.shape == (1, 12, 12, 16)
    with pytest.raises(CheckpointError, match="it goes|goes to --network.encoder"):
        load(model, options(xrays, path))
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="does not fit"):
        load(model, config)


def test_our_checkpoint_is_taken_too(xrays: Path, prompted: Path) -> None:
    model = sam(seed=9)
    load(model, options(xrays, prompted))
    state = load_file(prompted)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_what_is_trained_gets_a_gradient() -> None:
    model = sam()
    freeze(model)
    model(torch.randn(1, 3, 64, 64)).square().mean().backward()
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        assert (grad is not None) == parameter.requires_grad, name
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith("mask_decoder.") for name in trained)


def test_sizes_by_name() -> None:
    config = options(Path("x"), None)
    for letter, width in (("l", 1024), ("h", 1280)):
        config.model = f"sam_vit_{letter}_prompted"
        config.network.arguments = {}
        assert describe(config, 2)["arguments"]["embed_dim"] == width
    config.model = "unet"
    with pytest.raises(ConfigError, match="takes no boxes"):
        describe(config, 2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--loss.name", "ce"), "takes dice_ce"),
        (("--loss.class_weights", 1, 2), "do nothing"),
        (("--tuning", "linear"), "leave it out"),
        (("--monitor", "auroc"), "take dice or loss"),
        (("--size", 60), "a multiple of 8"),
        (("--network.arguments", "patch_size=2"), "a multiple of 4"),
        (("--sliding", "true"), "SAM's own statistics"),
    ],
)
def test_options_that_cannot_work(
    xrays: Path, weights: Path, more: tuple[object, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(options(xrays, weights, *more))


def test_random_encoders_are_refused(xrays: Path, nih: Path, weights: Path) -> None:
    for call in (prepare, lambda config: load(sam(), config)):
        with pytest.raises(ConfigError, match="give --weights sam_vit_b_01ec64.pth"):
            call(options(xrays, None))
    with pytest.raises(DataError, match="has a mask"):
        prepare(options(nih, weights))
