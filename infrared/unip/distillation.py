"""Hybrid-attention distillation (UNIP, NMI-HAD): a teacher's attention map teaches a student.

Only the attention of one teacher layer, chosen by `analysis.choose_layer`, is distilled, into the
student's last layer, which has as many heads. So no projection between the two is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from crossband.shared.backbones.vit import ViTTrunk
from crossband.shared.errors import ConfigError
from crossband.shared.tasks.base import Task


def attention_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(softmax(teacher) || softmax(student)), mean over images, heads and queries.

    Args:
        student: Logits (B, heads, N, N), scaled, class token included.
        teacher: Likewise.

    Returns:
        A scalar in float32.
    """
    target = F.log_softmax(teacher.float(), dim=-1)
    found = F.log_softmax(student.float(), dim=-1)
    return F.kl_div(found, target, log_target=True, reduction="none").sum(-1).mean()


def attention_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """Return what the authors' option `CE` computes; not a loss to train with.

    The cross entropy is taken over the heads instead of the keys, summed over the keys and averaged
    over images and queries.

    Args:
        student: Logits (B, heads, N, N).
        teacher: Likewise; softmax over the keys makes the targets.
    """
    target = teacher.float().softmax(-1)
    return F.cross_entropy(student.float(), target, reduction="none").sum(-1).mean()


def unused_parameters(model: ViTTrunk) -> list[str]:
    """Return the names of the parameters that the distillation gives no gradient.

    Of the last block only the first norm, queries and keys are used, and nothing after it. (The
    rows of the values in `qkv` are part of a used tensor; their gradient is zero.)
    """
    last = f"blocks.{len(model.blocks) - 1}."
    used = (f"{last}norm1.", f"{last}attn.qkv.")
    after = (last, "norm.", "head.", "fc_norm.")
    return [
        name
        for name, _ in model.named_parameters()
        if name.startswith(after) and not name.startswith(used)
    ]


class HybridAttentionDistillation(Task):
    """Trains a student's last attention map towards that of a teacher's layer.

    Batches hold `image` (B, C, H, W); both networks see the same. The teacher moves between devices
    with the task but is no part of its state. Parameters of the student that get no gradient are
    frozen, so that distributed runs need not look for them.

    Args:
        model: The student.
        settings: Of `Task`: optimiser and schedule.
        teacher: A ViT; it is frozen.
        layer: Of the teacher, counted from 1 as the paper does.
        compile: Run both networks through `torch.compile`.
        augment: Of `Task`.

    Raises:
        ConfigError: a layer that the teacher does not have, or networks whose maps differ in shape.
    """

    model: ViTTrunk

    def __init__(
        self,
        model: ViTTrunk,
        *settings: Any,
        teacher: ViTTrunk,
        layer: int,
        compile: bool = False,  # noqa: A002 - the option's name
        augment: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> None:
        """Freeze the teacher and what the student does not use."""
        super().__init__(model, *settings, augment=augment)
        check_pair(model, teacher, layer)
        # Held in a tuple so that it is no part of the task's state.
        self.teacher = (teacher.eval().requires_grad_(False),)
        self.layer = layer
        for name in unused_parameters(model):
            model.get_parameter(name).requires_grad_(False)
        student, wanted = model.attention_logits, teacher.attention_logits
        if compile:
            student, wanted = torch.compile(student), torch.compile(wanted)
        self._student_logits, self._teacher_logits = student, wanted

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move the teacher wherever the task goes."""
        self.teacher[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def logits(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of student and teacher, (B, heads, N, N) each."""
        with torch.no_grad():
            wanted = self._teacher_logits(image, self.layer - 1)
        return self._student_logits(image), wanted

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the divergence of a batch (section 3 of the paper)."""
        return attention_kl(*self.logits(batch["image"]))


def check_pair(student: ViTTrunk, teacher: ViTTrunk, layer: int) -> None:
    """Say why a student cannot learn from a layer of a teacher.

    Raises:
        ConfigError: it cannot.
    """
    depth = len(teacher.blocks)
    if not 1 <= layer <= depth:
        raise ConfigError(
            f"The teacher has no layer {layer}: it has {depth}, counted from 1; give one of them "
            "by --teacher_layer, or leave it out to choose by NMI."
        )
    heads = teacher.blocks[layer - 1].attn.num_heads
    own = student.blocks[-1].attn.num_heads
    if heads != own:
        raise ConfigError(
            f"The teacher's layer has {heads} heads, the student's last block {own}: build the "
            f"student with last_heads {heads}."
        )
    for what, ours, theirs in (
        ("patches of side", student.patch_size, teacher.patch_size),
        ("image channels", *(n.patch_embed.proj.in_channels for n in (student, teacher))),
        ("class and register tokens", _prefix(student), _prefix(teacher)),
    ):
        if ours != theirs:
            raise ConfigError(
                f"The student has {ours} {what}, the teacher {theirs}: their attention maps differ "
                "in what they are about; choose a student with the teacher's value."
            )


def _prefix(model: ViTTrunk) -> int:
    registers = 0 if model.reg_token is None else model.reg_token.shape[1]
    return registers + (model.cls_token is not None)
