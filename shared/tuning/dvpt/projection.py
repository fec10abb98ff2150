"""What every form of DVPT adds to a block: a shared, gated bottleneck and dynamic prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from crossband.shared.backbones.vit import QuickGELU
from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.kernels.attention import attention

CrossAttention = Literal["released", "paper"]


class GatedProjection(nn.Module):
    """`u(x) = g W_u quickgelu(W_d x + b_d) + g b_u` with one gate `g`, which starts at 0.

    Args:
        dim: Channels of the input.
        rank: r, channels in between.
        out_dim: Channels of the output; default: `dim`.
    """

    def __init__(self, dim: int, rank: int, out_dim: int | None = None) -> None:
        """Build the two layers and the gate."""
        super().__init__()
        self.prompt_gate = nn.Parameter(torch.zeros(1))
        self.prompt_key_proj_d = nn.Linear(dim, rank)
        self.act = QuickGELU()
        self.prompt_key_proj_u = nn.Linear(rank, out_dim or dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to (..., out_dim)."""
        return self.prompt_gate * self.prompt_key_proj_u(self.act(self.prompt_key_proj_d(x)))


class AdaptedLinear(GatedProjection):
    """A frozen linear layer `proj` with a gated bottleneck of its own beside it."""

    def __init__(self, dim: int, out_dim: int, rank: int) -> None:
        """Build the layer and the bottleneck."""
        super().__init__(dim, rank, out_dim)
        self.proj = nn.Linear(dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to (..., out_dim)."""
        return self.proj(x) + super().forward(x)


def shared_projections(dim: int, rank: int, share: int, blocks: int) -> Iterator[GatedProjection]:
    """Give a projection for each of so many blocks; each `share` neighbours get the same one."""
    module = GatedProjection(dim, rank)
    for number in range(blocks):
        if number and number % share == 0:
            module = GatedProjection(dim, rank)
        yield module


def check_options(prompts: int, rank: int, share: int, cross_attention: str = "released") -> None:
    """Refuse what cannot be.

    Raises:
        ConfigError: a number below 1, or a form that is not known.
    """
    if min(prompts, rank, share) < 1:
        raise ConfigError(
            f"DVPT with {prompts} prompts, of rank {rank}, shared by {share} blocks: give 1 or "
            "more of each."
        )
    if cross_attention not in get_args(CrossAttention):
        raise ConfigError(
            f"There is no cross-attention {cross_attention!r} of DVPT: give 'released' or 'paper'."
        )


def dynamic_prompts(prompts: Tensor, x: Tensor) -> Tensor:
    """Make prompts of a sample: `softmax(P x^T / sqrt(D)) x`.

    Args:
        prompts: P, (1 or B, P, D).
        x: Tokens (B, N, D).

    Returns:
        (B, P, D).
    """
    return attention(prompts.expand(len(x), -1, -1), x, x)


def add_to_first(x: Tensor, prompts: Tensor) -> Tensor:
    """Add prompts (B, P, D) to the first P of the tokens (B, N, D), as the authors' code does.

    Raises:
        ConfigError: fewer tokens than prompts.
    """
    count = prompts.shape[1]
    if x.shape[1] < count:
        raise ConfigError(
            f"{count} prompts do not fit a map of {x.shape[1]} tokens: give larger images or "
            "fewer prompts."
        )
    return torch.cat([x[:, :count] + prompts, x[:, count:]], dim=1)


def check_ties(model: nn.Module) -> None:
    """Have a network refuse weights that differ where modules of its own are one.

    A state dict repeats a shared projection under every block. Loading copies one after the
    other, so a file of another interval of sharing would otherwise lose all but the last.
    """
    model.register_load_state_dict_pre_hook(_refuse_untied)


def _refuse_untied(model: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        key = prefix + name
        if key not in state:
            continue
        other = first.setdefault(id(parameter), key)
        if other != key and not torch.equal(state[other], state[key]):
            raise CheckpointError(
                f"The weights differ in {other} and {key}, which are one parameter of "
                f"{type(model).__name__}: give the `share` that they were made with."
            )
