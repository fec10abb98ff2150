"""DVPT on Swin transformers (timm's), as released or with prompts that reach every token.

Released: the dynamic prompts of what the window attention gives are added, without a gate, to the
first P tokens of the map, so the tuned network depends on the order of the tokens and does not
start as the frozen one. Paper: `u(x + mean over prompts of softmax(P x^T / sqrt(C)) x)`; all of it
is behind the gate, and no place is preferred.
"""

from __future__ import annotations

from collections.abc import Sequence

import crossband.shared.compat  # noqa: F401 - before timm, which imports torchvision

import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn

from crossband.shared.layers.pos_embed import resample_pos_embed
from crossband.shared.tuning.dvpt.network import PromptedNetwork
from crossband.shared.tuning.dvpt.projection import (
    CrossAttention,
    GatedProjection,
    add_to_first,
    check_options,
    check_ties,
    dynamic_prompts,
    shared_projections,
)


class PromptedSwinBlock(SwinTransformerBlock):
    """A block of timm's Swin with prompts; takes over the layers of the block it is made from.

    Args:
        base: Block.
        projection: u.
        prompts: P.
        cross_attention: `released` or `paper`.
    """

    def __init__(
        self,
        base: SwinTransformerBlock,
        projection: GatedProjection,
        prompts: int,
        cross_attention: CrossAttention,
    ) -> None:
        """Take over the layers and draw the prompts."""
        self.__dict__.update(vars(base))  # in place of building them
        self.released = cross_attention == "released"
        self.prompt = nn.Parameter(base.norm1.weight.new_empty(1, prompts, base.dim))
        nn.init.trunc_normal_(self.prompt, std=0.02)
        self.prompt_proj = projection

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        shape = x.shape
        y = self._attn(self.norm1(x)).flatten(1, 2)
        if self.released:
            y = add_to_first(y, dynamic_prompts(self.prompt, y))
        x = x.flatten(1, 2) + self.drop_path1(y)
        seen = x
        if not self.released:
            seen = x + dynamic_prompts(self.prompt, x).mean(1, keepdim=True)
        x = x + self.drop_path2(self.mlp(self.norm2(x))) + self.prompt_proj(seen)
        return x.view(shape)


def prompt_swin(
    model: SwinTransformer,
    prompts: int = 10,
    rank: int = 10,
    share: int = 3,
    cross_attention: CrossAttention = "released",
) -> None:
    """Put prompts and shared projections into a Swin transformer; sharing restarts in a stage.

    Raises:
        ConfigError: a number below 1, or a form that is not known.
    """
    check_options(prompts, rank, share, cross_attention)
    for stage in model.layers:
        blocks = stage.blocks
        like = blocks[0].norm1.weight
        shared = shared_projections(blocks[0].dim, rank, share, len(blocks))
        for number, projection in enumerate(shared):
            projection.to(device=like.device, dtype=like.dtype)
            block = PromptedSwinBlock(blocks[number], projection, prompts, cross_attention)
            blocks[number] = block
    check_ties(model)


class DVPTSwin(PromptedNetwork, SwinTransformer):
    """A Swin transformer with the prompts of the released form; timm's keys.

    Args:
        img_size: Side of the image.
        patch_size: Side of a patch.
        in_chans: Channels of the image.
        embed_dim: Channels of the first stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        window_size: Side of a window.
        mlp_ratio: Hidden channels of the MLPs over those of the stage.
        drop_path_rate: Of the last block.
        num_classes: Outputs of the head; 0 returns the pooled features.
        prompts: P, at most the number of tokens of the last stage.
        rank: r of the projections.
        share: Neighbouring blocks of a stage that share a projection.
    """

    head_name = "head"

    def __init__(
        self,
        *,
        img_size: int = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 128,
        depths: Sequence[int] = (2, 2, 18, 2),
        num_heads: Sequence[int] = (4, 8, 16, 32),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        num_classes: int = 0,
        prompts: int = 10,
        rank: int = 10,
        share: int = 3,
    ) -> None:
        """Build timm's network and put the prompts in."""
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            window_size=window_size,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path_rate,
            num_classes=num_classes,
        )
        prompt_swin(self, prompts, rank, share)

    def resample(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Interpolate the tables of relative positions of other windows, as numbers, not rounded.

        The authors' segmentation code casts them to integers first, which loses what they hold.
        """
        own = self.state_dict()
        for key, table in state.items():
            if key.endswith("relative_position_bias_table") and key in own:
                old, new = (round(len(t) ** 0.5) for t in (table, own[key]))
                if old != new and old * old == len(table):
                    state[key] = resample_pos_embed(table[None], (old, old), (new, new), 0)[0]
        return state


def relative_position_index(window: int) -> Tensor:
    """Return the row of the table for each pair of places of a window, (window^2, window^2)."""
    axis = torch.arange(window)
    y, x = (a.flatten() for a in torch.meshgrid(axis, axis, indexing="ij"))
    rows = (y[:, None] - y + window - 1) * (2 * window - 1)
    return rows + x[:, None] - x + window - 1
