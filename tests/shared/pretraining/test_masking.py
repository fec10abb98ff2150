from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossband.shared.errors import ConfigError
from crossband.shared.pretraining.masking import (
    dirichlet_masking,
    masking_of,
    random_masking,
    visible_count,
)


def test_the_least_noise_stays_and_ties_go_to_the_first() -> None:
    noise = torch.tensor([[0.3, 0.1, 0.9, 0.1], [0.5, 0.5, 0.5, 0.5]])
    found = random_masking(noise, 2)
    assert found.keep.tolist() == [[1, 3], [0, 1]]
    assert found.mask.tolist() == [[1, 0, 1, 0], [0, 0, 1, 1]]
    assert found.restore.tolist() == [[2, 0, 3, 1], [0, 1, 2, 3]]


@given(st.integers(1, 5), st.integers(2, 40), st.data())
@settings(max_examples=30, deadline=None)
def test_restoring_undoes_the_shuffle(batch: int, tokens: int, data: st.DataObject) -> None:
    visible = data.draw(st.integers(1, tokens - 1))
    noise = torch.rand(batch, tokens)
    found = random_masking(noise, visible)
    x = torch.arange(tokens).expand(batch, -1)
    seen = torch.cat([x.gather(1, found.keep), x.new_full((batch, tokens - visible), -1)], 1)
    restored = seen.gather(1, found.restore)
    assert torch.equal(restored, torch.where(found.mask == 0, x, -1))
    assert (found.mask.sum(1) == tokens - visible).all()


def test_counts_are_the_authors() -> None:
    assert visible_count(196, 0.75) == 49
    assert visible_count(196, 0.9) == 19
    with pytest.raises(ConfigError, match="leaves 0 of 8"):
        visible_count(8, 0.9)


@pytest.mark.parametrize("subsets", [False, True])
@pytest.mark.parametrize("alphas", [1.0, (1.0, 5.0, 0.2)])
def test_visible_tokens_are_shared_out(subsets: bool, alphas: float | tuple[float, ...]) -> None:
    torch.manual_seed(0)
    tokens = {"rgb": 16, "thermal": 16, "semseg": 9}
    masks, found = dirichlet_masking(tokens, 50, 12, alphas=alphas, sample_subsets=subsets)
    assert {name: mask.shape[1] for name, mask in masks.items()} == tokens
    assert torch.equal(torch.cat(list(masks.values()), 1), found.mask)
    assert found.keep.shape == (50, 12)
    assert ((found.mask == 0).sum(1) == 12).all()
    assert (found.mask.gather(1, found.keep) == 0).all()


def test_subsets_leave_modalities_out() -> None:
    torch.manual_seed(0)
    masks, _ = dirichlet_masking({"a": 20, "b": 20, "c": 20}, 400, 10, sample_subsets=True)
    seen = torch.stack([(mask == 0).sum(1) > 0 for mask in masks.values()], 1)
    alone = (seen.sum(1) == 1).float().mean()  # 3 of 7 subsets, and shares that round to nothing
    assert 0.35 < alone < 0.7
    assert seen.any(1).all()


def test_shares_are_uniform_on_the_simplex() -> None:
    torch.manual_seed(0)
    masks, _ = dirichlet_masking({"a": 100, "b": 100, "c": 100}, 2000, 90)
    share = (masks["a"] == 0).sum(1) / 90
    assert share.mean().item() == pytest.approx(1 / 3, abs=0.02)
    assert share.var().item() == pytest.approx(2 / 36, abs=0.01)  # of Dirichlet(1, 1, 1)


def test_given_masks() -> None:
    first, second = torch.tensor([[0, 1], [1, 1]]), torch.tensor([[1, 0, 1], [0, 1, 0]])
    found = masking_of([first, second])
    assert found.keep.tolist() == [[0, 3], [2, 4]]
    with pytest.raises(ConfigError, match=r"\[1, 2\] visible tokens"):
        masking_of([torch.tensor([[0, 1, 1], [0, 0, 1]])])
    with pytest.raises(ConfigError, match="mask as many in each"):
        masking_of([torch.ones(2, 3)])
    with pytest.raises(ConfigError, match="from 1 to 8"):
        dirichlet_masking({"a": 8}, 2, 9)
