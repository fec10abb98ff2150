from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from crossband.shared.config import OptimizerConfig, ScheduleConfig
from crossband.shared.conformance import verify_file
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.layers.pos_embed import sincos_pos_embed
from crossband.shared.pretraining.multimae import MultiMAE, MultiMAETask
from crossband.shared.pretraining.multimae_adapters import position_map
from crossband.shared.pretraining.multimae_losses import (
    masked_mean,
    pixel_errors,
    robust_standardise,
    standardise_patches,
)
from crossband.shared.registry import create_model

LABELS = {"channels": 5, "labels": True, "stride": 4, "class_dim": 8}
SIZE: dict[str, Any] = {
    "modalities": {"rgb": 3, "thermal": 1, "semseg": LABELS},
    "outputs": ("rgb", "thermal", "semseg", "norm_rgb"),
    **{"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
    **{"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2, "visible_tokens": 12},
}


def network(seed: int = 0, **changes: Any) -> MultiMAE:
    torch.manual_seed(seed)
    return MultiMAE(**{**SIZE, **changes})


def maps(batch: int = 2, size: tuple[int, int] = (32, 32), seed: int = 1) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "rgb": torch.randn(batch, 3, *size, generator=g),
        "thermal": torch.randn(batch, 1, *size, generator=g),
        "semseg": torch.randint(0, 5, (batch, size[0] // 4, size[1] // 4), generator=g),
    }


def test_golden_numbers(shared_dir: Path) -> None:
    report = verify_file(shared_dir / "fixtures/infrared/multimae.safetensors")
    assert report.passed, report


def test_keys_and_counts_are_the_authors(shared_dir: Path) -> None:
    text = (shared_dir / "fixtures/infrared/multimae_keys.txt").read_text("utf-8")
    rows = re.findall(r"^(\S+)\t\[([\d, ]*)\]$", text, re.MULTILINE)
    listed = {key: tuple(int(n) for n in shape.split(",")) for key, shape in rows}
    with torch.device("meta"):
        model = create_model("multimae_vit_base")
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == listed
    assert sum(p.numel() for p in model.parameters()) == 98_569_360
    assert sum(p.numel() for p in model.encoder.parameters()) == 85_054_464


def test_positions_are_maes_with_rows_first() -> None:
    own = position_map(24, (4, 4))[0].permute(1, 2, 0)
    mae = sincos_pos_embed(24, (4, 4), class_token=False)[0].view(4, 4, 24)
    assert torch.equal(own, mae.transpose(0, 1))
    oblong = position_map(24, (2, 5))[0]
    assert torch.equal(oblong[:12, :, :1].expand(-1, -1, 5), oblong[:12])  # rows only
    assert torch.equal(oblong[12:, :1].expand(-1, 2, -1), oblong[12:])


def test_maps_come_out_as_they_went_in_and_any_may_be_missing() -> None:
    model, given = network(), maps(size=(32, 48))
    found = model(given)
    for name in ("rgb", "thermal", "norm_rgb"):
        assert found.preds[name].shape == given[name.removeprefix("norm_")].shape
    assert found.preds["semseg"].shape == (2, 5, 8, 12)
    assert sum((mask == 0).sum(1) for mask in found.masks.values()).tolist() == [12, 12]
    alone = model({"thermal": given["thermal"]})
    assert alone.masks.keys() == {"thermal"}
    assert alone.preds["rgb"].shape == (2, 3, 32, 48)  # from another band alone
    losses = model.losses(alone.preds, given, alone.masks)
    assert losses.keys() == set(SIZE["outputs"])
    torch.testing.assert_close(losses["rgb"], F.mse_loss(alone.preds["rgb"], given["rgb"]))


def test_hidden_tokens_do_not_reach_the_network() -> None:
    model, given = network().eval(), maps()
    masks = {
        name: (torch.arange(16) >= k).expand(2, -1).long()
        for name, k in (("rgb", 4), ("thermal", 6), ("semseg", 2))
    }
    preds, _ = model(given, masks)
    spoilt = {k: v.clone() for k, v in given.items()}
    spoilt["rgb"][:, :, 8:] = 100.0  # tokens 4 and more
    spoilt["thermal"][:, :, 16:] = -100.0
    spoilt["semseg"][:, 2:] = 0
    for name, pred in model(spoilt, masks).preds.items():
        assert torch.equal(pred, preds[name])


def test_each_sample_counts_its_own_visible_tokens() -> None:
    model, given = network().eval(), maps()
    masks = {name: torch.rand(2, 16).argsort(1).argsort(1).ge(5).long() for name in given}
    preds, _ = model(given, masks)
    for i in range(2):
        one = model(
            {k: v[i : i + 1] for k, v in given.items()}, {k: v[i : i + 1] for k, v in masks.items()}
        )
        for name, pred in one.preds.items():
            torch.testing.assert_close(pred[0], preds[name][i], rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="no mask for thermal"):
        model(given, {"rgb": masks["rgb"], "semseg": masks["semseg"]})


def test_the_order_of_the_tokens_does_not_matter() -> None:
    model, given = network().eval(), maps()
    masking = model.draw_masking({"rgb": 16, "thermal": 16, "semseg": 16}, 2, "cpu")
    turned = masking._replace(keep=masking.keep.flip(1))
    for name, pred in model(given, masking).preds.items():
        torch.testing.assert_close(model(given, turned).preds[name], pred, rtol=1e-4, atol=1e-5)


def test_unknown_labels_count_as_nothing() -> None:
    model = network().eval()
    adapter = model.input_adapters["semseg"]
    unknown = adapter(torch.full((1, 8, 8), 255))
    wanted = adapter.pos_emb.flatten(2).transpose(1, 2) + adapter.proj.bias
    torch.testing.assert_close(unknown, wanted)
    error, known = pixel_errors(
        "cross_entropy", torch.zeros(1, 5, 1, 2), torch.tensor([[[255, 1]]])
    )
    assert known.tolist() == [[[0, 1]]]
    torch.testing.assert_close(error[0, 0, 1], torch.log(torch.tensor(5.0)))


def test_averaged_class_embeddings() -> None:
    labels = {**LABELS, "pool_classes": True}
    model = network(modalities={"semseg": labels}, outputs=("semseg",))
    adapter = model.input_adapters["semseg"]
    one = adapter(torch.full((1, 8, 8), 3))
    conv = adapter.proj[1]
    flat = adapter.pos_emb.flatten(2).transpose(1, 2)
    wanted = conv.weight[:, :, 0, 0] @ adapter.class_emb.weight[3] + conv.bias
    torch.testing.assert_close(one - flat, wanted.expand_as(one), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"task_queries": False}, {"cross_attention": False}])
def test_decoders_without_their_own_tokens_or_context(options: dict[str, bool]) -> None:
    model = network(outputs={"rgb": {**options, "dim": 8, "depth": 2}, "thermal": {}})
    found, _ = model(maps())
    assert found["rgb"].shape == (2, 3, 32, 32)
    assert model.output_adapters["rgb"].mask_token.shape[-1] == 8
    assert model.output_adapters["thermal"].mask_token.shape[-1] == 16
    found["rgb"].square().mean().backward()
    reached = model.encoder[0].attn.qkv.weight.grad is not None
    assert reached


def test_a_map_that_is_only_drawn() -> None:
    model = network(inputs=("rgb",), outputs=("rgb", "thermal"))
    assert list(model.input_adapters) == ["rgb"]
    given = maps()
    found = model(given)
    assert found.masks.keys() == {"rgb"} and found.preds["thermal"].shape == (2, 1, 32, 32)
    assert model.losses(found.preds, given, found.masks).keys() == {"rgb", "thermal"}


def test_bad_input() -> None:
    given = maps()
    with pytest.raises(DataError, match="rgb map of 30 x 32 is not made of whole patches of 8"):
        network()({**given, "rgb": torch.zeros(2, 3, 30, 32)})
    with pytest.raises(DataError, match="thermal 2 x 4"):
        network()({**given, "thermal": torch.zeros(2, 1, 16, 32)})
    with pytest.raises(DataError, match="their grids of patches are: none"):
        network()({})
    with pytest.raises(ConfigError, match="no modality 'normal' to draw"):
        network(outputs=("normal",))
    with pytest.raises(ConfigError, match="not all among the modalities"):
        network(inputs=("depth",))


def test_masked_mean_by_hand() -> None:
    error = torch.arange(16.0).view(1, 4, 4).repeat(3, 1, 1)
    hidden = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]])
    ones = torch.ones_like(error)
    first, second = (0 + 1 + 4 + 5) / 4, (2 + 3 + 6 + 7 + 10 + 11 + 14 + 15) / 8
    found = masked_mean(error, ones, hidden, 2)
    assert found.item() == pytest.approx((first + second) / 2)  # the third has nothing hidden
    assert masked_mean(error, ones, hidden * 0, 2) == 0
    assert masked_mean(error, ones, None, 2).item() == pytest.approx(7.5)
    valid = ones.clone()
    valid[0, 0, 0] = 0
    assert masked_mean(error[:1], valid[:1], hidden[:1], 2).item() == pytest.approx(10 / 3)
    leaf = error.clone().requires_grad_()
    masked_mean(leaf, ones, hidden, 2).backward()
    assert torch.isfinite(leaf.grad).all() and leaf.grad[2].abs().sum() == 0


