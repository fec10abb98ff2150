"""`crossband medical train`: options that cannot be, and the shipped recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crossband.medical.cli import DOMAIN
from crossband.medical.data.synthetic import make_synthetic
from crossband.shared.cli.parser import parse, recipes_of

from .conftest import words


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--model", "chest_mae_vit_smal"), "Did you mean"),
        (("--model", "unet"), "gives masks: take --task segmentation"),
        (("--model", "densenet121", "--optimizer.layer_decay", 0.55), "is for plain ViTs"),
        (("--tuning", "lora"), "give pre-trained weights"),
        (("--tuning", "dvpt", "--optimizer.layer_decay", 0.55), "give --optimizer.layer_decay 1"),
        (("--loss.name", "ce"), "does not fit findings"),
        (("--loss.name", "ce_dice"), "dice is of masks"),
        (("--loss.class_weights", 1, 2), "give --loss.pos_weight"),
        (("--loss.pos_weight", 1, 2), "2 numbers for 5 outputs"),
        (("--loss.balance", -1), "a power above 0"),
        (("--data.labels", "Cardiomegally"), "Did you mean 'Cardiomegaly'"),
        (("--data.target", "weight"), "weight"),
        (("--data.val_fraction", 0.9, "--data.test_fraction", 0.2), "below 1"),
        (("--statistics", 0.5), "give mean and deviation"),
        (("--weights", "nowhere.pth"), "nowhere.pth does not exist"),
        (("--data.folds", 2, "--data.fold", 5), "a fold from 0"),
        (("--augment.resize", 16), "less than the crop of 32"),
        (("--augment.crop_min", 0), "between 0 and 1"),
        (("--augment.auto_augment", "hard"), "not a RandAugment policy"),
        (("--monitor", "dice"), "dice is of masks"),
        (("--model", "statistics", "--tuning", "linear"), "takes no --weights"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_options_that_cannot_work_are_one_sentence(
    xrays: Path, medical, tmp_path: Path, capsys, more: tuple, message: str
) -> None:
    assert medical("train", *words(xrays, tmp_path / "r"), *more, "--dry-run") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
    assert not (tmp_path / "r").exists()


def test_weights_of_another_network_are_refused(
    run: Path, lungs: Path, xrays: Path, medical, tmp_path: Path, capsys
) -> None:
    line = words(xrays, tmp_path / "r", "--dry-run")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    assert medical("train", *line, "--weights", tmp_path / "other.pth") == 2
    assert "other.pth" in capsys.readouterr().err
    wide = ["--network.arguments", "embed_dim=48", "depth=2", "num_heads=2", "patch_size=8"]
    assert medical("train", *line, "--weights", run / "best.safetensors", *wide) == 2
    error = capsys.readouterr().err
    assert str(run / "best.safetensors") in error and error.count("\n") == 1


@pytest.mark.parametrize("name", sorted(recipes_of(DOMAIN.verbs["train"])))
def test_recipes_read_their_first_batch(name: str, nih: Path, medical, tmp_path: Path) -> None:
    config = parse(DOMAIN.verbs["train"], ["--recipe", name])
    root = nih
    if config.task == "segmentation":
        root = make_synthetic(tmp_path / "x", 12, size=64, layout="csv")
    more = ["--loader.num_workers", 0, "--loader.batch_size", 2, "--data.val_fraction", 0.3]
    more += ["--dry-run", "--quiet"]
    if config.data.labels:  # CheXpert's names
        more += ["--data.labels", "Effusion", "Cardiomegaly"]
    if config.monitor == "accuracy":
        more += ["--data.target", "view"]
    line = ["--recipe", name, "--data.root", root, *more, "--out", tmp_path / "r"]
    assert medical("train", *line) == 0 and not (tmp_path / "r").exists()


def test_recipes_are_the_published_ones() -> None:
    verb = DOMAIN.verbs["train"]
    for name, rate in (("nih", 0.55), ("nih_base", 0.55), ("nih_cnn", 1.0), ("chexpert", 0.55)):
        config = parse(verb, ["--recipe", name])
        batch = 8 * config.loader.batch_size  # on the paper's eight devices
        assert batch == 1024 and config.optimizer.lr == pytest.approx(2.5e-4 * batch / 256)
        assert config.optimizer.layer_decay == rate and config.trainer.max_epochs == 75
        warmup = config.schedule.warmup_fraction * config.trainer.max_epochs
        assert warmup == pytest.approx(5, rel=1e-2)
        assert config.augment.auto_augment == "rand-m6-mstd0.5-inc1"
        assert config.select_on == "val"
