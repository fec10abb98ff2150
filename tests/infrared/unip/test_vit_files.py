"""Files of plain ViTs: sizes are read off the shapes, others are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crossband.infrared.unip.model import UNIPViT
from crossband.infrared.unip.vit_files import mae_arguments, open_vit, shape_arguments
from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.pretraining.mae import MAE


@pytest.mark.parametrize(
    "given",
    [
        {"img_size": 48, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2},
        {"embed_dim": 64, "depth": 1, "num_heads": 1, "layer_scale_init": 0.1, "reg_tokens": 2},
        {"embed_dim": 64, "depth": 1, "num_heads": 1, "qkv_bias": False, "in_chans": 1},
        {"embed_dim": 64, "depth": 1, "num_heads": 1, "class_token": False, "mlp_ratio": 2.0},
    ],
)
def test_sizes_are_read_off_the_shapes(given: dict, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = UNIPViT(**given).eval()
    found = shape_arguments(model.state_dict())
    assert {name: found.get(name, given[name]) for name in given if name != "layer_scale_init"} == {
        name: value for name, value in given.items() if name != "layer_scale_init"
    }
    torch.save(
        {"teacher": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "a.pth"
    )
    opened = open_vit(tmp_path / "a.pth").model
    image = torch.randn(1, given.get("in_chans", 3), 32, 48)
    torch.testing.assert_close(opened(image), model(image))


def test_files_that_are_no_plain_vit(tmp_path: Path) -> None:
    state = UNIPViT(img_size=32, embed_dim=64, depth=1, num_heads=1).state_dict()
    torch.save({**state, "blocks.0.attn.rel_pos_h": torch.zeros(3, 64)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="relative positions"):
        open_vit(tmp_path / "a.pth")
    torch.save({k: v for k, v in state.items() if "fc2" not in k}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="fc2"):
        open_vit(tmp_path / "b.pth")
    torch.save(state, tmp_path / "c.pth")
    with pytest.raises(ConfigError, match="no size of ViT"):
        open_vit(tmp_path / "c.pth", "vit_giant")
    with pytest.raises(CheckpointError, match="decoder_"):
        mae_arguments(tmp_path / "c.pth")


def test_the_authors_autoencoders_are_read_off_their_shapes(tmp_path: Path) -> None:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}
    sizes |= {"decoder_embed_dim": 64, "decoder_depth": 3, "decoder_num_heads": 2, "in_chans": 3}
    torch.save({"model": MAE(**sizes).state_dict()}, tmp_path / "full.pth")
    assert mae_arguments(tmp_path / "full.pth") == {**sizes, "mlp_ratio": 4.0}
