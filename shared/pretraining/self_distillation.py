"""Self-distillation for further pre-training (Lee et al. 2023, arXiv 2210.02871).

Pre-training on a little more, of the target's kind, overfits a ViT. So what comes of it, theta_1,
only teaches: a student begins again at the public weights theta_0, and learns to draw hidden
patches while its hidden states stay near the teacher's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from crossband.shared.errors import ConfigError
from crossband.shared.pretraining.mae import MAE, MAETask


class SelfDistillationTask(MAETask):
    """Trains a student by `L_MAE + weight * mean over tokens ||f(x) - f_teacher(x)||^2`.

    `f` is the encoder's last hidden state, normalised, of the whole image; only `L_MAE` hides
    patches. Batches hold `image` (B, C, H, W).

    Args:
        settings: Of `Task`; the network is the student, at theta_0.
        teacher: What further pre-training of theta_0 gave. It is no part of the task's state.
        distillation_weight: Weight of the second term.
        compile: Run the networks through `torch.compile`.
        options: Of `Task`.

    Raises:
        ConfigError: a teacher whose tokens are of another size.
    """

    def __init__(
        self,
        *settings: Any,
        teacher: MAE,
        distillation_weight: float = 1.0,
        compile: bool = False,  # noqa: A002 - the option's name
        **options: Any,
    ) -> None:
        """Keep the parts, and the student's first weights for the next round."""
        super().__init__(*settings, compile=compile, **options)
        own, wanted = ((m.patch_size, m.embed_dim, m.in_chans) for m in (self.model, teacher))
        if own != wanted:
            raise ConfigError(
                f"The student's patch size, width and channels are {own}, the teacher's {wanted}: "
                "a student is its own teacher, so give both the same size."
            )
        self.distillation_weight = distillation_weight
        self._options = {"compile": compile, **options}
        self._encode = torch.compile(hidden_state) if compile else hidden_state
        # In a tuple, so that no checkpoint holds them.
        self._teacher = (teacher.requires_grad_(False).eval(),)
        state = self.model.state_dict()
        self._start = {key: value.detach().cpu().clone() for key, value in state.items()}

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss of a batch."""
        return super().loss(batch) + self.distillation_weight * self.distillation(batch["image"])

    def distillation(self, image: Tensor) -> Tensor:
        """Return the squared distance to the teacher's hidden state, mean over tokens."""
        teacher = self._teacher[0].to(image.device)
        with torch.no_grad():
            wanted = self._encode(teacher, image)
        difference = self._encode(self.model, image).float() - wanted.float()
        return difference.square().sum(-1).mean()


def hidden_state(model: MAE, image: Tensor) -> Tensor:
    """Return the tokens (B, 1 + N, D) of a whole image after the encoder's norm."""
    return model.norm(model.forward_tokens(image).x)


def next_round(task: SelfDistillationTask) -> SelfDistillationTask:
    """Return the task of one more round: the student becomes the teacher, theta_0 the student.

    The paper's default is one round, that is none of these.
    """
    teacher, student = copy.deepcopy(task.model), copy.deepcopy(task.model)
    student.load_state_dict(task._start)
    return SelfDistillationTask(
        student,
        task.optimizer_config,
        task.schedule_config,
        teacher=teacher,
        distillation_weight=task.distillation_weight,
        **task._options,
    )
