from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crossband.apps.main import main
from crossband.infrared.unip.official import from_official, left_out, to_mmseg, to_official
from crossband.shared.checkpoints import read_state_dict
from crossband.shared.registry import create_model


def _keys(path: Path) -> dict[str, list[int]]:
    lines = [line.split("\t") for line in path.read_text().splitlines() if "\t" in line]
    return {key: [int(n) for n in shape.strip("[]").split(",") if n] for key, shape in lines}


@pytest.mark.parametrize(
    ("model", "keys"),
    [("unip_small_upernet", "unip_seg_keys.txt"), ("unip_small", "unip_keys.txt")],
)
def test_keys_and_shapes_are_the_authors(shared_dir: Path, model: str, keys: str) -> None:
    with torch.device("meta"):
        state = create_model(model).state_dict()
    theirs = to_official(state) if model.endswith("upernet") else state
    counters = {k for k in theirs if k.endswith("num_batches_tracked")}
    found = {k: list(v.shape) for k, v in theirs.items() if k not in counters}
    wanted = {
        key: shape
        for key, shape in _keys(shared_dir / "fixtures/infrared" / keys).items()
        if not key.endswith("num_batches_tracked")
    }
    assert {k: v for k, v in found.items() if "running_" not in k} == {
        k: v for k, v in wanted.items() if "running_" not in k
    }


def test_segmentation_files_convert_both_ways() -> None:
    torch.manual_seed(0)
    model = create_model("unip_tiny_upernet", num_classes=3, img_size=64, channels=8)
    state = model.state_dict()
    for there in (to_official, to_mmseg):
        back = from_official(there(state))
        assert back.keys() == state.keys()
        assert all(torch.equal(back[key], value) for key, value in state.items())
    official = to_official(state)
    assert "backbone.blocks.11.gamma_2" in official and "backbone.fpn1.3.weight" in official
    assert "neck.fpn2.0.bias" in to_mmseg(state)


def test_relative_positions_are_left_out_and_said() -> None:
    state = {"backbone.rel_pos_bias.table": torch.zeros(1), "module.decode_head.x": torch.zeros(1)}
    assert from_official(state).keys() == {"decode_head.x"}
    assert left_out(state) == ["backbone.rel_pos_bias.table"]


def test_command_converts_and_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = {"num_classes": 3, "img_size": 64, "channels": 8}
    model = create_model("unip_tiny_upernet", **arguments)
    torch.save({"state_dict": to_official(model.state_dict())}, tmp_path / "theirs.pth")
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    words = [f"{name}={value}" for name, value in arguments.items()]
    convert = ["models", "convert", str(tmp_path / "theirs.pth"), str(ours)]
    assert main([*convert, "--model", "unip_tiny_upernet", "--arguments", *words]) == 0
    assert main(["models", "convert", str(ours), str(back), "--to", "official"]) == 0
    again, _ = read_state_dict(back)
    assert again.keys() == to_official(model.state_dict()).keys()
