"""`crossband medical train`: options that cannot be, and the shipped recipes."""

from __future__ import annotations

from pathlib import Path

import crossband.shared.compat  # noqa: F401 - before timm, which imports torchvision

import nibabel
import numpy as np
import pytest
import torch

from crossband.medical.cli import DOMAIN
from crossband.medical.config import TrainConfig
from crossband.medical.data.synthetic import make_synthetic
from crossband.shared import create_model
from crossband.shared.cli.parser import parse, recipes_of

from .conftest import words

TRAIN_RECIPES = recipes_of(DOMAIN.verbs["train"])


def _here(config: TrainConfig) -> bool:
    return config.task != "detection" and not config.model.endswith("_prompted")


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


RECIPES = {n: parse(DOMAIN.verbs["train"], ["--recipe", n]) for n in TRAIN_RECIPES}


def volumes_for(config: TrainConfig, root: Path) -> Path:
    """Write three small studies as a recipe wants them."""
    random = np.random.default_rng(0)
    values = config.data.mask_values or range(len(config.data.classes))
    for number in range(4):
        folder = root / f"study_{number}"
        folder.mkdir(parents=True)
        mask = random.choice(list(values), (16, 16, 4)).astype(np.int16)
        for name in config.data.sequences or [""]:
            image = nibabel.Nifti1Image((random.random((16, 16, 4)) * 900).astype(np.int16), None)
            nibabel.save(image, folder / f"study_{number}{'_' if name else ''}{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(mask, None), folder / f"study_{number}_seg.nii.gz")
    return root


@pytest.mark.parametrize("name", sorted(n for n, c in RECIPES.items() if _here(c)))
def test_recipes_read_their_first_batch(name: str, nih: Path, medical, tmp_path: Path) -> None:
    """Those of boxes and of prompts are tried with their own data, in their own tests."""
    config, root = RECIPES[name], nih
    if config.data.layout == "volumes":
        root = volumes_for(config, tmp_path / "x")
    elif config.task == "segmentation":
        root = make_synthetic(tmp_path / "x", 12, size=64, layout="csv")
    more = ["--loader.num_workers", 0, "--loader.batch_size", 2, "--data.val_fraction", 0.3]
    more += ["--dry-run", "--quiet", "--size", min(config.size, 224)]
    if config.data.labels:  # CheXpert's names
        more += ["--data.labels", "Effusion", "Cardiomegaly"]
    if config.monitor == "accuracy":
        more += ["--data.target", "view"]
    if config.tuning == "linear":
        torch.save(create_model("lvm_med_resnet50").state_dict(), tmp_path / "lvmmed_resnet.torch")
        more += ["--weights", tmp_path / "lvmmed_resnet.torch"]
    line = ["--recipe", name, "--data.root", root, *more, "--out", tmp_path / "r"]
    assert medical("train", *line) == 0 and not (tmp_path / "r").exists()


def test_recipes_of_the_15_tasks_are_there() -> None:
    """Dossier, section 5: rates, epochs, sizes and batches of the ResNet-50."""
    told = {
        "isic2018": (1e-4, 35, 512, 16),
        "jsrt": (1e-3, 50, 224, 32),
        "kvasir": (1e-3, 35, 224, 64),
        "drive": (1e-3, 50, 224, 16),
        "buid": (1e-4, 50, 256, 8),
        "brats": (1.5e-3, 20, 224, 128),
        "mmwhs_ct": (1e-3, 20, 224, 64),
        "mmwhs_mr": (1.5e-3, 30, 224, 64),
        "prostate": (1e-3, 30, 224, 64),
    }
    for name, numbers in told.items():
        c = RECIPES[name]
        found = (c.optimizer.lr, c.trainer.max_epochs, c.size, c.loader.batch_size)
        assert found == numbers and c.optimizer.name == "adam" and c.loss.name == "ce_dice_all"
        assert c.trainer.gradient_clip_val == 1.0 and c.model == "resnet50"
    for name, rate, head, size in (
        ("brain", 5e-4, [512, 256], 224),
        ("fgadr", 1e-3, [512, 128], 480),
    ):
        full, linear = RECIPES[name], RECIPES[f"{name}_linear"]
        assert full.network.head == head and full.tuning == "full" and full.size == size
        assert linear.network.head == [] and linear.tuning == "linear"
        assert full.optimizer.lr == linear.optimizer.lr == rate
    for name, rate in (("vindr", 1e-4), ("kvasir_detection", 2.5e-4)):
        c = RECIPES[name]
        assert (c.task, c.size, c.optimizer.lr) == ("detection", 512, rate)


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
