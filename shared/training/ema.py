"""Exponential moving average of the weights, used for validation and the best checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Keeps `average = d * average + (1 - d) * weights`, with `d` warmed up from zero.

    Step `k` uses `d = min(decay, (1 + k) / (10 + k))`, so that the first, random weights are
    soon forgotten. Buffers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the model's present weights."""
        self.decay = decay
        self.steps = 0
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for key, value in model.state_dict().items():
            target = self.average[key]
            if target.device != value.device:
                target = self.average[key] = target.to(value.device)
            if value.is_floating_point():
                target.lerp_(value, 1 - decay)
            else:
                target.copy_(value)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights for the length of a block."""
        backup = {k: v.detach().clone() for k, v in model.state_dict().items()}
        model.load_state_dict(self.average)
        try:
            yield
        finally:
            model.load_state_dict(backup)

    def state_dict(self) -> dict[str, int | dict[str, Tensor]]:
        """Return what a resumed run needs."""
        return {"steps": self.steps, "average": self.average}

    def load_state_dict(self, state: dict) -> None:
        """Take over the state of an earlier run."""
        self.steps = state["steps"]
        self.average = dict(state["average"])
