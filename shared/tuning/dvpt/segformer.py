"""DVPT on SegFormer (Xie et al. 2021), as released; keys as the authors'.

Beside u, dynamic prompts of a block's tokens are added to the first P of them behind a gate of
their own, and each layer of the all-MLP head has a bottleneck. The head has no fusing layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.backbones.base import drop_path_rates
from crossband.shared.kernels.attention import attention
from crossband.shared.kernels.linear import Linear
from crossband.shared.layers.drop_path import DropPath
from crossband.shared.layers.resize import resize
from crossband.shared.tuning.dvpt.network import PromptedNetwork
from crossband.shared.tuning.dvpt.projection import (
    AdaptedLinear,
    GatedProjection,
    add_to_first,
    check_options,
    check_ties,
    dynamic_prompts,
    shared_projections,
)


class OverlapPatchEmbed(nn.Module):
    """Patches that overlap, then a norm."""

    def __init__(self, kernel: int, stride: int, in_chans: int, dim: int) -> None:
        """Build the layers."""
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Map (B, C, H, W) to tokens (B, N, D) and their rows and columns."""
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)), (x.shape[-2], x.shape[-1])


class ReducedAttention(nn.Module):
    """Self-attention whose keys and values are of a map that is `sr_ratio` times coarser."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, sr_ratio: int) -> None:
        """Build the projections."""
        super().__init__()
        self.num_heads, self.sr_ratio = num_heads, sr_ratio
        self.q = Linear(dim, dim, bias=qkv_bias)
        self.kv = Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, sr_ratio, sr_ratio)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Map (B, N, D) to the same shape."""
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        if self.sr_ratio > 1:
            x = self.sr(x.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)
            x = self.norm(x)
        k, v = self.kv(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(attention(q, k, v).transpose(1, 2).flatten(2))


class DWConv(nn.Module):
    """A 3 x 3 convolution of each channel by itself."""

    def __init__(self, dim: int) -> None:
        """Build the layer."""
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Map tokens (B, N, D) to the same shape."""
        return self.dwconv(x.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)


class MixMlp(nn.Module):
    """Two linear layers with a convolution between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        """Build the layers."""
        super().__init__()
        self.fc1, self.dwconv, self.fc2 = Linear(dim, hidden), DWConv(hidden), Linear(hidden, dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Map (B, N, D) to the same shape."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), grid)))


class PromptedMixBlock(nn.Module):
    """A block of the mix transformer with prompts.

    Args:
        dim: Channels.
        num_heads: Of the attention.
        mlp_ratio: Hidden channels over `dim`.
        qkv_bias: Whether queries, keys and values have a bias.
        sr_ratio: Of the attention.
        norm_eps: Of the block's norms.
        drop_path: Probability of leaving out a branch.
        prompts: P.
        projection: u.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        sr_ratio: int,
        norm_eps: float,
        drop_path: float,
        prompts: int,
        projection: GatedProjection,
    ) -> None:
        """Build the layers."""
        super().__init__()
        self.prompt = nn.Parameter(torch.empty(1, prompts, dim))
        nn.init.trunc_normal_(self.prompt, std=0.02)
        self.prompt_gate2 = nn.Parameter(torch.zeros(1))
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = ReducedAttention(dim, num_heads, qkv_bias, sr_ratio)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MixMlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.prompt_proj = projection

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Map (B, N, D) to the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        x = add_to_first(x, dynamic_prompts(self.prompt, x) * self.prompt_gate2)
        return x + self.drop_path(self.mlp(self.norm2(x), grid)) + self.prompt_proj(x)


class DVPTSegFormer(PromptedNetwork):
    """SegFormer with prompts.

    Args:
        in_chans: Channels of the image.
        embed_dims: Channels of each of the four stages.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        sr_ratios: How much coarser keys and values are, by stage.
        mlp_ratios: Hidden channels of the MLPs over those of the stage.
        patch_size: Stride of the first patches.
        qkv_bias: Whether queries, keys and values have a bias.
        norm_eps: Of the norms of blocks and stages; those of patches and keys have 1e-5.
        drop_path_rate: Of the last block.
        head_dim: Channels of the head.
        num_classes: Outputs.
        prompts: P, at most the number of tokens of the last stage.
        rank: r of the projections.
        head_rank: r of the bottlenecks in the head.
        share: Neighbouring blocks of a stage that share a projection.
    """

    head_name = "linear_pred"

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 8, 27, 3),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        patch_size: int = 4,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        drop_path_rate: float = 0.1,
        head_dim: int = 768,
        num_classes: int = 2,
        prompts: int = 10,
        rank: int = 10,
        head_rank: int = 10,
        share: int = 2,
    ) -> None:
        """Build the layers."""
        super().__init__()
        check_options(prompts, rank, share)
        rates = drop_path_rates(drop_path_rate, depths)
        before = in_chans
        for i, dim in enumerate(embed_dims):
            kernel, stride = (7, patch_size) if i == 0 else (3, 2)
            embed = OverlapPatchEmbed(kernel, stride, before, dim)
            blocks = nn.ModuleList(
                PromptedMixBlock(
                    dim,
                    num_heads=num_heads[i],
                    mlp_ratio=mlp_ratios[i],
                    qkv_bias=qkv_bias,
                    sr_ratio=sr_ratios[i],
                    norm_eps=norm_eps,
                    drop_path=rates[i][j],
                    prompts=prompts,
                    projection=projection,
                )
                for j, projection in enumerate(shared_projections(dim, rank, share, depths[i]))
            )
            self.add_module(f"patch_embed{i + 1}", embed)
            self.add_module(f"block{i + 1}", blocks)
            self.add_module(f"norm{i + 1}", nn.LayerNorm(dim, eps=norm_eps))
            self.add_module(f"linear_c{i + 1}", AdaptedLinear(dim, head_dim, head_rank))
            before = dim
        self.stages = len(embed_dims)
        self.linear_pred = nn.Conv2d(self.stages * head_dim, num_classes, 1)
        check_ties(self)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, C, H, W) to logits (B, num_classes, H, W)."""
        return self.forward_head(self.forward_features(image), image.shape[-2:])

    def forward_head(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Map the stages' maps to logits (B, num_classes) of a size."""
        mixed = []
        for i in reversed(range(self.stages)):  # coarsest first
            x = getattr(self, f"linear_c{i + 1}")(maps[i].permute(0, 2, 3, 1))
            mixed.append(resize(x.permute(0, 3, 1, 2), maps[0].shape[-2:]))
        return resize(self.linear_pred(torch.cat(mixed, dim=1)), size)

    def forward_features(self, image: Tensor) -> list[Tensor]:
        """Map an image to the normalised maps of the stages, of strides 4, 8, 16 and 32.

        Raises:
            ConfigError: an image whose last map has fewer tokens than there are prompts.
        """
        x, maps = image, []
        for i in range(1, self.stages + 1):
            x, grid = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                x = block(x, grid)
            x = getattr(self, f"norm{i}")(x).transpose(1, 2).unflatten(2, grid)
            maps.append(x)
        return maps
