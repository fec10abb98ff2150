import json
import os
from argparse import Namespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from crossband.shared.checkpoints import (
    FORMAT_VERSION,
    HEADER_KEY,
    load_checkpoint,
    load_state,
    read_config,
    read_state_dict,
    save_checkpoint,
)
from crossband.shared.errors import CheckpointError


def test_round_trip_keeps_weights_and_configuration(tmp_path):
    weights = {"a": torch.randn(3, 2), "b": torch.arange(4)}
    path = save_checkpoint(tmp_path / "x.safetensors", weights, {"task": "toy"})
    found = load_checkpoint(path)
    assert all(torch.equal(found.state_dict[k], weights[k]) for k in weights)
    assert found.config["task"] == "toy"
    assert found.config["format"] == FORMAT_VERSION
    assert found.config["versions"]["torch"]
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_tensors_that_share_memory_are_saved(tmp_path):
    tied = torch.randn(2, 2)
    path = save_checkpoint(tmp_path / "x.safetensors", {"a": tied, "b": tied}, {})
    assert torch.equal(load_checkpoint(path).state_dict["b"], tied)


class Runs:
    def __reduce__(self):
        return (os.system, ("touch /nonexistent-crossband",))


def test_a_pickle_with_code_is_refused(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {"w": torch.zeros(1)}, "x": Runs()}, path)
    with pytest.raises(CheckpointError, match="would run code"):
        read_state_dict(path)


def test_arguments_of_a_training_script_are_read_and_inert(tmp_path):
    path, arguments = tmp_path / "mae.pth", Namespace(lr=1e-3, output_dir="runs", nested=[1, None])
    torch.save({"model": {"w": torch.ones(2)}, "args": arguments}, path)
    weights, extra = read_state_dict(path)
    assert torch.equal(weights["w"], torch.ones(2)) and extra["args"] == arguments
    torch.save({"model": {"w": torch.ones(2)}, "args": Namespace(x=Runs())}, path)
    with pytest.raises(CheckpointError, match="would run code"):
        read_state_dict(path)


def test_logs_of_mmengine_are_read_and_inert(tmp_path):
    logging = pytest.importorskip("mmengine.logging", reason="extra openmmlab")
    history, path = logging.HistoryBuffer(), tmp_path / "iter_3.pth"
    history.update(1.5)
    hub = {"log_scalars": {"train/loss": history}, "runtime_info": {"iou": np.float64(0.5)}}
    torch.save({"meta": {}, "state_dict": {"w": torch.ones(2)}, "message_hub": hub}, path)
    weights, _ = read_state_dict(path)
    assert torch.equal(weights["w"], torch.ones(2))


class Looks:
    """Pickles as a look-up by getattr, which a log history uses for its own methods only."""

    def __reduce__(self):
        return getattr, (Namespace, "__init__")


def test_no_name_is_looked_up_but_that_of_a_log(tmp_path):
    torch.save({"state_dict": {"w": torch.ones(2)}, "x": Looks()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="would run code"):
        read_state_dict(tmp_path / "x.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "noise", "empty"])
def test_damaged_files_are_named(tmp_path, suffix, damage):
    path = tmp_path / f"x{suffix}"
    if suffix == ".pth":
        torch.save({"w": torch.randn(100)}, path)
    else:
        save_file({"w": torch.randn(100)}, path)
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[:-50], "noise": b"\x07" * 300, "empty": b""}[damage])
    with pytest.raises(CheckpointError, match=path.name):
        read_state_dict(path)


def test_files_of_another_kind_are_no_weights(tmp_path):
    for name, content in (
        ("sheet.png", b"\x89PNG\r\n\x1a\n"),
        ("notes.txt", b"hello"),
        ("x.pt", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name} is no file of weights"):
            read_state_dict(tmp_path / name)
    old = tmp_path / "old.pth"  # as torch wrote before its archives
    torch.save({"w": torch.ones(2)}, old, _use_new_zipfile_serialization=False)
    assert torch.equal(read_state_dict(old)[0]["w"], torch.ones(2))


@pytest.mark.parametrize("wrap", ["state_dict", "model", None])
def test_containers_are_opened(tmp_path, wrap):
    weights = {"w": torch.randn(2)}
    torch.save({wrap: weights, "epoch": 3} if wrap else weights, tmp_path / "x.pth")
    found, extra = read_state_dict(tmp_path / "x.pth")
    assert torch.equal(found["w"], weights["w"])
    assert extra.get("epoch") == (3 if wrap else None)


def test_foreign_and_newer_files_are_told_apart(tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="no crossband configuration"):
        read_config(tmp_path / "foreign.safetensors")
    newer = {HEADER_KEY: json.dumps({"format": FORMAT_VERSION + 1})}
    save_file({"w": torch.zeros(1)}, tmp_path / "newer.safetensors", metadata=newer)
    with pytest.raises(CheckpointError, match="update crossband"):
        read_config(tmp_path / "newer.safetensors")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_config(tmp_path / "absent.safetensors")


def test_misfits_are_counted():
    model = nn.Linear(2, 2)
    state = {"weight": torch.zeros(3, 2), "extra": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="1 missing.*1 unexpected.*1 of another shape"):
        load_state(model, state, "x.pth")
