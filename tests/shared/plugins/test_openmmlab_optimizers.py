from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from torch import nn

for library in ("mmengine", "mmcv", "mmseg"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: extra openmmlab", allow_module_level=True)

import crossband.shared.plugins.openmmlab  # noqa: E402, F401, I001 - before mmseg
from mmengine.config import ConfigDict  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402
from openmmlab_tester import SMALL  # noqa: E402

from crossband.shared.errors import ConfigError  # noqa: E402

VIT = {
    "type": "crossband.ViT", "img_size": 32, "embed_dim": 12, "depth": 3, "num_heads": 3,
}  # fmt: skip


class Model(nn.Module):
    def __init__(self, backbone: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.decode_head = nn.Conv2d(4, 3, 1)


def rates(backbone: dict[str, Any], **options: Any) -> dict[str, tuple[float, float]]:
    """Return rate, over the base rate, and weight decay by the name of the parameter."""
    model = Model(backbone)
    wrapper = build_optim_wrapper(model, ConfigDict({
        "type": "OptimWrapper",
        "optimizer": {"type": "AdamW", "lr": 0.5, "weight_decay": 0.05},
        "constructor": "crossband.LayerDecay",
        "paramwise_cfg": {"decay_rate": 0.5, **options},
    }))  # fmt: skip
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(p)]: (group["lr"] / 0.5, group["weight_decay"])
        for group in wrapper.optimizer.param_groups
        for p in group["params"]
    }
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    return found


def test_rates_fall_from_the_head_down() -> None:
    found = rates(VIT)
    assert found["decode_head.weight"] == (1.0, 0.05)
    assert found["decode_head.bias"] == (1.0, 0.0)
    for block in range(3):
        assert found[f"backbone.blocks.{block}.attn.qkv.weight"] == (0.5 ** (3 - block), 0.05)
        assert found[f"backbone.blocks.{block}.norm1.weight"] == (0.5 ** (3 - block), 0.0)
    assert found["backbone.patch_embed.proj.weight"] == (0.5**4, 0.05)
    assert found["backbone.pos_embed"] == found["backbone.cls_token"] == (0.5**4, 0.0)


def test_weight_decay_as_the_references_code_has_it() -> None:
    plain, theirs = rates(VIT), rates(VIT, decay_positions=True)
    other = {name for name in plain if plain[name] != theirs[name]}
    assert other == {"backbone.pos_embed", "backbone.cls_token"}
    assert theirs["backbone.pos_embed"] == (0.5**4, 0.05)
    every = rates(VIT, decay_norm_and_bias=True)
    assert every["backbone.blocks.0.norm1.bias"][1] == 0.05


@pytest.mark.parametrize(
    "backbone",
    [
        {"type": "crossband.UniRepLKNet", **SMALL},
        {"type": "crossband.Backbone", "name": "unireplknet_a", **SMALL},
    ],
    ids=["family", "registry"],
)
def test_pyramids(backbone: dict[str, Any]) -> None:
    found = rates(backbone)
    first = [rate for name, (rate, _) in found.items() if "downsample_layers.0.0" in name]
    assert len(set(first)) == 1 and first[0] == min(rate for rate, _ in found.values()) < 0.1
    assert found["decode_head.weight"][0] == 1.0


def test_frozen_blocks_take_no_part() -> None:
    found = rates({**VIT, "frozen_stages": 2})
    assert found["backbone.blocks.2.mlp.fc1.weight"] == (0.5, 0.05)
    assert not any(name.startswith(("backbone.blocks.0", "backbone.pos")) for name in found)


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="'decay_rat'.*decay_rate"):
        rates(VIT, decay_rat=0.5)
    with pytest.raises(ConfigError, match="ResNet does not tell its layers"):
        rates({"type": "ResNet", "depth": 18})
