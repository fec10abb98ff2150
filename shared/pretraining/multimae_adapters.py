"""The parts of MultiMAE that know kinds of maps: tokens from maps, and maps from tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.backbones.vit import Block, Mlp
from crossband.shared.kernels.attention import attention
from crossband.shared.kernels.linear import Linear
from crossband.shared.layers.pos_embed import sincos_pos_embed

_EPS = 1e-6


@dataclass(frozen=True)
class Modality:
    """A kind of map.

    Attributes:
        channels: Of an image, or number of classes of a label map.
        labels: Whether maps hold class numbers (B, H, W) instead of values (B, C, H, W).
        stride: Pixels of the image per place of the map.
        class_dim: Channels of the embedding of classes.
        pool_classes: Average the embeddings in a patch instead of projecting them all.
        loss: Of the decoder; None: cross entropy for labels, `l1` for one channel, else `mse`.
    """

    channels: int
    labels: bool = False
    stride: int = 1
    class_dim: int = 64
    pool_classes: bool = False
    loss: Literal["mse", "l1", "cross_entropy"] | None = None

    @classmethod
    def of(cls, spec: int | Mapping[str, Any]) -> Modality:
        """Return the kind that a number of channels, or a mapping of attributes, describes."""
        return cls(spec) if isinstance(spec, int) else cls(**spec)

    def patch(self, patch_size: int) -> int:
        """Return the side of a patch in places of the map."""
        return max(1, patch_size // self.stride)

    def criterion(self) -> str:
        """Return the name of the loss."""
        plain = "l1" if self.channels == 1 else "mse"
        return self.loss or ("cross_entropy" if self.labels else plain)


def position_map(dim: int, grid: tuple[int, int]) -> Tensor:
    """Return the fixed table of MultiMAE (1, dim, rows, columns): rows first, then columns."""
    columns, rows = sincos_pos_embed(dim, grid, class_token=False).chunk(2, dim=-1)
    return torch.cat([rows, columns], dim=-1).transpose(1, 2).unflatten(2, grid).contiguous()


def resize(table: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
    """Interpolate a table of positions (1, D, rows, columns) to another grid."""
    if table.shape[-2:] == grid:
        return table
    return F.interpolate(table, grid, mode=mode, align_corners=False)


class InputAdapter(nn.Module):
    """Turns maps of one kind into tokens with positions."""

    def __init__(self, modality: Modality, dim: int, grid: tuple[int, int], patch: int) -> None:
        """Build the projection, and the embedding of classes."""
        super().__init__()
        self.modality, self.patch_size = modality, modality.patch(patch)
        self.pos_emb = nn.Parameter(position_map(dim, grid), requires_grad=False)
        channels, p = modality.channels, self.patch_size
        if modality.labels:
            self.class_emb = nn.Embedding(channels, modality.class_dim)
            nn.init.trunc_normal_(self.class_emb.weight, std=0.02)
            channels = modality.class_dim
        if modality.labels and modality.pool_classes:
            pool = nn.Upsample(scale_factor=1 / p, mode="bilinear")
            self.proj: nn.Module = nn.Sequential(pool, nn.Conv2d(channels, dim, 1))
        else:
            self.proj = nn.Conv2d(channels, dim, p, p)

    def grid_of(self, x: Tensor) -> tuple[int, int]:
        """Return rows and columns of the tokens of a map."""
        return x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W), or labels (B, H, W), to (B, N, D); unknown labels count as nothing."""
        if self.modality.labels:
            known = (x >= 0) & (x < self.modality.channels)
            x = (self.class_emb(torch.where(known, x, 0)) * known[..., None]).permute(0, 3, 1, 2)
        x = self.proj(x)
        mode = "bilinear" if self.modality.labels else "bicubic"
        table = resize(self.pos_emb, (x.shape[-2], x.shape[-1]), mode)
        return (x + table).flatten(2).transpose(1, 2)


