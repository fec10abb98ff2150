from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from crossband.shared.config import OptimizerConfig, ScheduleConfig
from crossband.shared.tasks.segmentation import SegmentationTask, overlap_loss


def _task(**options: object) -> SegmentationTask:
    model = torch.nn.Conv2d(3, 2, 1)
    return SegmentationTask(model, OptimizerConfig(), ScheduleConfig(), **options)


def test_cross_entropy_divides_by_labelled_pixels_or_as_mmseg_by_all() -> None:
    torch.manual_seed(0)
    logits, mask = torch.randn(1, 2, 4, 4), torch.randint(0, 2, (1, 4, 4))
    mask[0, :2] = 255
    wanted = F.cross_entropy(logits, mask, ignore_index=255)
    labelled = _task(avg_non_ignore=True).cross_entropy(logits, mask)
    everything = _task(avg_non_ignore=False).cross_entropy(logits, mask)
    torch.testing.assert_close(labelled, wanted)
    torch.testing.assert_close(everything, wanted / 2)
    nothing = torch.full_like(mask, 255)
    assert _task().cross_entropy(logits, nothing) == 0  # never 0 / 0


@pytest.mark.parametrize("kind", ["dice", "iou"])
def test_overlap_loss_is_zero_for_the_truth_and_one_for_its_opposite(kind: str) -> None:
    mask = torch.zeros(2, 8, 8, dtype=torch.long)
    mask[0, 2:6, 2:6] = 1
    sure = 50.0 * (F.one_hot(mask, 2).movedim(-1, 1).float() - 0.5)
    assert overlap_loss(sure, mask, kind) == pytest.approx(0.0, abs=1e-5)
    assert overlap_loss(-sure, mask, kind) > 0.97
    ignored = torch.full_like(mask, 255)
    assert overlap_loss(-sure, ignored, kind) == pytest.approx(0.0, abs=1e-5)


def test_soft_iou_by_hand() -> None:
    logits = torch.zeros(1, 2, 1, 4)  # probability one half everywhere
    mask = torch.tensor([[[1, 1, 0, 0]]])
    # both = 1, p = 2, t = 2: (1 + 1) / (4 - 1 + 1)
    assert overlap_loss(logits, mask, "iou") == pytest.approx(0.5)
    assert overlap_loss(logits, mask, "dice") == pytest.approx(1 - 3 / 5)


def test_auxiliary_head_is_trained_too() -> None:
    class Two(torch.nn.Module):
        def training_logits(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return image[:, :2], image[:, 1:]

    task = SegmentationTask(Two(), OptimizerConfig(), ScheduleConfig(), auxiliary_weight=0.4)
    torch.manual_seed(0)
    image, mask = torch.randn(2, 3, 4, 4), torch.randint(0, 2, (2, 4, 4))
    wanted = F.cross_entropy(image[:, :2], mask) + 0.4 * F.cross_entropy(image[:, 1:], mask)
    torch.testing.assert_close(task.loss({"image": image, "mask": mask}), wanted)
