"""`crossband infrared compress`."""

from __future__ import annotations

from pathlib import Path

import torch

from crossband.infrared.pretraining.compression import feature_errors
from crossband.infrared.unip.vit_files import open_vit
from crossband.shared.backbones.vit import ViT
from crossband.shared.backbones.vit_keys import load_vit
from crossband.shared.checkpoints import read_config
from crossband.shared.tuning.low_rank import LowRankLinear


def test_compression_is_read_again(teacher: Path, frames: Path, infrared, tmp_path, capsys) -> None:
    out = tmp_path / "small.safetensors"
    words = ["--weights", teacher, "--data.root", frames, "--size", 64, "--out", out]
    assert infrared("compress", *words, "--steps", 30, "--lr", 2e-3, "--batch_size", 7) == 0
    printed = capsys.readouterr().out
    assert "16 layers of low rank" in printed and "times fewer" in printed
    config, original, opened = read_config(out), open_vit(teacher).model, open_vit(out)
    assert isinstance(opened.model.blocks[0].attn.qkv, LowRankLinear)
    count = sum(p.numel() for p in opened.model.parameters())
    assert config["parameters"]["after"] == count < 0.7 * config["parameters"]["before"]
    last = config["layers"][-1]
    assert last["error after teaching"] < 0.5 * last["error after replacing"]
    images = [{"image": torch.randn(3, 64, 64)} for _ in range(3)]
    assert max(feature_errors(original, original, images, 2)) == 0
    assert min(feature_errors(opened.model, original, images, 2)) > 0


def test_a_merged_file_loads_everywhere(teacher: Path, frames: Path, infrared, tmp_path) -> None:
    words = ["--weights", teacher, "--data.root", frames, "--size", 64, "--rank", 20, "--quiet"]
    for name in ("two", "one"):
        merge = ["--merge"] if name == "one" else []
        assert infrared("compress", *words, *merge, "--out", tmp_path / f"{name}.safetensors") == 0
    two, one = (open_vit(tmp_path / f"{name}.safetensors").model for name in ("two", "one"))
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(one(image), two(image), rtol=1e-3, atol=1e-4)
    vit = ViT(img_size=64, embed_dim=96, depth=4, num_heads=3)
    load_vit(vit, tmp_path / "one.safetensors")
    torch.testing.assert_close(vit(image)[0], one.forward_tokens(image).map())
