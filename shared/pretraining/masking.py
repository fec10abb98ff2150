"""Which tokens an encoder sees in masked pre-training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Dirichlet

from crossband.shared.errors import ConfigError

_SMALLEST_ALPHA = 1e-5  # of modalities that a sample leaves out; a Dirichlet needs more than 0


class Masking(NamedTuple):
    """Which of N tokens are visible.

    Attributes:
        keep: (B, K) numbers of the visible tokens, in the order the encoder sees them.
        mask: (B, N), 0 where a token is visible, 1 where it is removed.
        restore: (B, N) place of every token in (visible, removed), to undo the shuffling.
    """

    keep: Tensor
    mask: Tensor
    restore: Tensor


def visible_count(tokens: int, mask_ratio: float) -> int:
    """Return how many of `tokens` stay visible, `int(tokens (1 - mask_ratio))`.

    Raises:
        ConfigError: nothing would be visible, or nothing hidden.
    """
    visible = int(tokens * (1 - mask_ratio))
    if not 0 < visible < tokens:
        raise ConfigError(
            f"A mask ratio of {mask_ratio} leaves {visible} of {tokens} tokens visible: at least "
            "one must be visible and one hidden."
        )
    return visible


def random_masking(noise: Tensor, visible: int) -> Masking:
    """Keep the tokens with the least noise (He et al. 2022); ties go to the first token.

    Args:
        noise: (B, N).
        visible: K.
    """
    order = noise.argsort(dim=1, stable=True)
    restore = order.argsort(dim=1)
    mask = (restore >= visible).to(noise.dtype)
    return Masking(order[:, :visible], mask, restore)


def dirichlet_masking(
    tokens: Mapping[str, int],
    batch: int,
    visible: int,
    *,
    alphas: float | Sequence[float] = 1.0,
    sample_subsets: bool = False,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, Tensor], Masking]:
    """Share the visible tokens out among modalities (MultiMAE, section 3.3).

    The shares of a sample are drawn from a Dirichlet distribution and rounded, then tokens of each
    modality are drawn; cutting, or adding hidden tokens, makes exactly `visible` of them. Numbers
    are drawn in the authors' order, so that a seed gives their masks.

    Args:
        tokens: Modality -> number of its tokens.
        batch: B.
        visible: K, over all modalities.
        alphas: Of the Dirichlet distribution, one for all or one for each modality.
        sample_subsets: Draw a subset of the modalities first; the others get (nearly) nothing.
        device: Where the noise is drawn.

    Returns:
        Modality -> mask (B, n), 0 visible and 1 hidden; and the masking of all tokens, in the order
        of `tokens`.

    Raises:
        ConfigError: more visible tokens than there are, or none.
    """
    total = sum(tokens.values())
    if not 0 < visible <= total:
        raise ConfigError(f"{visible} visible tokens of {total}: give a number from 1 to {total}.")
    alphas = [alphas] * len(tokens) if isinstance(alphas, (int, float)) else alphas
    concentration = torch.tensor(alphas, dtype=torch.float)
    if sample_subsets:
        concentration = concentration * _subsets(batch, len(tokens)) + _SMALLEST_ALPHA
        shares = Dirichlet(concentration).sample()
    else:
        shares = Dirichlet(concentration).sample((batch,))
    counts = (shares.to(device) * visible).round().long()
    drawn = []
    for number, count in zip(tokens.values(), counts.T, strict=True):
        # A shuffle of 0, 1, ...: as many of its numbers are below a count as the count says.
        places = torch.rand(batch, number, device=device).argsort(dim=1, stable=True)
        drawn.append((places >= count[:, None]).float())
    hidden = torch.cat(drawn, dim=1)
    found = random_masking(hidden + torch.rand_like(hidden), visible)
    return dict(zip(tokens, found.mask.split(list(tokens.values()), 1), strict=True)), found


def masking_of(masks: Sequence[Tensor]) -> Masking:
    """Return the masking that given masks describe, visible tokens in their own order.

    Args:
        masks: (B, n) each, 0 visible and 1 hidden; every sample has as many visible ones.

    Raises:
        ConfigError: samples with different numbers of visible tokens, or without any.
    """
    mask = torch.cat(list(masks), dim=1)
    counts = (mask == 0).sum(1)
    visible = int(counts[0])
    if visible == 0 or bool((counts != visible).any()):
        raise ConfigError(
            f"The samples have {counts.tolist()} visible tokens: mask as many in each of them, "
            "and not all."
        )
    return random_masking(mask.float(), visible)


def _subsets(batch: int, count: int) -> Tensor:
    """Draw a non-empty subset for each sample, (B, count) of 0 and 1."""
    chosen = torch.randint(0, 2**count - 1, (batch,)) + 1
    bits = torch.arange(count - 1, -1, -1)
    return ((chosen[:, None] >> bits) & 1).float()
