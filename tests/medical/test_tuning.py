"""`--tuning`: few parameters beside a frozen network, in a file of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from crossband.medical import networks
from crossband.medical.config import TrainConfig
from crossband.medical.data.radiographs import read_radiograph
from crossband.shared import load
from crossband.shared.errors import CheckpointError

from .conftest import words


@pytest.mark.parametrize(
    ("tuning", "trained", "part"),
    [
        (("linear",), ("head.",), 1 / 10),
        (("lora", "--tuner.rank", 2), ("head.", "fc_norm.", "lora_"), 1 / 5),
        (("dvpt", "--tuner.prompts", 4, "--tuner.rank", 2), ("head.", "fc_norm.", "!"), 1 / 2),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_tuning_trains_what_it_says(
    mae: Path, xrays: Path, medical, tmp_path: Path, capsys, tuning, trained, part
) -> None:
    base = shutil.copy(mae, tmp_path / "mae.safetensors")
    out = tmp_path / "r"
    more = ["--tuning", *tuning, "--weights", base, "--optimizer.lr", "1e-2"]
    assert medical("train", *words(xrays, out, *more), "--trainer.max_epochs", 2) == 0
    best, tuned = out / "best.safetensors", out / "tuned.safetensors"
    # What came with the base file is as it was; what moved is the head and what was added.
    before, whole = load_file(base), load_file(best)
    kept = {k: k.replace(".layer.", ".") for k in whole if k in before}
    assert len(kept) >= 28 - 4 and all(torch.equal(whole[k], before[k]) for k in kept)
    moved = load_file(tuned).keys()
    assert not moved & before.keys() and "head.weight" in moved
    if "!" not in trained:
        assert all(any(word in key for word in trained) for key in moved)
    assert tuned.stat().st_size < best.stat().st_size
    numbers = sum(v.numel() for v in load_file(tuned).values())
    assert numbers < part * sum(v.numel() for v in whole.values())
    # The part and its base give what the whole gives.
    image = read_radiograph(sorted((xrays / "images").iterdir())[0]).pixels
    assert load(tuned).predict(image) == pytest.approx(load(best).predict(image), abs=1e-7)
    assert load(tuned).thresholds == load(best).thresholds
    capsys.readouterr()
    bundle = ["--format", "monai-bundle", "--out", tmp_path / "bundle"]
    assert medical("export", "--weights", tuned, *bundle) == 2
    assert "give best.safetensors" in capsys.readouterr().err
    moved_on = tmp_path / "elsewhere"
    shutil.copytree(out, moved_on)
    shutil.move(base, moved_on / "mae.safetensors")  # beside the part it is found too
    there = load(moved_on / "tuned.safetensors").predict(image)
    assert there == pytest.approx(load(best).predict(image), abs=1e-7)
    with pytest.raises(CheckpointError, match="is not there"):
        load(tuned)
    other = {k: v + 1e-3 for k, v in before.items()}
    save_file(other, base)
    with pytest.raises(CheckpointError, match="has changed since"):
        load(tuned)
    line = ["--weights", tuned, "--out", tmp_path / "f.csv"]
    assert medical("predict", xrays / "images", *line) == 2
    assert "has changed since" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["densenet121", "resnet50"])
def test_the_head_of_a_cnn_alone(model: str) -> None:
    """Statistics of batches stay too, so that the base is as it was."""
    pytest.importorskip("monai", reason="extra medical")
    config = TrainConfig(model=model, tuning="linear")
    description = networks.describe(config, 3)
    network = networks.build(description)
    networks.tune(network, description)
    head = networks.head_of(network)
    learned = {name for name, p in network.named_parameters() if p.requires_grad}
    assert learned == {f"{head}.weight", f"{head}.bias"}
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network.train()(torch.randn(2, 3, 64, 64)).sum().backward()
    after = network.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
