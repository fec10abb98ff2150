"""The image encoder of Segment Anything (Kirillov et al. 2023), also LVM-Med's ViT.

A plain ViT whose blocks attend within windows, all but a few, with decomposed relative positions
(Li et al. 2022, ViTDet); a neck of two convolutions ends it. Keys are the authors'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from crossband.shared.backbones.base import Backbone
from crossband.shared.backbones.vit import PatchEmbed
from crossband.shared.errors import ConfigError
from crossband.shared.kernels.linear import Linear
from crossband.shared.layers.layer_norm import LayerNorm2d


class RelativeAttention(nn.Module):
    """Self-attention on a grid; logits get `q . R_row + q . R_column` (ViTDet, section A).

    Args:
        dim: Channels.
        num_heads: Heads.
        side: Rows and columns that the tables are made for; others are interpolated.
        qkv_bias: Whether queries, keys and values have a bias.
        use_rel_pos: Whether there are relative positions.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        side: tuple[int, int],
        qkv_bias: bool = True,
        use_rel_pos: bool = True,
    ) -> None:
        """Build projections and tables (zero at the start)."""
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"{dim} channels cannot be split over {num_heads} heads.")
        self.num_heads = num_heads
        self.qkv, self.proj = Linear(dim, 3 * dim, bias=qkv_bias), Linear(dim, dim)
        self.use_rel_pos = use_rel_pos
        if use_rel_pos:
            width = dim // num_heads
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * side[0] - 1, width))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * side[1] - 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, rows, columns, D) to the same shape."""
        batch, rows, columns, _ = x.shape
        qkv = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # B, heads, N, E
        bias = None
        if self.use_rel_pos:
            grid = q.unflatten(2, (rows, columns))
            down = torch.einsum("bnhwe,hke->bnhwk", grid, relative_table(self.rel_pos_h, rows))
            across = torch.einsum("bnhwe,wke->bnhwk", grid, relative_table(self.rel_pos_w, columns))
            bias = (down[..., :, None] + across[..., None, :]).flatten(4).flatten(2, 3)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(mixed.transpose(1, 2).flatten(2)).view(batch, rows, columns, -1)


def relative_table(table: Tensor, side: int) -> Tensor:
    """Return the embedding of every pair of places on a line of `side`, (side, side, E).

    A table made for another length is interpolated linearly.
    """
    if len(table) != 2 * side - 1:
        line = F.interpolate(table.t()[None].float(), 2 * side - 1, mode="linear")
        table = line[0].t().to(table.dtype)
    places = torch.arange(side, device=table.device)
    return table[places[:, None] - places + side - 1]


class Mlp(nn.Module):
    """Two linear layers, under the authors' names."""

    def __init__(self, dim: int, hidden: int) -> None:
        """Build the layers."""
        super().__init__()
        self.lin1, self.lin2 = Linear(dim, hidden), Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to the same shape."""
        return self.lin2(F.gelu(self.lin1(x)))


class Block(nn.Module):
    """A pre-norm block; attends within windows if `window` is not 0."""

    def __init__(self, dim: int, hidden: int, attention: RelativeAttention, window: int) -> None:
        """Build the layers."""
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp, self.window = attention, Mlp(dim, hidden), window

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, rows, columns, D) to the same shape."""
        y = self.norm1(x)
        if self.window:
            windows, padded = cut_windows(y, self.window)
            y = join_windows(self.attn(windows), self.window, padded, x.shape[1:3])
        else:
            y = self.attn(y)
        x = x + y
        return x + self.mlp(self.norm2(x))


