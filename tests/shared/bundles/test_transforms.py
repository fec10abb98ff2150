"""The table, the loss and the score of bundles that classify."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("ignite", reason="extra medical")

from crossband.shared.bundles.transforms import KnownLabelsLoss, MeanAUROC, PredictionTable


def test_unknown_labels_count_for_nothing() -> None:
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    label = torch.tensor([[1.0, torch.nan], [0.0, 1.0], [torch.nan, torch.nan]])
    loss = KnownLabelsLoss()(logits, label)
    known = ~label.isnan()
    assert loss.item() == pytest.approx(
        nn.BCEWithLogitsLoss()(logits[known], label[known]).item(), abs=1e-7
    )
    loss.backward()
    assert (logits.grad[~known] == 0).all() and (logits.grad[known] != 0).all()
    nothing = KnownLabelsLoss()(logits, torch.full((3, 2), torch.nan))
    assert nothing.item() == 0 and not torch.autograd.grad(nothing, logits)[0].any()


def test_classes_without_both_values_are_not_scored() -> None:
    score = MeanAUROC()
    pred = torch.tensor([[0.1, 0.2, 0.3], [0.9, 0.8, 0.1], [0.4, 0.1, 0.5], [0.3, 0.7, 0.2]])
    label = torch.tensor([[0.0, 0, 1], [1, 1, 1], [1, torch.nan, 1], [0, 0, 1]])
    score.update((list(pred[:2]), list(label[:2])))
    score.update((list(pred[2:]), list(label[2:])))
    assert score.compute() == pytest.approx((1.0 + 1.0) / 2)
    score.reset()
    score.update((list(pred), list(1 - label)))
    assert score.compute() == pytest.approx(0.0)
    score.reset()
    score.update((list(pred), list(torch.ones(4, 3))))
    assert score.compute() == 0.5


def test_class_ids_are_scored_one_against_the_rest() -> None:
    score = MeanAUROC()
    pred = torch.tensor([[0.8, 0.2], [0.3, 0.7], [0.6, 0.4], [0.1, 0.9]])
    score.update((list(pred), list(torch.tensor([0, 1, 1, 1]))))
    assert score.compute() == pytest.approx(1.0)
    score.reset()
    score.update((list(pred), list(torch.tensor([0, 0, 1, 1]))))
    assert score.compute() == pytest.approx(0.75)


def test_equal_names_keep_their_rows(tmp_path: Path) -> None:
    table = PredictionTable(["a", "b, or c"], str(tmp_path / "out"))
    values = torch.tensor([[0.125, 1 / 3], [1e-9, 1.0]])
    table.save_batch(values, {"filename_or_obj": ["x", "x"]})
    table.finalize()
    lines = (tmp_path / "out/predictions.csv").read_text().splitlines()
    assert lines == ['image,a,"b, or c"', "x,0.125,0.3333333", "x,1e-09,1"]