def test_patches_are_standardised() -> None:
    x = torch.randn(2, 3, 16, 24) * 5 + 2
    found = standardise_patches(x, 8)
    cut = found[:, :, 8:16, 16:24].flatten(1)
    torch.testing.assert_close(cut.mean(1), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(cut.var(1), torch.ones(2), rtol=1e-4, atol=0)


def test_standardising_leaves_extremes_out() -> None:
    x = torch.arange(100.0).view(1, 1, 10, 10).repeat(2, 1, 1, 1)
    spoilt = x.clone()
    spoilt[1, 0, 9, 9] = 1e6  # one hot pixel
    found = robust_standardise(spoilt)
    torch.testing.assert_close(found[0, 0, :9], found[1, 0, :9])
    middle = torch.arange(10.0, 90.0)
    wanted = (x[0] - middle.mean()) / (middle.var() + 1e-6).sqrt()
    torch.testing.assert_close(found[0], wanted)
    warm = robust_standardise(x * 3 + 273)  # units do not matter
    torch.testing.assert_close(warm[0], found[0], rtol=1e-4, atol=1e-4)


def task(model: MultiMAE, **options: Any) -> MultiMAETask:
    return MultiMAETask(model, OptimizerConfig(), ScheduleConfig(), **options)


def test_validation_repeats_its_masks_and_leaves_the_generator_alone() -> None:
    trained, batch = task(network()), maps()
    torch.manual_seed(0)
    assert not torch.equal(trained.loss(batch), trained.loss(batch))
    trained.eval()
    before = torch.get_rng_state()
    first = trained.loss({**batch, "id": ["a", "b"]})
    assert torch.equal(trained.loss(batch), first)
    assert torch.equal(torch.get_rng_state(), before)
    kelvin = {**batch, "thermal": batch["thermal"] * 20 + 300}
    torch.testing.assert_close(trained.loss(kelvin), first, rtol=1e-3, atol=1e-4)
    assert task(trained.model, standardise=()).eval().loss(kelvin) > 10 * first
    with pytest.raises(DataError, match="none of the maps to draw, semseg"):
        only = network(inputs=("rgb",), outputs=("semseg",), visible_tokens=4)
        task(only).loss({"rgb": batch["rgb"]})
    with pytest.raises(DataError, match="nothing to see: it lacks rgb"):
        task(only).loss({"semseg": batch["semseg"]})


def test_it_learns_that_bands_agree() -> None:
    model = network(
        modalities={"rgb": 3, "thermal": 1}, outputs=("rgb", "thermal"), visible_tokens=8
    )
    trained = task(model, standardise=())
    g = torch.Generator().manual_seed(0)
    thermal = torch.randn(8, 1, 1, 1, generator=g).expand(-1, -1, 32, 32)
    batch = {"thermal": thermal, "rgb": -thermal.expand(-1, 3, -1, -1)}
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    torch.manual_seed(0)
    for _ in range(100):
        loss = trained.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    found = model({"thermal": thermal}, {"thermal": torch.zeros(8, 16)})
    error = F.mse_loss(found.preds["rgb"], batch["rgb"]) / batch["rgb"].var()
    assert error < 0.05  # colour from temperature alone
