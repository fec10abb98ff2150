"""Segment Anything against the authors' package, with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from crossband.shared.errors import ConfigError
from crossband.shared.promptable import SAM

TINY: dict[str, Any] = {
    "img_size": 64, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "out_chans": 32,
    "window_size": 3, "global_attn_indexes": (1,), "decoder_heads": 4, "decoder_mlp_dim": 40,
    "iou_head_hidden_dim": 20,
}  # fmt: skip


def ours(**arguments: Any) -> SAM:
    torch.manual_seed(0)
    model = SAM(**(TINY | arguments)).eval()
    for name, parameter in model.named_parameters():
        if "rel_pos" in name or name.endswith("pos_embed"):
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def theirs() -> Any:
    modeling = pytest.importorskip("segment_anything.modeling")
    encoder = modeling.ImageEncoderViT(
        img_size=64, patch_size=8, embed_dim=24, depth=2, num_heads=2, mlp_ratio=4, out_chans=32,
        use_rel_pos=True, window_size=3, global_attn_indexes=(1,),
        norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
    )  # fmt: skip
    prompts = modeling.PromptEncoder(
        embed_dim=32, image_embedding_size=(8, 8), input_image_size=(64, 64), mask_in_chans=16
    )
    decoder = modeling.MaskDecoder(
        transformer_dim=32, num_multimask_outputs=3, iou_head_depth=3, iou_head_hidden_dim=20,
        transformer=modeling.TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=40, num_heads=4),
    )  # fmt: skip
    model = modeling.Sam(encoder, prompts, decoder).eval()
    model.load_state_dict(ours().state_dict())  # strictly: the keys are the same
    return model


def prompts(*kinds: str) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(1)
    found: dict[str, Any] = {}
    if "points" in kinds:
        labels = torch.tensor([[1, 0, -1], [0, 1, 1]])
        found["points"] = (64 * torch.rand(2, 3, 2, generator=draw), labels)
    if "boxes" in kinds:
        found["boxes"] = torch.tensor([[3.0, 5.0, 40.5, 33.0], [0.0, 20.0, 63.0, 60.0]])
    if "masks" in kinds:
        found["masks"] = torch.randn(2, 1, 32, 32, generator=draw)
    return found


@pytest.mark.parametrize(
    "kinds",
    [("points",), ("boxes",), ("masks",), ("points", "boxes"), ("points", "boxes", "masks"), ()],
    ids="+".join,
)
@pytest.mark.parametrize("multimask", [True, False])
@torch.no_grad()
def test_equals_the_authors(theirs: Any, kinds: tuple[str, ...], multimask: bool) -> None:
    model, given = ours(), prompts(*kinds)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    maps = theirs.image_encoder(image)
    torch.testing.assert_close(model.encode(image), maps, rtol=1e-5, atol=1e-5)
    sparse, dense = theirs.prompt_encoder(
        given.get("points"), given.get("boxes"), given.get("masks")
    )
    mine = model.prompt_encoder(**given)
    torch.testing.assert_close(mine[0], sparse, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine[1], dense, rtol=1e-5, atol=1e-5)
    positions = theirs.prompt_encoder.get_dense_pe()
    torch.testing.assert_close(model.prompt_encoder.dense_positions(), positions)
    logits, quality = theirs.mask_decoder(maps, positions, sparse, dense, multimask)
    found = model.decode(maps, **given, multimask=multimask)
    assert logits.shape == found[0].shape == (2 if kinds else 1, 3 if multimask else 1, 32, 32)
    torch.testing.assert_close(found[0], logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], quality, rtol=1e-5, atol=1e-5)
    for inner, size in (((64, 48), (300, 225)), ((31, 64), (20, 41)), ((64, 64), (64, 64))):
        mask = theirs.postprocess_masks(logits, inner, size)
        torch.testing.assert_close(
            model.postprocess(found[0], inner, size), mask, atol=1e-5, rtol=0
        )


@torch.no_grad()
def test_pixels_are_normalised_and_padded_as_theirs(theirs: Any) -> None:
    pixels = 255 * torch.rand(3, 40, 64)
    torch.testing.assert_close(ours().preprocess(pixels), theirs.preprocess(pixels))


@torch.no_grad()
def test_one_box_of_each_image_is_what_each_gives_alone() -> None:
    model, images = ours(), torch.randn(3, 3, 64, 64)
    boxes = torch.tensor([[0.0, 0, 9, 9], [10, 12, 50, 60], [4, 4, 60, 8]])
    both = model(images, boxes)
    assert both.shape == (3, 1, 32, 32)
    for n in range(3):
        alone = model.decode(model.encode(images[n : n + 1]), boxes=boxes[n : n + 1])[0]
        torch.testing.assert_close(both[n : n + 1], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(images[:1], boxes[:1]), model(images[:1], boxes[1:2]))
    whole = model(images[:1], torch.tensor([[0.0, 0, 63, 63]]))
    torch.testing.assert_close(model(images[:1]), whole)


@torch.no_grad()
def test_several_prompts_of_one_image_share_its_map() -> None:
    model, boxes = ours(), torch.tensor([[0.0, 0, 9, 9], [10, 12, 50, 60]])
    maps = model.encode(torch.randn(1, 3, 64, 64))
    shared = model.decode(maps, boxes=boxes)
    repeated = model.decode(maps.expand(2, -1, -1, -1), boxes=boxes)
    torch.testing.assert_close(shared[0], repeated[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shared[1], repeated[1], rtol=1e-4, atol=1e-5)


def test_compiles_and_runs_in_half_precision() -> None:
    model, images = ours(), torch.randn(2, 3, 64, 64)
    boxes = torch.tensor([[0.0, 0, 9, 9], [10, 12, 50, 60]])
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images, boxes), model(images, boxes), rtol=1e-4, atol=1e-5)
    exported = torch.export.export(model, (images, boxes)).module()
    torch.testing.assert_close(exported(images, boxes), model(images, boxes), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        half = model.bfloat16()(images.bfloat16(), boxes)
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


def test_weights_of_another_input_size_are_taken() -> None:
    model, larger = ours(), ours(img_size=96)
    state = larger.adapt_state(model.state_dict())
    larger.load_state_dict(state)
    assert larger.image_encoder.pos_embed.shape == (1, 12, 12, 24)
    assert larger(torch.randn(1, 3, 96, 96)).shape == (1, 1, 48, 48)
    assert torch.equal(larger.mask_decoder.iou_token.weight, model.mask_decoder.iou_token.weight)


def test_published_size_and_keys() -> None:
    """SAM's ViT-B has 93.74 million parameters, and its file 314 tensors."""
    with torch.device("meta"):
        model = SAM()
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 93.74
    state = model.state_dict()
    assert len(state) == 314 and not any("pixel" in key for key in state)
    matrix = state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    assert matrix.shape == (2, 128)
    assert state["mask_decoder.output_upscaling.0.weight"].shape == (256, 64, 2, 2)
    assert state["mask_decoder.output_hypernetworks_mlps.3.layers.2.weight"].shape == (32, 256)


def test_the_whole_base_file_fits_theirs() -> None:
    registry = pytest.importorskip("segment_anything").sam_model_registry
    with torch.device("meta"):
        theirs, model = registry["vit_b"](), SAM()
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (theirs, model)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"img_size": 60}, "a multiple of 8"), ({"decoder_heads": 5}, "32 channels cannot be split")],
)
def test_sizes_that_cannot_be_are_one_sentence(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ours(**arguments)


def test_prompts_of_different_numbers_are_refused() -> None:
    given = prompts("points", "boxes")
    with pytest.raises(ConfigError, match="of 1 and 2 prompts"):
        ours().prompt_encoder(given["points"], given["boxes"][:1])