class CrossAttention(nn.Module):
    """Queries attend to a context."""

    def __init__(self, dim: int, heads: int) -> None:
        """Build the projections."""
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = Linear(dim, dim), Linear(dim, 2 * dim), Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Map queries (B, N, D) and a context (B, M, D) to (B, N, D)."""
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = self.kv(context).unflatten(-1, (2, self.heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4)
        return self.proj(attention(q, k, v).transpose(1, 2).flatten(2))


class Decoder(nn.Module):
    """Draws maps of one kind from the visible tokens of all (section 3.2).

    Args:
        modality: What to draw.
        task: Its name.
        context: Names of the kinds whose tokens get an embedding.
        encoder_dim: Channels of the encoder.
        grid: Rows and columns that the table of positions is made for.
        patch: Side of a patch in pixels of the image.
        dim: Channels.
        depth: Blocks of self-attention.
        heads: Of all attention.
        mlp_ratio: Hidden channels of the MLPs over `dim`.
        norm_eps: Of all norms.
        task_queries: Ask with the own tokens where this kind is an input.
        cross_attention: Attend to the context; False: the queries alone go on.
    """

    def __init__(
        self,
        modality: Modality,
        task: str,
        context: Sequence[str],
        *,
        encoder_dim: int,
        grid: tuple[int, int],
        patch: int,
        dim: int = 256,
        depth: int = 2,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        norm_eps: float = _EPS,
        task_queries: bool = True,
        cross_attention: bool = True,
    ) -> None:
        """Build the layers."""
        super().__init__()
        self.modality, self.task, self.task_queries = modality, task, task_queries
        self.patch_size, self.cross_attention = modality.patch(patch), cross_attention
        self.proj_context = Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_emb = nn.Parameter(position_map(dim, grid), requires_grad=False)
        self.task_embeddings = nn.ParameterDict({name: token(1, dim) for name in context})
        if cross_attention:
            self.decoder = CrossAttention(dim, heads)
            for name in ("context_norm", "query_norm", "out_norm"):
                setattr(self, name, nn.LayerNorm(dim, eps=norm_eps))
            self.mlp = Mlp(dim, int(dim * mlp_ratio), nn.GELU)
        self.decoder_transformer = nn.ModuleList(
            Block(dim, heads, mlp_ratio=mlp_ratio, norm_eps=norm_eps) for _ in range(depth)
        )
        self.out_proj = Linear(dim, modality.channels * self.patch_size**2)

    def forward(
        self, x: Tensor, counts: Mapping[str, int], keep: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """Draw a map.

        Args:
            x: (B, K + G, D) visible tokens, then global ones.
            counts: Modality -> number of its tokens, for those that are inputs.
            keep: (B, K) numbers of the visible tokens among all.
            grid: Rows and columns of the tokens.

        Returns:
            (B, C, H, W), or logits of classes.
        """
        context, (batch, visible) = self.proj_context(x), keep.shape
        table = resize(self.pos_emb, grid, "bilinear").flatten(2).transpose(1, 2)
        places = torch.cat([table + self._embedding(name) for name in counts], dim=1)
        places = places.expand(batch, -1, -1)
        index = keep[..., None].expand(-1, -1, places.shape[-1])
        seen = context[:, :visible] + places.gather(1, index)
        if self.task_queries and self.task in counts:
            names = list(counts)
            start = sum(counts[name] for name in names[: names.index(self.task)])
            slots = (places + self.mask_token).scatter(1, index, seen.to(places.dtype))
            x = slots[:, start : start + counts[self.task]]
        else:
            x = (self.mask_token + table + self._embedding(self.task)).expand(batch, -1, -1)
        if self.cross_attention:
            context = torch.cat([seen, context[:, visible:]], dim=1)
            x = self.decoder(self.query_norm(x), self.context_norm(context))
            x = x + self.mlp(self.out_norm(x))
        for block in self.decoder_transformer:
            x = block(x)
        p = self.patch_size
        x = self.out_proj(x).unflatten(2, (-1, p, p)).unflatten(1, grid)
        return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    def _embedding(self, name: str) -> Tensor | float:
        return self.task_embeddings[name] if name in self.task_embeddings else 0.0


def initialise(module: nn.Module) -> None:
    """Initialise as the authors do: Xavier, for each of queries, keys and values by itself."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            parts = {"qkv": 3, "kv": 2}.get(name.rpartition(".")[2], 1)
            for weight in part.weight.chunk(parts):
                nn.init.xavier_uniform_(weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Conv2d) and name.endswith(".proj"):
            nn.init.xavier_uniform_(part.weight.flatten(1))


def token(count: int, dim: int) -> nn.Parameter:
    """Return learned tokens (1, count, dim)."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, count, dim), std=0.02))
