from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from crossband.apps.main import main
from crossband.medical.data.synthetic import make_synthetic

# Of a ViT that is quick on one core, and of the images that it takes.
SIZES = ("embed_dim=24", "depth=2", "num_heads=2", "patch_size=8")
SMALL = ("--size", 32, "--augment.auto_augment", "", "--loader.batch_size", 8)
TINY = (
    *("--model", "chest_mae_vit_tiny", "--network.arguments", *SIZES, "--network.drop_path", 0),
    *SMALL,
)
LUNGS = (
    *(*TINY, "--task", "segmentation", "--size", 64, "--network.arguments", *SIZES[:3]),
    *("patch_size=16", "channels=[4,8,8,16]"),
)
MASKED = ("decoder_embed_dim=16", "decoder_depth=1", "decoder_num_heads=2")


def words(root: Path, out: Path, *more: object) -> list[object]:
    """Return the options of a short `train`."""
    return [*TINY, "--data.root", root, "--out", out, "--quiet", *more]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks are fastest on one, and equal to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def nih(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-two drawn chests of 64 x 64 as NIH ChestX-ray14 has them."""
    return make_synthetic(tmp_path_factory.mktemp("nih"), 32, size=64)


@pytest.fixture(scope="session")
def xrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-two drawn chests of 64 x 64 with a csv and lung masks."""
    return make_synthetic(tmp_path_factory.mktemp("xrays"), 32, size=64, layout="csv")


@pytest.fixture(scope="session")
def dicoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as DICOM files, half of them MONOCHROME1, with names in the headers."""
    root = tmp_path_factory.mktemp("dicoms")
    return make_synthetic(root, 32, size=64, layout="csv", format="dicom")


@pytest.fixture(scope="session")
def medical() -> Callable[..., int]:
    """Run `crossband medical ...` on the CPU."""

    def run(verb: str, *words: object) -> int:
        device = [] if verb.startswith(("data", "export")) else ["--device", "cpu"]
        return main(["medical", *verb.split(), *map(str, words), *device])

    return run


@pytest.fixture(scope="session")
def mae(nih: Path, medical, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of two epochs of `pretrain --method mae`."""
    out = tmp_path_factory.mktemp("mae") / "run"
    words = ["--model", "vit_tiny", "--size", 32, "--arguments", *SIZES, *MASKED, "--quiet"]
    words += ["--data.root", nih, "--loader.batch_size", 8, "--trainer.max_epochs", 2]
    assert medical("pretrain", *words, "--mask_ratio", 0.75, "--out", out) == 0
    return out / "best.safetensors"


@pytest.fixture(scope="session")
def run(xrays: Path, medical, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a classifier of five findings, trained for two epochs."""
    out = tmp_path_factory.mktemp("run") / "findings"
    words = [*TINY, "--data.root", xrays, "--optimizer.lr", "2e-3", "--quiet", "--out", out]
    assert medical("train", *words, "--trainer.max_epochs", 2) == 0
    return out


@pytest.fixture(scope="session")
def lungs(xrays: Path, medical, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a segmentation network, trained for three epochs."""
    out = tmp_path_factory.mktemp("lungs") / "run"
    words = [*LUNGS, "--data.root", xrays, "--optimizer.lr", "5e-3", "--quiet", "--out", out]
    assert medical("train", *words, "--trainer.max_epochs", 3) == 0
    return out


@pytest.fixture(scope="session")
def exported(run: Path, medical, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier as .pt2."""
    path = tmp_path_factory.mktemp("exported") / "chest.pt2"
    line = ["--weights", run / "best.safetensors", "--format", "pt2", "--out", path]
    assert medical("export", *line, "--quiet") == 0
    return path
