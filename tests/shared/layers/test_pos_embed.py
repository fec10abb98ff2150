from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from crossband.shared.conformance import read_fixture
from crossband.shared.layers.pos_embed import resample_pos_embed, sincos_pos_embed


def test_tables_and_resampling_equal_the_authors(shared_dir: Path) -> None:
    fixture = read_fixture(shared_dir / "fixtures/medical/mae_recipe.safetensors")
    for dim, side in ((384, 14), (512, 14), (48, 4)):
        wanted = fixture.outputs[f"sincos_d{dim}_g{side}"]
        found = sincos_pos_embed(dim, (side, side))[0]
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    found = resample_pos_embed(fixture.inputs["pos_embed_4x4"], (4, 4), (7, 7))
    wanted = fixture.outputs["pos_embed_7x7"]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_the_first_half_tells_columns_the_second_rows() -> None:
    table = sincos_pos_embed(8, (2, 3), class_token=False)[0].view(2, 3, 8)
    assert torch.equal(table[0, :, :4], table[1, :, :4])
    assert torch.equal(table[:, 0, 4:], table[:, 2, 4:])
    assert table[0, 1, 0].item() == pytest.approx(math.sin(1), abs=1e-6)
    assert table[0, 1, 2].item() == pytest.approx(math.cos(1), abs=1e-6)


def test_the_same_grid_is_left_alone_and_class_rows_are_kept() -> None:
    table = torch.randn(1, 1 + 6, 4)
    assert resample_pos_embed(table, (2, 3), (2, 3)) is table
    larger = resample_pos_embed(table, (2, 3), (5, 4))
    assert larger.shape == (1, 21, 4) and torch.equal(larger[:, 0], table[:, 0])
    flat = torch.ones(1, 4, 2)
    assert torch.allclose(resample_pos_embed(flat, (2, 2), (3, 5), 0), torch.ones(1, 15, 2))
