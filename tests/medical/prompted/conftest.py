from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crossband.medical.cli import DOMAIN
from crossband.medical.config import TrainConfig
from crossband.medical.prompted.training import describe, load, prepare
from crossband.shared.cli.parser import dump_config, parse
from crossband.shared.promptable import SAM
from crossband.shared.registry import create_model
from crossband.shared.training.loop import Data, fit
from crossband.shared.training.run_folder import RunFolder

TINY: dict[str, Any] = {
    "img_size": 64, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "out_chans": 32,
    "window_size": 3, "global_attn_indexes": (1,), "decoder_heads": 4, "decoder_mlp_dim": 32,
    "iou_head_hidden_dim": 16,
}  # fmt: skip
ARGUMENTS = (
    *("patch_size=8", "embed_dim=16", "depth=2", "num_heads=2", "out_chans=32", "window_size=3"),
    *("global_attn_indexes=[1]", "decoder_heads=4", "decoder_mlp_dim=32", "iou_head_hidden_dim=16"),
)


def sam(seed: int = 0, **arguments: Any) -> SAM:
    torch.manual_seed(seed)
    return SAM(**(TINY | arguments)).eval()


def options(root: Path, weights: Path | None, *more: object) -> TrainConfig:
    """Return the options of a short run."""
    words = ["--task", "segmentation", "--model", "sam_vit_b_prompted", "--size", 64, "--quiet"]
    words += ["--network.arguments", *ARGUMENTS, "--data.root", root, "--device", "cpu"]
    words += ["--optimizer.name", "adam", "--optimizer.lr", "2e-3", "--optimizer.weight_decay", 0]
    words += ["--loader.batch_size", 4, "--trainer.max_epochs", 2]
    words += ["--weights", weights] if weights else []
    return parse(DOMAIN.verbs["train"], [*map(str, words), *map(str, more)])


def train(config: TrainConfig, out: Path, *, resume: bool = False) -> tuple[RunFolder, Any]:
    """Train as `crossband medical train` does; return the folder and the task."""
    folder = RunFolder(out)
    job = prepare(config)
    description = describe(config, len(job.classes))
    torch.manual_seed(config.seed)
    model = create_model(description["name"], **description["arguments"])
    if not resume:  # a resumed run takes its own
        load(model, config)
    task = job.task(model)
    with torch.no_grad():
        task.eval().loss({k: v[None] for k, v in job.train[0].items()})
    folder.save_config_text(dump_config(config))
    facts = {"model": description, **job.facts}
    data = Data(job.train, job.val, config.loader, config.seed)
    book = fit(
        task.train(), data, folder, config.trainer, config, describe=lambda: facts, resume=resume
    )
    job.finish(folder, book)
    return folder, task


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of a small SAM, as the authors publish theirs."""
    path = tmp_path_factory.mktemp("sam") / "sam.pth"
    torch.save(sam().state_dict(), path)
    return path


@pytest.fixture(scope="session")
def prompted(xrays: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Best weights of a short run on the lungs of drawn chests."""
    out = tmp_path_factory.mktemp("prompted") / "run"
    config = options(xrays, weights, "--data.classes", "background", "lung")
    return train(config, out)[0].best


@pytest.fixture(scope="session")
def trainer() -> Callable[..., Any]:
    return train
