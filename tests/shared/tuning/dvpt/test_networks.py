from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crossband.shared import create_model
from crossband.shared.backbones.vit import ViTClassifier
from crossband.shared.backbones.vit_keys import translate
from crossband.shared.checkpoints import load_checkpoint, load_state, save_checkpoint
from crossband.shared.conformance import verify_file
from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.tuning.dvpt.clip import DVPTCLIP, PromptedCLIPBlock
from crossband.shared.tuning.dvpt.official import from_official, left_out, to_official
from crossband.shared.tuning.dvpt.projection import (
    GatedProjection,
    add_to_first,
    dynamic_prompts,
    shared_projections,
)
from crossband.shared.tuning.dvpt.segformer import DVPTSegFormer
from crossband.shared.tuning.dvpt.swin import DVPTSwin, relative_position_index

# Counted by the authors' code: all parameters, and those that are trained, without CLIP's and
# Swin's heads.
COUNTS = {
    "dvpt_clip_vit_base": (86_493_780, 202_836),
    "dvpt_swin_base": (86_957_723, 214_499),
    "dvpt_segformer_b4": (61_925_641, 293_449),
}
TITLES = {"CLIP": "dvpt_clip_vit_base", "SegFormer": "dvpt_segformer_b4", "Swin": "dvpt_swin_base"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def clip(**options: Any) -> DVPTCLIP:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 5, "num_heads": 2}
    return DVPTCLIP(**{**sizes, "output_dim": 10, "prompts": 6, "rank": 4} | options).eval()


def swin(**options: Any) -> DVPTSwin:
    sizes = {"img_size": 64, "embed_dim": 8, "depths": (2, 4), "num_heads": (2, 2)}
    return DVPTSwin(**{**sizes, "window_size": 4, "prompts": 5, "rank": 3} | options).eval()


def segformer(**options: Any) -> DVPTSegFormer:
    sizes = {"embed_dims": (8, 8, 12, 16), "depths": (1, 3, 1, 2), "num_heads": (1, 2, 3, 2)}
    return DVPTSegFormer(**{**sizes, "head_dim": 12, "prompts": 4, "rank": 3} | options).eval()


NETWORKS = {"clip": (clip, 32), "swin": (swin, 64), "segformer": (segformer, 64)}


def open_gates(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if "gate" in name:
            nn.init.constant_(parameter, 0.7)


@pytest.mark.parametrize("name", ["vit", "swin", "segformer"])
def test_golden_numbers(name: str, shared_dir: Path) -> None:
    report = verify_file(shared_dir / f"fixtures/medical/dvpt_{name}_tiny.safetensors")
    assert report.passed, report


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    model.train_prompts()
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (total, trained) == COUNTS[name]


@pytest.mark.parametrize("title", TITLES)
def test_published_keys(title: str, shared_dir: Path) -> None:
    text = (shared_dir / "fixtures/medical/dvpt_full_sizes.txt").read_text()
    part = next(p for p in text.split("## DVPT ")[1:] if p.startswith(title))
    wanted = {
        key: tuple(int(n) for n in re.findall(r"\d+", shape))
        for key, shape in re.findall(r"^(\S+) \((.*)\)$", part, re.MULTILINE)
    }
    with torch.device("meta"):
        model = create_model(TITLES[title])
    ours = {k: tuple(v.shape) for k, v in to_official(model.state_dict()).items()}
    assert len(wanted) > 40
    assert {key: ours.get(key) for key in wanted} == wanted


def test_the_projection_follows_its_formula_and_its_gradients() -> None:
    u = GatedProjection(6, 3, 4).double()
    x = torch.randn(2, 5, 6, dtype=torch.double, requires_grad=True)
    assert (u(x) == 0).all()
    nn.init.constant_(u.prompt_gate, 0.3)
    z = x @ u.prompt_key_proj_d.weight.T + u.prompt_key_proj_d.bias
    z = z / (1 + torch.exp(-1.702 * z))
    expected = 0.3 * (z @ u.prompt_key_proj_u.weight.T + u.prompt_key_proj_u.bias)
    torch.testing.assert_close(u(x), expected)
    assert torch.autograd.gradcheck(u, x)


def test_prompts_attend_to_tokens() -> None:
    p = torch.randn(1, 3, 4, dtype=torch.double, requires_grad=True)
    x = torch.randn(2, 7, 4, dtype=torch.double, requires_grad=True)
    expected = torch.stack([torch.softmax(p[0] @ one.T / 2, dim=1) @ one for one in x])
    torch.testing.assert_close(dynamic_prompts(p, x), expected)
    assert torch.autograd.gradcheck(dynamic_prompts, (p, x))
    added = add_to_first(x, expected)
    torch.testing.assert_close(added[:, :3], x[:, :3] + expected)
    assert torch.equal(added[:, 3:], x[:, 3:])
    with pytest.raises(ConfigError, match="3 prompts do not fit a map of 2 tokens"):
        add_to_first(x[:, :2], expected)


def test_neighbours_share() -> None:
    modules = list(shared_projections(4, 2, 3, 7))
    assert [modules.index(m) for m in modules] == [0, 0, 0, 3, 3, 3, 6]
    blocks = [block.prompt_proj for block in segformer(share=2).block2]
    assert blocks[0] is blocks[1] and blocks[1] is not blocks[2]
    stages = swin().layers  # sharing restarts in a stage
    assert stages[0].blocks[1].prompt_proj is not stages[1].blocks[0].prompt_proj
    assert stages[1].blocks[2].prompt_proj is not stages[1].blocks[3].prompt_proj


@pytest.mark.parametrize("name", NETWORKS)
def test_the_tie_is_kept_on_the_way_through_a_file(name: str, tmp_path: Path) -> None:
    build, side = NETWORKS[name]
    model, x = build(), torch.randn(1, 3, side, side)
    open_gates(model)
    repeated = dict(model.named_parameters(remove_duplicate=False)).keys()
    assert repeated > dict(model.named_parameters()).keys()
    path = save_checkpoint(tmp_path / "a.safetensors", model.state_dict(), {})
    other = build()
    load_state(other, load_checkpoint(path).state_dict, path)
    torch.testing.assert_close(other(x), model(x))
    assert len(list(other.parameters())) == len(list(model.parameters()))


def test_weights_of_another_interval_of_sharing_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"resblocks.0.prompt_proj.*resblocks.1.*`share`"):
        state = clip(share=1).state_dict()
        clip(share=2).load_state_dict(state)


