"""DVPT on CLIP's visual tower, as released (He et al. 2025, arXiv 2307.09787); keys as theirs.

Prompt tokens come before the class token, and every block has a gated projection beside its MLP.
The released block computes the prompts' cross-attention and throws it away; `cross_attention`
chooses between that and the paper.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from crossband.shared.backbones.vit import QuickGELU
from crossband.shared.layers.pos_embed import resample_pos_embed
from crossband.shared.tuning.dvpt.network import PromptedNetwork
from crossband.shared.tuning.dvpt.projection import (
    CrossAttention,
    GatedProjection,
    check_options,
    check_ties,
    dynamic_prompts,
    shared_projections,
)


class PromptedCLIPBlock(nn.Module):
    """`x + attn(ln_1(x))`, then `x + mlp(ln_2(x)) + u(x)`; in the paper's form u sees new prompts.

    Args:
        dim: Channels.
        num_heads: Of the attention.
        projection: u.
        fresh: Number of tokens in front that u sees replaced by `softmax(P T^t / sqrt(D)) T` of
            the other tokens T; 0 in the released form.
    """

    def __init__(self, dim: int, num_heads: int, projection: GatedProjection, fresh: int) -> None:
        """Build the layers."""
        super().__init__()
        self.fresh = fresh
        self.attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(dim, 4 * dim), gelu=QuickGELU(), c_proj=nn.Linear(4 * dim, dim)
            )
        )
        self.ln_2 = nn.LayerNorm(dim)
        self.prompt_proj = projection

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, prompts + 1 + N, D) to the same shape."""
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        seen = x
        if self.fresh:
            prompts, tokens = x[:, : self.fresh], x[:, self.fresh :]
            seen = torch.cat([dynamic_prompts(prompts, tokens), tokens], dim=1)
        return x + self.mlp(self.ln_2(x)) + self.prompt_proj(seen)


class DVPTCLIP(PromptedNetwork):
    """CLIP's visual tower with prompts.

    Args:
        img_size: Side that the table of positions is made for; for others it is interpolated.
        patch_size: Side of a patch.
        in_chans: Channels of the image.
        embed_dim: D, channels of a token.
        depth: Blocks.
        num_heads: Heads of a block.
        output_dim: Channels of the embedding.
        num_classes: Outputs of the head, which has no bias; 0 returns the embedding.
        prompts: P, number of prompt tokens.
        rank: r of the projections.
        share: Neighbouring blocks that share a projection.
        cross_attention: `released` or `paper`, see `PromptedCLIPBlock`.

    Raises:
        ConfigError: a number below 1, or a form that is not known.
    """

    def __init__(
        self,
        *,
        img_size: int = 288,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        output_dim: int = 512,
        num_classes: int = 0,
        prompts: int = 50,
        rank: int = 20,
        share: int = 3,
        cross_attention: CrossAttention = "released",
    ) -> None:
        """Build the layers; prompts are drawn as the authors do."""
        super().__init__()
        check_options(prompts, rank, share, cross_attention)
        side, scale = img_size // patch_size, embed_dim**-0.5
        self.grid, self.prompts, self.num_classes = (side, side), prompts, num_classes
        self.class_embedding = nn.Parameter(scale * torch.randn(embed_dim))
        self.positional_embedding = nn.Parameter(scale * torch.randn(side * side + 1, embed_dim))
        self.proj = nn.Parameter(scale * torch.randn(embed_dim, output_dim))
        self.prompt_token = nn.Parameter(torch.randn(1, prompts, embed_dim))
        self.prompt_positional_embedding = nn.Parameter(scale * torch.randn(prompts, embed_dim))
        self.conv1 = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size, bias=False)
        self.ln_pre = nn.LayerNorm(embed_dim)
        fresh = prompts if cross_attention == "paper" else 0
        blocks = nn.ModuleList(
            PromptedCLIPBlock(embed_dim, num_heads, projection, fresh)
            for projection in shared_projections(embed_dim, rank, share, depth)
        )
        self.transformer = nn.ModuleDict({"resblocks": blocks})
        self.ln_post = nn.LayerNorm(embed_dim)
        self.fc_head: nn.Module = nn.Identity()
        if num_classes:
            self.fc_head = nn.Linear(output_dim, num_classes, bias=False)
        check_ties(self)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, C, H, W) to logits (B, num_classes), or the embedding (B, output_dim)."""
        return self.fc_head(self.forward_features(image))

    def forward_features(self, image: Tensor) -> Tensor:
        """Map an image to the embedding (B, output_dim): the mean of prompts and class token."""
        x = self.conv1(image)
        grid = (x.shape[-2], x.shape[-1])
        x = x.flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(x), 1, -1)
        table = self.positional_embedding[None]
        x = torch.cat([first, x], 1) + resample_pos_embed(table, self.grid, grid, mode="bilinear")
        prompts = (self.prompt_token + self.prompt_positional_embedding).expand(len(x), -1, -1)
        x = self.ln_pre(torch.cat([prompts, x], dim=1))
        for block in self.transformer["resblocks"]:
            x = block(x)
        return self.ln_post(x[:, : self.prompts + 1]).mean(1) @ self.proj

    def resample(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Interpolate the table of positions, which is taken to be of a square grid."""
        table = state.get("positional_embedding")
        if table is not None and table.shape[0] != self.positional_embedding.shape[0]:
            side = round((table.shape[0] - 1) ** 0.5)
            if side * side == table.shape[0] - 1:
                table = resample_pos_embed(table[None], (side, side), self.grid, mode="bilinear")
                state["positional_embedding"] = table[0]
        return state