def cut_windows(x: Tensor, side: int) -> tuple[Tensor, tuple[int, int]]:
    """Cut (B, rows, columns, D) into windows (B n, side, side, D), zeros filling up the last.

    Returns:
        The windows, and rows and columns with what was filled up.
    """
    rows, columns = x.shape[1] + (-x.shape[1]) % side, x.shape[2] + (-x.shape[2]) % side
    x = F.pad(x, (0, 0, 0, columns - x.shape[2], 0, rows - x.shape[1]))
    x = x.unflatten(2, (columns // side, side)).unflatten(1, (rows // side, side))
    return x.transpose(2, 3).flatten(0, 2), (rows, columns)


def join_windows(
    windows: Tensor, side: int, padded: tuple[int, int], size: Sequence[int]
) -> Tensor:
    """Undo `cut_windows`; `size` is that of the map before."""
    rows, columns = padded[0] // side, padded[1] // side
    x = windows.unflatten(0, (-1, rows, columns)).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)[:, : size[0], : size[1]]


class SAMEncoder(Backbone):
    """SAM's image encoder as a backbone with one map of stride 16.

    Args:
        img_size: Side of the image that the tables are made for; others are taken too.
        patch_size: Side of a patch.
        in_chans: Channels of the image.
        embed_dim: D, channels of a token.
        depth: Blocks.
        num_heads: Heads.
        mlp_ratio: Hidden channels of the MLPs over D.
        out_chans: Channels of the map.
        qkv_bias: Whether queries, keys and values have a bias.
        use_rel_pos: Relative positions in the attention.
        use_abs_pos: A learned table of positions; LVM-Med has none.
        window_size: Side of a window in tokens.
        global_attn_indexes: Blocks that attend globally.
    """

    first_conv = "patch_embed.proj"

    def __init__(
        self,
        *,
        img_size: int = 1024,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        out_chans: int = 256,
        qkv_bias: bool = True,
        use_rel_pos: bool = True,
        use_abs_pos: bool = True,
        window_size: int = 14,
        global_attn_indexes: Sequence[int] = (2, 5, 8, 11),
    ) -> None:
        """Build the layers."""
        super().__init__()
        side = img_size // patch_size
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.pos_embed = None
        if use_abs_pos:
            self.pos_embed = nn.Parameter(torch.zeros(1, side, side, embed_dim))
        self.blocks = nn.ModuleList()
        for number in range(depth):
            window = 0 if number in global_attn_indexes else window_size
            reach = (window or side, window or side)
            heads = RelativeAttention(embed_dim, num_heads, reach, qkv_bias, use_rel_pos)
            self.blocks.append(Block(embed_dim, int(embed_dim * mlp_ratio), heads, window))
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dim, out_chans, 1, bias=False),
            LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False),
            LayerNorm2d(out_chans),
        )
        self.out_channels, self.strides = [out_chans], [patch_size]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (B, C, H, W) to one map (B, out_chans, ceil(H / p), ceil(W / p)), in a list."""
        return [self.stages(image)["neck"]]

    def stages(self, image: Tensor) -> dict[str, Tensor]:
        """Return `patch_embed` and every `block<n>` (B, rows, columns, D), and the neck's map."""
        x = self.patch_embed(image).permute(0, 2, 3, 1)
        maps = {"patch_embed": x}
        if self.pos_embed is not None:
            x = x + _resized(self.pos_embed, (x.shape[1], x.shape[2]))
        for number, block in enumerate(self.blocks):
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            maps[f"block{number}"] = x
        maps["neck"] = self.neck(x.permute(0, 3, 1, 2))
        return maps

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute blocks again in the backward pass, which saves memory and costs time."""
        self.grad_checkpointing = enable

    def layer_index(self, name: str) -> int:
        """Return the layer of a parameter for layer-wise learning rates, 0 for the embeddings."""
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return 0 if name.startswith(("patch_embed.", "pos_embed")) else len(self.blocks) + 1

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bring weights to this network: tables of another size are interpolated.

        A table of positions is left out by a network that has none (LVM-Med).
        """
        state = dict(state)
        table = state.get("pos_embed")
        if table is not None and self.pos_embed is None:
            del state["pos_embed"]
        elif table is not None:
            state["pos_embed"] = _resized(table, tuple(self.pos_embed.shape[1:3]))
        own = self.state_dict()
        for key, value in state.items():
            if ".rel_pos_" in key and key in own and len(value) != len(own[key]):
                line = F.interpolate(value.t()[None].float(), len(own[key]), mode="linear")
                state[key] = line[0].t().to(value.dtype)
        return state


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the image encoder's tensors of a file of SAM's or LVM-Med's."""
    prefix = "image_encoder."
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return own or dict(state)


def to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict under SAM's keys."""
    return {f"image_encoder.{key}": value for key, value in state.items()}


def _resized(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Interpolate (1, rows, columns, D) bicubically."""
    if tuple(table.shape[1:3]) == grid:
        return table
    image = table.permute(0, 3, 1, 2).float()
    image = F.interpolate(image, grid, mode="bicubic", align_corners=False)
    return image.permute(0, 2, 3, 1).to(table.dtype)