def test_closed_gates_leave_the_segformer_as_it_is() -> None:
    model, x = segformer(), torch.randn(2, 3, 64, 64)
    before = model(x)
    assert before.shape == (2, 2, 64, 64)
    for name, parameter in model.named_parameters():
        if "prompt" in name and "gate" not in name:
            nn.init.normal_(parameter)
    assert torch.equal(model(x), before)
    open_gates(model)
    assert not torch.allclose(model(x), before)
    with pytest.raises(ConfigError, match="4 prompts do not fit a map of 1 tokens"):
        model(x[..., :32, :32])


def test_closed_gates_leave_clip_with_prompts() -> None:
    """The same as our own ViT with CLIP's weights, which puts the prompts behind the class."""
    model = clip()
    nn.init.normal_(model.ln_pre.weight)
    state = {k: v for k, v in model.state_dict().items() if "prompt" not in k}
    options = {"pre_norm": True, "patch_bias": False, "act": "quick_gelu", "norm_eps": 1e-5}
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 5, "num_heads": 2}
    vit = ViTClassifier(num_classes=10, head_bias=False, **sizes, **options).eval()
    load_state(vit, translate(state)[0], "clip")
    x = torch.randn(2, 3, 32, 32)
    prompts = model.ln_pre(model.prompt_token[0] + model.prompt_positional_embedding)
    tokens = vit.forward_tokens(x, prompts=prompts).x[:, :7]
    torch.testing.assert_close(model(x), vit.head(vit.norm(tokens).mean(1)), rtol=1e-4, atol=1e-5)


def test_the_papers_form_shows_the_projection_new_prompts() -> None:
    u = GatedProjection(8, 3)
    nn.init.constant_(u.prompt_gate, 0.5)
    block = PromptedCLIPBlock(8, 2, u, fresh=3).eval()
    released = PromptedCLIPBlock(8, 2, u, fresh=0).eval()
    released.load_state_dict(block.state_dict())
    x = torch.randn(2, 9, 8)
    y = block.ln_1(x)
    middle = x + block.attn(y, y, y)[0]
    prompts, rest = middle[:, :3], middle[:, 3:]
    maps = (prompts @ rest.transpose(1, 2) / 8**0.5).softmax(-1)
    base = middle + block.mlp(block.ln_2(middle))
    expected = base + u(torch.cat([maps @ rest, rest], 1))
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(released(x), base + u(middle), rtol=1e-5, atol=1e-6)


