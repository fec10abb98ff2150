from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from crossband.apps.low_light.tiling import pad_to, run_strips, run_tiled, run_whole
from crossband.shared.errors import ConfigError


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (40, 79), (80, 80), (200, 81)])
def test_padding_keeps_the_image_and_reaches_the_size(size) -> None:
    image = torch.rand(1, 3, *size)
    padded = pad_to(image, 80, 160)
    assert padded.shape[-2] == max(80, size[0]) and padded.shape[-1] == max(160, size[1])
    assert torch.equal(padded[..., : size[0], : size[1]], image)
    assert torch.equal(run_whole(image, lambda x: x, 80), image)


@pytest.mark.parametrize("size", [(50, 50), (64, 64), (65, 130), (100, 333), (129, 64), (191, 97)])
@pytest.mark.parametrize("overlap", [0, 8, 40, 63])
@pytest.mark.parametrize("tone", [False, True])
def test_a_network_that_does_nothing_gives_the_image_back(size, overlap, tone) -> None:
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    small = F.adaptive_avg_pool2d(image[None].float() / 255, size) if tone else None
    found = run_tiled(image, lambda x: x, (64, 64), overlap, white=255, tone=small)
    torch.testing.assert_close(found, image.float() / 255, rtol=1e-4, atol=1e-4)


def test_tiles_of_unequal_brightness_leave_no_seam() -> None:
    image = torch.rand(3, 200, 300) * 0.2 + 0.4

    def moody(x: torch.Tensor) -> torch.Tensor:
        """Every tile is made 0.5 on average, whatever is in it."""
        return x - x.mean() + 0.5

    image[:, :, 150:] += 0.3  # the right half is brighter
    tone = F.adaptive_avg_pool2d(image[None], (50, 75))
    plain = run_tiled(image, moody, (80, 80), 16)
    held = run_tiled(image, moody, (80, 80), 16, tone=tone)
    assert abs(float(plain[:, :, 250:].mean() - plain[:, :, :50].mean())) < 0.1
    assert float(held[:, :, 250:].mean() - held[:, :, :50].mean()) == pytest.approx(0.3, abs=0.02)
    # What is finer than the tone's cells is the tiles': the texture stays.
    assert float((held - image).abs().mean()) < 0.02


def test_an_overlap_as_wide_as_a_tile_is_refused() -> None:
    with pytest.raises(ConfigError, match="overlap"):
        run_tiled(torch.rand(3, 90, 90), lambda x: x, (80, 80), 80)


@pytest.mark.parametrize("rows", [1, 5, 64, 1000])
def test_strips_equal_one_piece(rows: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 3, 5, 5)
    image = torch.randint(0, 65536, (3, 70, 33), dtype=torch.int32)

    def network(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weight, padding=2)

    whole = network(image[None].float() / 65535)[0]
    found = run_strips(image, network, reach=2, rows=rows, white=65535)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)
