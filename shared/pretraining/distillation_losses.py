"""Losses by which a student learns from a teacher: plain functions of their outputs.

Teachers' outputs take no gradient; all is computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from crossband.shared.errors import ConfigError


def nkd_loss(
    student: Tensor,
    teacher: Tensor,
    label: Tensor,
    *,
    temperature: float = 1.0,
    alpha: float = 1.0,
) -> Tensor:
    """Return the loss of normalised knowledge distillation (Yang et al. 2023).

    `-t_y log s_y - alpha T^2 sum_(c != y) t'_c log s'_c`, mean over samples, where `t'` and `s'`
    are softmaxes of temperature T over the classes other than y.

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C).
        label: Classes (N,), or soft labels (N, C), of which the largest counts.
        temperature: T.
        alpha: Weight of the other classes.
    """
    _same_shape(student, teacher)
    student, teacher = student.float(), teacher.detach().float()
    y = (label.argmax(1) if label.dim() == 2 else label)[:, None]
    target = -teacher.softmax(1).gather(1, y) * student.log_softmax(1).gather(1, y)
    own = torch.zeros_like(student, dtype=torch.bool).scatter_(1, y, True)
    t, s = (x.masked_fill(own, -torch.inf) / temperature for x in (teacher, student))
    # The logarithm at y is minus infinity, its weight 0: together not a number.
    others = -(t.softmax(1) * s.log_softmax(1).masked_fill(own, 0.0)).sum(1, keepdim=True)
    return (target + alpha * temperature**2 * others).mean()


def channel_divergence(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return the channel-wise divergence of two maps of logits (Shu et al. 2021).

    `T^2 / (N C) sum -softmax(t / T) log softmax(s / T)` with softmaxes over the places of each
    channel: the cross entropy, which differs from the divergence by what the student cannot change.

    Args:
        student: (N, C, H, W).
        teacher: Same shape.
        temperature: T.
    """
    _same_shape(student, teacher)
    s = student.flatten(2).float() / temperature
    t = teacher.detach().flatten(2).float() / temperature
    return -(temperature**2) * (t.softmax(-1) * s.log_softmax(-1)).sum(-1).mean()


def relation_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], heads: int = 1) -> Tensor:
    """Return the divergence of how tokens relate (MiniLMv2, Wang et al. 2021).

    For each pair `(i, j)` of queries, keys and values: `KL(softmax(t_i t_j^T / sqrt(E)) || same of
    the student)` with E channels for each of `heads` relation heads; mean over pairs, samples,
    heads and rows.

    Args:
        student: Queries, keys and values, (B, N, C) each.
        teacher: The same of a network that may be wider.
        heads: Relation heads; divides both widths.

    Raises:
        ConfigError: heads that do not divide a width.
    """
    for x in (student[0], teacher[0]):
        if x.shape[-1] % heads:
            raise ConfigError(
                f"{heads} relation heads do not divide {x.shape[-1]} channels: choose a number "
                "that divides the student's and the teacher's."
            )
    own = [_split(x, heads) for x in student]
    wanted = [_split(x.detach(), heads) for x in teacher]
    total = own[0].new_zeros(())
    for i in range(len(own)):
        for j in range(len(own)):
            s, t = (_relation(x[i], x[j]).log_softmax(-1) for x in (own, wanted))
            total = total + F.kl_div(s, t, log_target=True, reduction="none").sum(-1).mean()
    return total / len(own) ** 2


def _split(x: Tensor, heads: int) -> Tensor:
    return x.float().unflatten(-1, (heads, -1)).transpose(1, 2)


def _relation(rows: Tensor, columns: Tensor) -> Tensor:
    return (rows * rows.shape[-1] ** -0.5) @ columns.transpose(-2, -1)


def _same_shape(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ConfigError(
            f"The student's output {tuple(student.shape)} and the teacher's "
            f"{tuple(teacher.shape)} differ in shape: give both networks the same classes and size."
        )
