from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from crossband.apps.low_light.gdc import GDC
from crossband.shared.errors import ConfigError


def grouped(block: GDC, x: torch.Tensor) -> torch.Tensor:
    """Evaluate the block as its description reads: one 1x1 kernel per patch and image."""
    batch, channels, height, width = x.shape
    q = block.patch(x) + block.diff
    q = F.gelu(F.layer_norm(q.movedim(1, -1), (channels,), *block.lnnorm.parameters(), 1e-6))
    kernels = q.flatten(1, 2)  # B, P, C
    keys = block.convk(x).reshape(1, batch * channels, height, width)
    maps = F.conv2d(keys, kernels.flatten(0, 1)[..., None, None], groups=batch)
    return x + block.conv1(maps.reshape(batch, -1, height, width) + block.bias)


def make(dim: int = 6, shape: tuple[int, int] | int = (10, 15), **options) -> GDC:
    torch.manual_seed(0)
    block = GDC(dim, shape, **options).eval()
    with torch.no_grad():
        block.bias.fill_(0.3)
    return block


@pytest.mark.parametrize("order", ["direct", "reassociated", "auto"])
@pytest.mark.parametrize("shape, dim", [((10, 15), 6), ((10, 10), 32), (14, 5)])
def test_both_orders_equal_the_grouped_convolution(order, shape, dim) -> None:
    block = make(dim, shape, order=order)
    height, width = (shape, shape) if isinstance(shape, int) else shape
    x = torch.randn(3, dim, height, width)
    torch.testing.assert_close(block(x), grouped(block, x), rtol=1e-5, atol=1e-5)


def test_the_cheaper_order_is_chosen_by_the_count_of_products() -> None:
    # The published PM at 400 x 640: dim, input; the dossier says which order is cheaper.
    for dim, shape, cheaper in (
        (256, (50, 80), True),
        (512, (25, 40), False),
        (1024, (50, 80), False),
        (512, (100, 160), True),
    ):
        with torch.device("meta"):
            block = GDC(dim, shape)
        places, patches = shape[0] * shape[1], shape[0] * shape[1] // 25
        costs = (dim**2 * (patches + places), 2 * dim * patches * places)
        assert (costs[0] < costs[1]) == cheaper
        assert block._reassociate(dim, patches, places) == cheaper


def test_the_patch_side_follows_the_form_of_the_size() -> None:
    assert GDC(2, (10, 20)).patch_size == 5
    assert GDC(2, 14).patch_size == 7
    with pytest.raises(ConfigError, match="patches of 5"):
        GDC(2, (12, 20))


def test_another_size_is_refused_unless_the_grid_may_be_resized() -> None:
    x = torch.randn(1, 6, 20, 15)
    with pytest.raises(ConfigError, match="10 x 15.*20 x 15"):
        make()(x)
    block = make(resize_patch_grid=True)
    assert block(x).shape == x.shape
    with pytest.raises(ConfigError, match="multiples of 5"):
        block(torch.randn(1, 6, 21, 15))
    native = torch.randn(1, 6, 10, 15)
    assert torch.equal(block(native), make()(native))


def test_resizing_the_grid_keeps_the_scale_of_the_sum_over_patches() -> None:
    """A constant image of twice the size gives the same values."""
    block = make(resize_patch_grid=True)
    with torch.no_grad():
        block.diff.fill_(0.5)
        block.convk.weight.zero_()  # its padding would tell the border from the inside
        block.convk.bias.normal_()
    small, large = (torch.full((1, 6, 10 * s, 15 * s), 0.7) for s in (1, 2))
    torch.testing.assert_close(block(large)[..., :1, :1], block(small)[..., :1, :1])


def test_drop_path_leaves_out_whole_samples_in_training_only() -> None:
    block = make(drop_path=0.5)
    x = torch.randn(64, 6, 10, 15)
    full = block(x) - x
    torch.manual_seed(0)
    ratio = (block.train()(x) - x) / full
    kept = ratio.flatten(1).mean(1)
    assert set(kept.round(decimals=3).tolist()) == {0.0, 2.0}


def test_the_unused_norm_is_kept_for_the_keys_alone() -> None:
    block = make()
    assert {"ln.weight", "ln.bias"} <= block.state_dict().keys()
    assert not block.ln.weight.requires_grad
