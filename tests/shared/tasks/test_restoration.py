import torch
from torch import nn

from crossband.shared.config import OptimizerConfig, ScheduleConfig
from crossband.shared.tasks.restoration import RestorationTask


def test_the_loss_is_smooth_l1_of_the_prepared_batch():
    seen = []

    def augment(batch):
        seen.append(True)
        return {"image": batch["target"] + 1.5, "target": batch["target"]}

    task = RestorationTask(nn.Identity(), OptimizerConfig(), ScheduleConfig(), augment=augment)
    batch = {"target": torch.rand(2, 3, 4, 4)}
    assert torch.isclose(task.training_step(batch, 0), torch.tensor(1.0))  # 1.5 - 0.5
    small = {"image": torch.full((1, 1, 1, 1), 0.5), "target": torch.zeros(1, 1, 1, 1)}
    assert torch.isclose(task.loss(small), torch.tensor(0.125))
    assert seen == [True]


def test_a_residual_network_is_told_what_to_subtract() -> None:
    image, target = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    task = RestorationTask(torch.nn.Identity(), OptimizerConfig(), ScheduleConfig(), residual=True)
    found = task.loss({"image": image, "target": target})
    torch.testing.assert_close(found, torch.nn.functional.smooth_l1_loss(image * 0, target))
