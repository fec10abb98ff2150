"""Losses of MultiMAE, and how its maps are standardised."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_EPS = 1e-6


def robust_standardise(x: Tensor, trim: float = 0.1) -> Tensor:
    """Give each sample mean 0 and variance 1, leaving out its lowest and highest values.

    Args:
        x: (B, C, H, W).
        trim: Part that is left out at each end.
    """
    ordered = x.float().flatten(1).sort(dim=1).values
    count = ordered.shape[1]
    middle = ordered[:, int(trim * count) : int((1 - trim) * count)]
    variance, mean = torch.var_mean(middle, dim=1)
    shape = (-1, *[1] * (x.dim() - 1))
    return (x - mean.view(shape)) / (variance + _EPS).sqrt().view(shape)


def standardise_patches(x: Tensor, patch: int) -> Tensor:
    """Give each patch of an image (B, C, H, W) mean 0 and variance 1."""
    cut = x.float().unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    variance, mean = torch.var_mean(cut, dim=(1, 3, 5), keepdim=True)
    return ((cut - mean) / (variance + _EPS).sqrt()).flatten(4).flatten(2, 3)


def masked_mean(error: Tensor, valid: Tensor, hidden: Tensor | None, patch: int) -> Tensor:
    """Return the mean error over hidden places: of each sample, then of samples that have any.

    Args:
        error: (B, H, W).
        valid: (B, H, W), 0 where nothing is to be learned.
        hidden: (B, N), 1 for hidden tokens; None: all.
        patch: Side of a token's patch in places.

    Returns:
        A scalar, 0 if nothing is hidden.
    """
    if hidden is not None:
        grid = (error.shape[1] // patch, error.shape[2] // patch)
        mask = hidden.to(error).unflatten(1, grid)
        valid = valid * mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    count = valid.flatten(1).sum(1)
    means = (error * valid).flatten(1).sum(1) / count.clamp(min=1)
    return means.sum() / (count > 0).sum().clamp(min=1)


def pixel_errors(criterion: str, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return errors (B, H, W), mean over channels, and where they count (labels that are known).

    Args:
        criterion: `mse`, `l1` or `cross_entropy`.
        pred: (B, C, H, W).
        target: Same shape, or labels (B, H, W).
    """
    if criterion == "cross_entropy":
        known = (target >= 0) & (target < pred.shape[1])
        error = F.cross_entropy(pred, torch.where(known, target, 0), reduction="none")
        return error, known.to(error)
    difference = pred - target.float()
    error = difference.abs() if criterion == "l1" else difference.square()
    return error.mean(1), torch.ones_like(error[:, 0])
