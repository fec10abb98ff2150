"""DVPT for networks that exist already: our ViTs and timm's Swin transformers."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from crossband.shared.backbones.vit import Block, ViTTrunk
from crossband.shared.errors import ConfigError
from crossband.shared.tuning.dvpt.projection import (
    CrossAttention,
    GatedProjection,
    check_options,
    check_ties,
    dynamic_prompts,
    shared_projections,
)

# Prompts and rank as published.
_VIT, _SWIN = (50, 20), (10, 10)


class PromptedBlock(Block):
    """A block of our ViT with u beside the MLP; takes over the layers of the block it is made from.

    Args:
        base: Block.
        projection: u.
        first: Place of the first prompt among the tokens.
        fresh: Number of prompts that u sees replaced by `softmax(P T^t / sqrt(D)) T` of the other
            tokens T; 0 in the released form, which throws them away.
    """

    def __init__(self, base: Block, projection: GatedProjection, first: int, fresh: int) -> None:
        """Take over the layers."""
        self.__dict__.update(vars(base))  # in place of building them
        self.first, self.fresh = first, fresh
        self.prompt_proj = projection

    def forward(self, x: Tensor, logits: list[Tensor] | None = None) -> Tensor:
        """Map (B, N, D) to the same shape; append the attention's logits to a list if given."""
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), logits)))
        seen = x
        if self.fresh:
            parts = (self.first, self.fresh, x.shape[1] - self.first - self.fresh)
            prefix, prompts, patches = x.split(parts, dim=1)
            prompts = dynamic_prompts(prompts, torch.cat([prefix, patches], dim=1))
            seen = torch.cat([prefix, prompts, patches], dim=1)
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x)))) + self.prompt_proj(seen)


def apply_dvpt(
    model: nn.Module,
    *,
    prompts: int | None = None,
    rank: int | None = None,
    share: int = 3,
    cross_attention: CrossAttention = "paper",
    also_train: Sequence[str] = ("head.*",),
) -> list[str]:
    """Freeze a network and give it prompts and shared, gated projections.

    All gates start at 0. A ViT then is the frozen network with random prompts behind its class
    token, which the other tokens attend to; pooling leaves the prompts out, as `Tokens.patches`
    does. A Swin transformer has its prompts in the blocks: in the paper's form it starts exactly as
    the frozen network, in the released form not (see `swin.py`).

    Args:
        model: A network that is or holds one of our ViTs (`ViTTrunk`) or timm's Swin transformer;
            changed in place.
        prompts: P; None: as published, 50 for a ViT and 10 for each block of a Swin transformer.
        rank: r; None: as published, 20 and 10.
        share: Neighbouring blocks (of a stage) that share a projection.
        cross_attention: `paper`: the projections see prompts made from the sample; `released`: as
            the authors' code, without them in a ViT, added to the first tokens in a Swin.
        also_train: Shell patterns of parameters that are trained in full, as a new head; those
            that match nothing are passed over.

    Returns:
        Names of the parameters that are trained.

    Raises:
        ConfigError: another kind of network, one that has prompts already, a number below 1 or a
            form that is not known.
    """
    if any(isinstance(module, GatedProjection) for module in model.modules()):
        raise ConfigError(f"{type(model).__name__} has the prompts of DVPT already: build it anew.")
    vit = next((module for module in model.modules() if isinstance(module, ViTTrunk)), None)
    swin = None if vit is not None else _find_swin(model)
    if vit is None and swin is None:
        raise ConfigError(
            f"DVPT cannot tune {type(model).__name__}: give one of our ViTs (vit_..., clip_vit_...)"
            " or a Swin transformer of timm (timm:swin_...)."
        )
    published = _VIT if swin is None else _SWIN
    prompts = published[0] if prompts is None else prompts
    rank = published[1] if rank is None else rank
    check_options(prompts, rank, share, cross_attention)
    model.requires_grad_(False)
    if vit is not None:
        _prompt_vit(vit, prompts, rank, share, cross_attention)
    else:
        from crossband.shared.tuning.dvpt.swin import prompt_swin

        prompt_swin(swin, prompts, rank, share, cross_attention)
    trained = []
    for name, parameter in model.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in also_train):
            parameter.requires_grad_(True)
        if parameter.requires_grad:
            trained.append(name)
    return trained


def _find_swin(model: nn.Module) -> nn.Module | None:
    import crossband.shared.compat  # noqa: F401 - before timm, which imports torchvision

    from timm.models.swin_transformer import SwinTransformer

    return next((module for module in model.modules() if isinstance(module, SwinTransformer)), None)


def _prompt_vit(
    trunk: ViTTrunk, prompts: int, rank: int, share: int, cross_attention: CrossAttention
) -> None:
    like = trunk.blocks[0].norm1.weight
    trunk.prompt_token = nn.Parameter(like.new_empty(prompts, trunk.embed_dim))
    nn.init.normal_(trunk.prompt_token, std=0.02)
    tokens = (trunk.cls_token, trunk.reg_token)
    first = sum(token.shape[1] for token in tokens if token is not None)
    fresh = prompts if cross_attention == "paper" else 0
    projections = shared_projections(trunk.embed_dim, rank, share, len(trunk.blocks))
    for number, projection in enumerate(projections):
        projection.to(device=like.device, dtype=like.dtype)
        trunk.blocks[number] = PromptedBlock(trunk.blocks[number], projection, first, fresh)
    check_ties(trunk)
