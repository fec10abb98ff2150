"""Focal loss of independent classes (Lin et al. 2017, equation 5)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sigmoid_focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float = 0.25,
    weight: Tensor | None = None,
) -> Tensor:
    """Return `-alpha_t (1 - p_t)^gamma log p_t` of every class, not reduced.

    Written with log-sigmoids, so that it stays exact where `1 - p` rounds to zero.

    Args:
        logits: (N, C).
        target: (N,) class indices; C (any other number) is background, positive for no class.
        gamma: How much easy examples are turned down.
        alpha: Weight of positives; negatives weigh `1 - alpha`.
        weight: (C,) factor by the class of the target; background has 1.

    Returns:
        (N, C).
    """
    classes = logits.shape[1]
    positive = target[:, None] == torch.arange(classes, device=target.device)
    signed = torch.where(positive, logits, -logits)  # p_t = sigmoid(signed)
    loss = -F.logsigmoid(signed) * torch.sigmoid(-signed) ** gamma
    loss = loss * torch.where(positive, alpha, 1 - alpha).to(loss.dtype)
    if weight is not None:
        loss = loss * F.pad(weight, (0, 1), value=1.0)[target.clamp(max=classes)][:, None]
    return loss
