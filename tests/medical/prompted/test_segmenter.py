from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from crossband.medical.prompted.segmenter import PromptedSegmenter
from crossband.shared import load
from crossband.shared.checkpoints import load_checkpoint, save_checkpoint
from crossband.shared.errors import CheckpointError, DataError

from .conftest import TINY, sam

FACTS: dict[str, Any] = {
    "classes": ["background", "a", "b"],
    "palette": [[0, 0, 0], [9, 9, 9], [8, 8, 8]],
    "reading": {"colours": True, "window": []},
}


def segmenter(seed: int = 0) -> PromptedSegmenter:
    model = sam(seed)
    for name, parameter in model.named_parameters():
        if "rel_pos" in name or name.endswith("pos_embed"):
            nn.init.normal_(parameter, std=0.3)
    return PromptedSegmenter(model.requires_grad_(False), FACTS)


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 255, shape, np.uint8)


BOXES = np.array([[4, 5, 30, 33], [0, 0, 49, 39], [20, 10, 22, 12]], np.float32)


@pytest.mark.parametrize("shape", [(40, 50, 3), (150, 90, 3)])
def test_masks_are_those_of_the_authors_predictor(shape: tuple[int, ...]) -> None:
    package = pytest.importorskip("segment_anything")
    modeling = pytest.importorskip("segment_anything.modeling")
    mine, pixels = segmenter(), picture(*shape)
    t = TINY
    theirs = modeling.Sam(
        modeling.ImageEncoderViT(
            img_size=64, patch_size=8, embed_dim=t["embed_dim"], depth=2, num_heads=2, mlp_ratio=4,
            out_chans=32, use_rel_pos=True, window_size=3, global_attn_indexes=(1,),
            norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
        ),
        modeling.PromptEncoder(
            embed_dim=32, image_embedding_size=(8, 8), input_image_size=(64, 64), mask_in_chans=16
        ),
        modeling.MaskDecoder(
            transformer_dim=32, num_multimask_outputs=3, iou_head_depth=3, iou_head_hidden_dim=16,
            transformer=modeling.TwoWayTransformer(
                depth=2, embedding_dim=32, mlp_dim=32, num_heads=4
            ),
        ),
    )  # fmt: skip
    theirs.load_state_dict(mine.model.state_dict())
    predictor = package.SamPredictor(theirs.eval())
    predictor.set_image(pixels)
    found = mine.logits(mine.encode(pixels), pixels.shape[:2], BOXES).numpy()
    masks = mine.predict(pixels, BOXES)
    assert masks.dtype == bool and masks.shape == (3, *shape[:2])
    for n, box in enumerate(BOXES):
        wanted = predictor.predict(box=box, multimask_output=False, return_logits=True)[0][0]
        np.testing.assert_allclose(found[n], wanted, atol=2e-5)
        decided = np.abs(wanted) > 1e-4
        np.testing.assert_array_equal(masks[n][decided], (wanted > 0)[decided])


def test_grey_images_and_many_boxes() -> None:
    mine, pixels = segmenter(), picture(40, 50)
    many = np.tile(BOXES, (7, 1))
    masks = mine.predict(pixels, many)
    assert masks.shape == (21, 40, 50)
    np.testing.assert_array_equal(masks[:3], masks[18:])
    assert mine.predict(pixels, np.zeros((0, 4))).shape == (0, 40, 50)


def test_a_pixel_of_two_masks_is_of_the_one_with_most_logit() -> None:
    mine, pixels = segmenter(), picture(40, 50, 3)
    kinds = np.array([1, 2, 1])
    logits = mine.logits(mine.encode(pixels), (40, 50), BOXES).numpy()
    ids = mine.outline(pixels, BOXES, kinds)
    wanted = np.where(logits.max(0) > 0, kinds[logits.argmax(0)], 0)
    np.testing.assert_array_equal(ids, wanted)
    assert ids.dtype == np.uint8 and 0 < (ids > 0).sum() < ids.size
    assert not mine.outline(pixels, np.zeros((0, 4)), np.zeros(0)).any()


def test_boxes_are_cut_off_at_the_border_and_must_touch_the_image() -> None:
    mine, pixels = segmenter(), picture(40, 50)
    out = np.array([[-9, -9, 500, 500]], np.float32)
    exact = np.array([[0, 0, 49, 39]], np.float32)
    np.testing.assert_array_equal(mine.predict(pixels, out), mine.predict(pixels, exact))
    for wrong in ([5, 5, 4, 9], [50, 0, 60, 9], [0, -9, 9, -1], [0, 0, np.nan, 3]):
        with pytest.raises(DataError, match="box"):
            mine.predict(pixels, np.array([wrong], np.float32))
    with pytest.raises(DataError, match="numbers"):
        mine.predict(pixels, np.zeros(4))
    with pytest.raises(DataError, match="is no image"):
        mine.predict(pixels.astype(float), exact)


def test_a_checkpoint_holds_all_of_it(prompted: Path, tmp_path: Path) -> None:
    found = load(prompted, device="cpu")
    assert isinstance(found, PromptedSegmenter) and found.classes == ("background", "lung")
    checkpoint = load_checkpoint(prompted)
    assert checkpoint.state_dict.keys() == sam().state_dict().keys()
    assert checkpoint.config["task"] == "medical prompted segmentation"
    assert "not a medical device" in checkpoint.config["intended_use"]
    pixels, box = picture(40, 50), BOXES[:1]
    half = load(prompted, device="cpu", precision="bf16")
    size = pixels.shape[:2]
    a, b = (s.logits(s.encode(pixels), size, box) for s in (found, half))
    assert not torch.equal(a, b) and (a - b).abs().max() < 0.1 * a.abs().max()
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, checkpoint.state_dict, {**checkpoint.config, "task": "forecasting"})
    with pytest.raises(CheckpointError, match="not of medical prompted segmentation"):
        PromptedSegmenter.load(other)
