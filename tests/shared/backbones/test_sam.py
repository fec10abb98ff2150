from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from crossband.shared.backbones.sam import (
    RelativeAttention,
    SAMEncoder,
    cut_windows,
    from_official,
    join_windows,
    relative_table,
    to_official,
)
from crossband.shared.backbones.vit import ViT
from crossband.shared.backbones.vit_keys import translate

TINY = {
    "img_size": 96, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "out_chans": 8,
    "window_size": 5, "global_attn_indexes": (1,),
}  # fmt: skip


def encoder(**arguments: Any) -> SAMEncoder:
    torch.manual_seed(0)
    model = SAMEncoder(**(TINY | arguments)).eval()
    for name, parameter in model.named_parameters():
        if "rel_pos" in name or name == "pos_embed":
            nn.init.normal_(parameter, std=0.3)
    return model


def test_attention_equals_its_formula() -> None:
    torch.manual_seed(0)
    layer = RelativeAttention(8, 2, (3, 4))
    nn.init.normal_(layer.rel_pos_h)
    nn.init.normal_(layer.rel_pos_w)
    x = torch.randn(1, 3, 4, 8)
    q, k, v = layer.qkv(x.view(12, 8)).view(12, 3, 2, 4).unbind(1)
    wanted = torch.zeros(12, 2, 4)
    for h in range(2):
        for i in range(12):
            scores = torch.empty(12)
            for j in range(12):
                down, across = i // 4 - j // 4, i % 4 - j % 4
                offset = layer.rel_pos_h[down + 2] + layer.rel_pos_w[across + 3]
                scores[j] = q[i, h] @ k[j, h] / 2 + q[i, h] @ offset
            wanted[i, h] = scores.softmax(0) @ v[:, h]
    found = layer(x)
    expected = layer.proj(wanted.flatten(1)).view(1, 3, 4, 8)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(5, 5), (12, 12), (7, 11), (1, 3)])
def test_windows_there_and_back(size: tuple[int, int]) -> None:
    x = torch.randn(2, *size, 3)
    windows, padded = cut_windows(x, 5)
    assert windows.shape[1:] == (5, 5, 3) and padded[0] % 5 == padded[1] % 5 == 0
    assert torch.equal(join_windows(windows, 5, padded, size), x)


def test_tables_of_another_length_are_interpolated() -> None:
    table = torch.arange(7.0)[:, None]
    pairs = relative_table(table, 4)[..., 0]
    assert pairs[2, 0] == 5 and pairs[0, 3] == 0  # row minus column, the middle is 0
    assert relative_table(table, 6).shape == (6, 6, 1)


@pytest.mark.parametrize("size", [(96, 96), (64, 120), (50, 70)])
@pytest.mark.parametrize("use_abs_pos", [True, False])
def test_one_map_of_any_size(size: tuple[int, int], use_abs_pos: bool) -> None:
    model = encoder(use_abs_pos=use_abs_pos)
    (y,) = model(torch.randn(2, 3, *size))
    assert y.shape == (2, 8, *(-(-side // 8) for side in size)) and y.isfinite().all()
    assert model.out_channels == [8] and model.strides == [8]


def test_gradients_reach_every_parameter_and_checkpointing_changes_nothing() -> None:
    x = torch.randn(1, 3, 96, 96)
    gradients = []
    for enable in (False, True):
        model = encoder().train()
        model.set_grad_checkpointing(enable)
        model(x)[0].square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
        assert all(g is not None and g.abs().sum() > 0 for g in gradients[-1].values())
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], rtol=1e-4, atol=1e-6)


def test_compiles_and_exports() -> None:
    model, x = encoder(), torch.randn(2, 3, 96, 96)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x)[0], model(x)[0], rtol=1e-4, atol=1e-5)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x)[0], model(x)[0], rtol=1e-4, atol=1e-5)


def test_published_size() -> None:
    """LVM-Med's ViT: SAM's ViT-B without a table of positions, 86.53 million parameters."""
    with torch.device("meta"):
        model = SAMEncoder(use_abs_pos=False)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 86.53
    assert model.blocks[0].attn.rel_pos_h.shape == (27, 64)
    assert model.blocks[2].attn.rel_pos_h.shape == (127, 64)


def test_weights_there_and_back_and_of_other_sizes() -> None:
    model = encoder()
    state = model.state_dict()
    theirs = to_official(state) | {"mask_decoder.x": torch.zeros(1)}
    assert from_official(theirs).keys() == state.keys() == from_official(state).keys()
    lvm = encoder(use_abs_pos=False)
    lvm.load_state_dict(lvm.adapt_state(state))
    larger = encoder(img_size=128)
    larger.load_state_dict(larger.adapt_state(state))
    assert larger.pos_embed.shape == (1, 16, 16, 16)
    assert larger.blocks[1].attn.rel_pos_h.shape == (31, 8)
    assert torch.equal(larger.blocks[0].attn.rel_pos_h, model.blocks[0].attn.rel_pos_h)


def test_a_plain_vit_takes_sams_blocks() -> None:
    model = encoder()
    state, left, layout = translate(to_official(model.state_dict()))
    assert layout == "sam" and any("rel_pos" in key for key in left)
    plain = ViT(img_size=96, patch_size=8, embed_dim=16, depth=3, num_heads=2, class_token=False)
    assert state.keys() == plain.state_dict().keys()
    plain.load_state_dict(state)