def test_clip_takes_other_sizes_of_images() -> None:
    model = clip(num_classes=3)
    assert model(torch.randn(2, 3, 48, 40)).shape == (2, 3)
    table = torch.arange(4.0).view(2, 2)  # along rows and columns: 0 1 / 2 3
    places = torch.cat([torch.zeros(1), table.flatten()])[:, None].expand(-1, 24)
    state = model.resample({"positional_embedding": places})
    grid = state["positional_embedding"][1:, 0].view(4, 4)
    # Pixels' centres at -1/4, 1/4, 3/4 and 5/4, held at the border.
    steps = torch.tensor([0.0, 0.25, 0.75, 1.0])
    torch.testing.assert_close(grid, 2 * steps[:, None] + steps)


def plain(model: nn.Module) -> dict[str, Tensor]:
    """Weights under the authors' names as they were before prompts came."""
    return {k: v for k, v in to_official(model.state_dict()).items() if "prompt" not in k}


def test_the_network_to_start_from_can_be_loaded() -> None:
    source, model = clip(), clip(img_size=48, num_classes=3)
    state = {f"visual.{key}": value for key, value in plain(source).items()}
    state |= {"token_embedding.weight": torch.zeros(3, 3)}
    assert left_out(state) == ["token_embedding.weight"]
    prompts, head = model.prompt_token.clone(), model.fc_head.weight.clone()
    with pytest.warns(UserWarning, match="without prompts: prompts start .*; so does fc_head"):
        load_state(model, model.adapt_state(from_official(state)), "clip")
    assert torch.equal(model.conv1.weight, source.conv1.weight)
    assert torch.equal(model.prompt_token, prompts) and torch.equal(model.fc_head.weight, head)
    assert model.positional_embedding.shape == (37, 24)


def test_segformers_decoder_is_taken_without_its_fusing_layer() -> None:
    source, model = segformer(num_classes=150), segformer(num_classes=2)
    state = {
        f"{'decode_head' if key.startswith('linear') else 'backbone'}.{key}": value
        for key, value in plain(source).items()
    }
    state["decode_head.linear_fuse.conv.weight"] = torch.zeros(1)
    with pytest.warns(UserWarning, match=r"linear_pred.weight.*left out: linear_fuse"):
        load_state(model, model.adapt_state(from_official(state)), "segformer")
    assert torch.equal(model.linear_c3.proj.weight, source.linear_c3.proj.weight)
    damaged = from_official(state)
    del damaged["norm1.weight"]
    with pytest.raises(CheckpointError, match="1 missing"), pytest.warns(UserWarning):
        load_state(model, model.adapt_state(damaged), "segformer")


def test_swins_keys_go_there_and_back_and_tables_are_interpolated_as_numbers() -> None:
    model = swin(num_classes=5)
    state = to_official(model.state_dict())
    assert {"fc_head.weight", "layers.0.downsample.norm.weight"} <= state.keys()
    index = state["layers.1.blocks.3.attn.relative_position_index"]
    assert torch.equal(index, model.layers[1].blocks[3].attn.relative_position_index.view(16, 16))
    back = from_official({"module." + k: v for k, v in state.items()})
    own = model.state_dict()
    assert back.keys() == own.keys()
    assert all(torch.equal(back[key], own[key]) for key in own)
    with pytest.warns(UserWarning, match="head.fc.weight"):
        wider = swin(window_size=8, num_classes=7)
        load_state(wider, wider.adapt_state(from_official(plain(model))), "swin")
    key = "layers.0.blocks.0.attn.relative_position_bias_table"
    before, after = own[key], wider.state_dict()[key]
    assert after.shape == (225, 2)
    assert (after != after.round()).any()
    torch.testing.assert_close(after.mean(0), before.mean(0), rtol=0.2, atol=2e-3)


def test_relative_positions_of_a_window() -> None:
    index = relative_position_index(2)
    assert index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


@pytest.mark.parametrize("name", NETWORKS)
def test_only_prompts_and_head_get_gradients(name: str) -> None:
    build, side = NETWORKS[name]
    model = build(num_classes=3)
    open_gates(model)
    names = model.train_prompts()
    assert all("prompt" in n or n.startswith(model.head_name) for n in names)
    assert any(n.startswith(model.head_name) for n in names)
    model(torch.randn(2, 3, side, side)).square().mean().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == set(names)


@pytest.mark.parametrize(
    "options", [{"prompts": 0}, {"rank": 0}, {"share": 0}, {"cross_attention": "both"}]
)
def test_what_cannot_be_is_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match="DVPT"):
        clip(**options)
