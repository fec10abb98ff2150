"""What `pretrain` needs of a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import Dataset

from crossband.shared.tasks.base import Task
from crossband.shared.training.callbacks import RunBook
from crossband.shared.training.run_folder import RunFolder


@dataclass
class Plan:
    """A method with its data.

    Attributes:
        task: What to train.
        train: Items to learn from.
        val: Items that are held back.
        name: Of the network, for people.
        data_sets: Name -> number of images.
        description: What the checkpoint says beside the weights.
        finish: Writes the results of a finished run, whose best weights are in the task.
        smallest_batch: Items that a last training batch must have.
        notes: What was left out, and why.
    """

    task: Task
    train: Dataset
    val: Dataset
    name: str
    data_sets: dict[str, int]
    description: dict[str, Any]
    finish: Callable[[RunFolder, RunBook], None]
    smallest_batch: int = 1
    notes: list[str] = field(default_factory=list)
