from __future__ import annotations

import math

import pytest
import torch

from crossband.shared.metrics import ConfusionMatrix


def test_scores_of_a_matrix_by_hand() -> None:
    matrix = ConfusionMatrix(3)
    label = torch.tensor([[0, 0, 0, 1], [1, 1, 255, 255]])
    found = torch.tensor([[0, 0, 1, 1], [1, 0, 2, 0]])
    matrix.update(found, label)
    scores = matrix.scores()
    assert matrix.counts.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert scores.iou[:2].tolist() == [0.5, 0.5] and math.isnan(scores.iou[2])
    assert scores.overall == pytest.approx(4 / 6)
    assert scores.summary()["mIoU"] == 0.5  # the class that is nowhere does not count
    assert scores.fscore[0] == pytest.approx(2 / 3)


def test_adding_up_images_is_not_averaging_them() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(torch.ones(1, 1), torch.ones(1, 1))
    matrix.update(torch.zeros(3, 3), torch.ones(3, 3))
    assert matrix.scores().iou[1] == pytest.approx(0.1)


def test_equal_to_torchmetrics() -> None:
    import crossband.shared.compat  # noqa: F401 - before torchmetrics

    from torchmetrics.classification import MulticlassJaccardIndex

    torch.manual_seed(0)
    label, found = torch.randint(0, 5, (2, 30, 30)), torch.randint(0, 5, (2, 30, 30))
    label[0, :3] = 255
    matrix = ConfusionMatrix(5)
    matrix.update(found, label)
    theirs = MulticlassJaccardIndex(5, average="none", ignore_index=255)(found, label)
    torch.testing.assert_close(matrix.scores().iou.float(), theirs)
