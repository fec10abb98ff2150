"""The plain vision transformer (Dosovitskiy et al. 2021) that the domains share.

Keys are timm's, so weights of timm, MAE, UNIP, DINO, iBOT and, through `vit_keys.py`, CLIP and
SAM load. `ViT` is a `Backbone` whose maps all have the patches' stride; necks (`shared/necks`)
make pyramids of them. `ViTClassifier` pools and classifies.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from crossband.shared.backbones.base import Backbone, take_indices
from crossband.shared.errors import ConfigError
from crossband.shared.kernels.attention import attention
from crossband.shared.kernels.linear import Linear, linear
from crossband.shared.layers.drop_path import DropPath
from crossband.shared.layers.gem import GeM
from crossband.shared.layers.pos_embed import resample_pos_embed, sincos_pos_embed

Pool = Literal["token", "avg", "gem"]


@dataclass
class Tokens:
    """What a pass through the blocks gives.

    Attributes:
        x: (B, prefix + prompts + patches, D) after the last block, not normalised.
        prefix: Number of class and register tokens, which come first.
        prompts: Number of prompt tokens, which come next.
        grid: Rows and columns of all patches, also where only some were kept.
        attention: Block -> logits (scaled, before softmax) or maps, (B, heads, tokens, tokens).
        layers: Block -> its output, as `x`.
    """

    x: Tensor
    prefix: int
    prompts: int
    grid: tuple[int, int]
    attention: dict[int, Tensor] = field(default_factory=dict)
    layers: dict[int, Tensor] = field(default_factory=dict)

    def patches(self, block: int | None = None) -> Tensor:
        """Return the tokens of the patches (B, N, D), after the last block or another."""
        x = self.x if block is None else self.layers[block]
        return x[:, self.prefix + self.prompts :]

    def map(self, block: int | None = None) -> Tensor:
        """Return the tokens of the patches as a map (B, D, rows, columns)."""
        return self.patches(block).transpose(1, 2).unflatten(2, self.grid)


class PatchEmbed(nn.Module):
    """Cuts an image into patches and maps each linearly; zeros fill up the last patches."""

    def __init__(self, patch_size: int, in_chans: int, dim: int, bias: bool = True) -> None:
        """Build the convolution."""
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size, bias=bias)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, D, ceil(H / p), ceil(W / p))."""
        p = self.proj.kernel_size[0]
        down, right = (-image.shape[-2]) % p, (-image.shape[-1]) % p
        return self.proj(F.pad(image, (0, right, 0, down)) if down or right else image)


class Attention(nn.Module):
    """Multi-head self-attention; captures its logits when asked."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        """Build the projections.

        Raises:
            ConfigError: heads that do not divide the channels.
        """
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"{dim} channels cannot be split over {num_heads} heads.")
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, (B, heads, N, D / heads) each."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v

    def logits(self, x: Tensor) -> Tensor:
        """Return the scaled logits (B, heads, N, N); values are not computed."""
        if type(self.qkv) is Linear:  # one that is adapted or factored has no rows to take alone
            rows = 2 * self.qkv.in_features
            bias = None if self.qkv.bias is None else self.qkv.bias[:rows]
            q, k = (
                linear(x, self.qkv.weight[:rows], bias)
                .unflatten(-1, (2, self.num_heads, -1))
                .permute(2, 0, 3, 1, 4)
            )
        else:
            q, k, _ = self.heads(x)
        return scaled_logits(q, k)

    def forward(self, x: Tensor, logits: list[Tensor] | None = None) -> Tensor:
        """Map (B, N, D) to the same shape; append the logits to a list that is given."""
        q, k, v = self.heads(x)
        if logits is None:
            mixed = attention(q, k, v)
        else:
            logits.append(scaled_logits(q, k))
            mixed = logits[-1].softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).flatten(2))


def scaled_logits(q: Tensor, k: Tensor) -> Tensor:
    """Return `q k^T / sqrt(E)` of (..., L, E) and (..., S, E)."""
    return (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)


class QuickGELU(nn.Module):
    """`x sigmoid(1.702 x)`, as CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Map element by element."""
        return x * torch.sigmoid(1.702 * x)


class Mlp(nn.Module):
    """Two linear layers."""

    def __init__(self, dim: int, hidden: int, act: type[nn.Module]) -> None:
        """Build the layers."""
        super().__init__()
        self.fc1, self.act, self.fc2 = Linear(dim, hidden), act(), Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to the same shape."""
        return self.fc2(self.act(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per channel (Touvron et al. 2021)."""

    def __init__(self, dim: int, value: float) -> None:
        """Build the factors."""
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), value))

    def forward(self, x: Tensor) -> Tensor:
        """Scale (..., D)."""
        return x * self.gamma


class Block(nn.Module):
    """A pre-norm transformer block.

    Args:
        dim: Channels.
        num_heads: Of the attention.
        mlp_ratio: Hidden channels of the MLP over `dim`.
        qkv_bias: Whether queries, keys and values have a bias.
        layer_scale_init: Factor to scale branches by at the start; None: no layer scale.
        drop_path: Probability of leaving out a branch.
        norm_eps: Of the norms.
        act: Activation of the MLP.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        layer_scale_init: float | None = None,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        act: type[nn.Module] = nn.GELU,
    ) -> None:
        """Build the layers."""
        super().__init__()

        def scale() -> nn.Module:
            if layer_scale_init is None:
                return nn.Identity()
            return LayerScale(dim, layer_scale_init)

        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias)
        self.ls1 = scale()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act)
        self.ls2 = scale()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, logits: list[Tensor] | None = None) -> Tensor:
        """Map (B, N, D) to the same shape; append the attention's logits to a list if given."""
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), logits)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class ViTTrunk(nn.Module):
    """Patches, tokens and blocks: what backbone and classifier have in common.

    Args:
        img_size: Side, or (H, W), that the position embedding is made for; others are taken too,
            the embedding is then interpolated.
        patch_size: Side of a patch.
        in_chans: Channels of the image.
        embed_dim: D, channels of a token.
        depth: Blocks.
        num_heads: Heads of a block.
        last_heads: Heads of the last block, where they differ (UNIP in pre-training).
        mlp_ratio: Hidden channels of the MLPs over D.
        qkv_bias: Whether queries, keys and values have a bias.
        layer_scale_init: Start of the layer scale; None: none.
        class_token: Whether there is one.
        reg_tokens: Registers (Darcet et al. 2024), behind the class token.
        pos_embed: `learn`, or MAE's fixed `sincos`.
        pre_norm: A norm before the blocks (CLIP).
        patch_bias: Whether the patch embedding has a bias (CLIP has none).
        act: `gelu`, or CLIP's `quick_gelu`.
        norm_eps: Of all norms.
        drop_path_rate: Of the last block.
        drop_path_mode: `linear`, rising from 0, or `constant` in all blocks.
    """

    first_conv = "patch_embed.proj"

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        last_heads: int | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        layer_scale_init: float | None = None,
        class_token: bool = True,
        reg_tokens: int = 0,
        pos_embed: Literal["learn", "sincos"] = "learn",
        pre_norm: bool = False,
        patch_bias: bool = True,
        act: Literal["gelu", "quick_gelu"] = "gelu",
        norm_eps: float = 1e-6,
        drop_path_rate: float = 0.0,
        drop_path_mode: Literal["linear", "constant"] = "linear",
    ) -> None:
        """Build the layers and initialise them as MAE does."""
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid = (-(-height // patch_size), -(-width // patch_size))
        self.patch_size, self.embed_dim, self.norm_eps = patch_size, embed_dim, norm_eps
        self.num_features = embed_dim
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim, patch_bias)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, reg_tokens, embed_dim)) if reg_tokens else None
        table = sincos_pos_embed(embed_dim, self.grid, class_token)
        if pos_embed == "learn":
            table = torch.zeros_like(table)
        self.pos_embed = nn.Parameter(table, requires_grad=pos_embed == "learn")
        self.register_parameter("prompt_token", None)  # (P, D), which tuning may add
        self.norm_pre = nn.LayerNorm(embed_dim, eps=norm_eps) if pre_norm else nn.Identity()
        rates = [drop_path_rate] * depth
        if drop_path_mode == "linear":
            rates = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                last_heads if last_heads and i == depth - 1 else num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                layer_scale_init=layer_scale_init,
                drop_path=rate,
                norm_eps=norm_eps,
                act=QuickGELU if act == "quick_gelu" else nn.GELU,
            )
            for i, rate in enumerate(rates)
        )
        self._initialise(pos_embed == "learn")

    def forward_tokens(
        self,
        image: Tensor,
        *,
        keep: Tensor | None = None,
        prompts: Tensor | Sequence[Tensor] | None = None,
        capture: Collection[int] = (),
        capture_kind: Literal["logits", "maps"] = "logits",
        layers: Collection[int] = (),
        until: int | None = None,
    ) -> Tokens:
        """Run the blocks.

        Args:
            image: (B, C, H, W).
            keep: (B, K) numbers of the patches to keep, row-major; None: all. Only these are
                computed (masked pre-training).
            prompts: (P, D) or (B, P, D), put behind class and register tokens; or one such
                tensor per block, each replacing the one before (deep prompts).
            capture: Blocks whose attention is returned; negative numbers count from the end.
            capture_kind: `logits` before the softmax, or `maps` after it.
            layers: Blocks whose output is returned.
            until: Last block to run.

        Raises:
            ConfigError: a block that does not exist, another number of prompts than of blocks, or
                deep prompts of several lengths.
        """
        depth = len(self.blocks)
        captured, wanted = _numbers(depth, capture), _numbers(depth, layers)
        last = depth - 1 if until is None else take_indices(depth, [until])[0]
        found = self.embed_tokens(image, keep)
        deep = _deep_prompts(prompts, depth)
        for number, block in enumerate(self.blocks[: last + 1]):
            x = found.x
            if number < len(deep):
                x = _insert(x, deep[number], found)
            logits: list[Tensor] | None = [] if number in captured else None
            if self.grad_checkpointing and self.training and logits is None:
                found.x = checkpoint(block, x, use_reentrant=False)
            else:
                found.x = block(x, logits)
            if logits:
                maps = capture_kind == "maps"
                found.attention[number] = logits[0].softmax(-1) if maps else logits[0]
            if number in wanted:
                found.layers[number] = found.x
        return found

    def embed_tokens(self, image: Tensor, keep: Tensor | None = None) -> Tokens:
        """Return what enters the first block; arguments as for `forward_tokens`."""
        x = self.patch_embed(image)
        grid = (x.shape[-2], x.shape[-1])
        prefix = self.cls_token is not None
        table = resample_pos_embed(self.pos_embed, self.grid, grid, int(prefix))
        x = x.flatten(2).transpose(1, 2) + table[:, int(prefix) :]
        if keep is not None:
            x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
        front = []
        if self.cls_token is not None:
            front.append((self.cls_token + table[:, :1]).expand(x.shape[0], -1, -1))
        if self.reg_token is not None:
            front.append(self.reg_token.expand(x.shape[0], -1, -1))
        x = self.norm_pre(torch.cat([*front, x], dim=1) if front else x)
        found = Tokens(x, sum(t.shape[1] for t in front), 0, grid)
        if self.prompt_token is not None:
            found.x = _insert(x, self.prompt_token, found)
        return found

    def attention_logits(self, image: Tensor, block: int = -1) -> Tensor:
        """Return the scaled logits (B, heads, tokens, tokens) of one block.

        Blocks before it run; of its own nothing but the first norm, queries and keys is computed,
        so values, projection and MLP get no gradient from it (UNIP's distillation).

        Args:
            image: (B, C, H, W).
            block: Number of the block, from 0; negative ones count from the end.

        Raises:
            ConfigError: a block that does not exist.
        """
        number = take_indices(len(self.blocks), [block])[0]
        x = self.embed_tokens(image).x
        for earlier in self.blocks[:number]:
            if self.grad_checkpointing and self.training:
                x = checkpoint(earlier, x, use_reentrant=False)
            else:
                x = earlier(x)
        last = self.blocks[number]
        return last.attn.logits(last.norm1(x))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute blocks again in the backward pass, which saves memory and costs time."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters of two or more axes that take no weight decay."""
        return {"cls_token", "reg_token", "pos_embed"}

    def layer_index(self, name: str) -> int:
        """Return the layer of a parameter for layer-wise learning rates, 0 for the embeddings."""
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        embeddings = ("patch_embed.", "cls_token", "reg_token", "pos_embed", "norm_pre.")
        return 0 if name.startswith(embeddings) else len(self.blocks) + 1

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bring weights to this network: position embeddings of another grid are interpolated.

        Square grids are assumed, where the file's is not this network's.

        Raises:
            ConfigError: a table of no square grid.
        """
        state = dict(state)
        table = state.get("pos_embed")
        if table is None or table.shape == self.pos_embed.shape or table.dim() != 3:
            return state
        prefix = int(self.cls_token is not None)
        rows = table.shape[1] - prefix
        if (
            prefix and round((rows + 1) ** 0.5) ** 2 == rows + 1
        ):  # timm's tables without a class row
            table = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
            rows += 1
        side = round(rows**0.5)
        if side * side != rows:
            raise ConfigError(
                f"The position embedding of the weights has {rows} places, which is no square "
                "grid: build the network with the img_size that they were made for."
            )
        state["pos_embed"] = resample_pos_embed(table, (side, side), self.grid, prefix)
        return state

    def adapt_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bring others' weights to this network's grid, where `adapt_state` cannot tell them apart.

        Others' tables are of square grids. One of 2 x 2 has as many rows as ours of 1 x 4, so
        only who knows that a file is not our own may interpolate it.
        """
        table, (rows, columns) = state.get("pos_embed"), self.grid
        side = round((rows * columns) ** 0.5)
        same = table is not None and table.shape == self.pos_embed.shape
        if not same or side * side != rows * columns:
            return dict(state)
        prefix = int(self.cls_token is not None)
        table = resample_pos_embed(table, (side, side), self.grid, prefix)
        return {**state, "pos_embed": table}

    def _initialise(self, learned: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)
        if learned:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)


class ViT(ViTTrunk, Backbone):
    """A plain ViT as a backbone: maps of one stride, one for each block in `out_indices`.

    Args:
        out_indices: Blocks whose outputs are returned, negative ones counted from the end; a
            block may be named several times. Blocks after the last are not kept.
        final_norm: Normalise the maps by `norm`, as timm and DINO do; reference segmentation
            models do not.
        trunk: Arguments of `ViTTrunk`.
    """

    def __init__(
        self, *, out_indices: Sequence[int] = (-1,), final_norm: bool = False, **trunk: object
    ) -> None:
        """Build the trunk, and the norm if it is used."""
        super().__init__(**trunk)  # type: ignore[arg-type]
        self.out_indices = take_indices(len(self.blocks), out_indices)
        self.blocks = self.blocks[: max(self.out_indices) + 1]
        self.norm = nn.LayerNorm(self.embed_dim, eps=self.norm_eps) if final_norm else nn.Identity()
        self.out_channels = [self.embed_dim] * len(self.out_indices)
        self.strides = [self.patch_size] * len(self.out_indices)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (B, C, H, W) to maps (B, D, ceil(H / p), ceil(W / p))."""
        found = self.forward_tokens(image, layers=set(self.out_indices))
        for block, x in found.layers.items():
            found.layers[block] = self.norm(x)
        return [found.map(block) for block in self.out_indices]

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bring weights to this network; blocks after the last one that is used are left out."""
        state = super().adapt_state(state)
        kept = len(self.blocks)
        return {
            key: value
            for key, value in state.items()
            if not key.startswith("blocks.") or int(key.split(".")[1]) < kept
        }


class ViTClassifier(ViTTrunk):
    """A plain ViT that classifies images.

    Args:
        num_classes: Outputs; 0 returns the pooled features.
        global_pool: `token` normalises all tokens (`norm`) and takes the class token; `avg` (MAE
            in fine-tuning) and `gem` pool the patches, then normalise (`fc_norm`).
        gem_groups: Groups of GeM pooling; GGeM takes as many as heads.
        head_bias: Whether the head has a bias (CLIP's projection has none).
        trunk: Arguments of `ViTTrunk`.

    Raises:
        ConfigError: `token` without a class token.
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        global_pool: Pool = "token",
        gem_groups: int = 1,
        head_bias: bool = True,
        **trunk: object,
    ) -> None:
        """Build the trunk, then pooling, norm and head."""
        super().__init__(**trunk)  # type: ignore[arg-type]
        if global_pool == "token" and self.cls_token is None:
            raise ConfigError("global_pool 'token' needs a class token: take 'avg'.")
        self.num_classes, self.global_pool = num_classes, global_pool
        norm = nn.LayerNorm(self.embed_dim, eps=self.norm_eps)
        if global_pool == "token":
            self.norm = norm
        else:
            self.fc_norm = norm
        self.pool = GeM(gem_groups) if global_pool == "gem" else nn.Identity()
        self.head: nn.Module = nn.Identity()
        if num_classes:
            self.head = nn.Linear(self.embed_dim, num_classes, bias=head_bias)
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            if head_bias:
                nn.init.zeros_(self.head.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, C, H, W) to logits (B, num_classes)."""
        return self.head(self.forward_features(image))

    def forward_features(self, image: Tensor) -> Tensor:
        """Map an image to pooled, normalised features (B, D)."""
        found = self.forward_tokens(image)
        if self.global_pool == "token":
            return self.norm(found.x[:, 0])
        patches = found.patches()
        return self.fc_norm(self.pool(patches) if self.global_pool == "gem" else patches.mean(1))


def _numbers(depth: int, blocks: Collection[int]) -> set[int]:
    return set(take_indices(depth, list(blocks))) if blocks else set()


def _deep_prompts(
    prompts: Tensor | Sequence[Tensor] | None, depth: int
) -> list[Tensor] | Sequence[Tensor]:
    if prompts is None:
        return []
    if isinstance(prompts, Tensor):
        return [prompts]
    if len(prompts) != depth:
        raise ConfigError(f"{len(prompts)} prompts for {depth} blocks: give one for each, or one.")
    lengths = sorted({prompt.shape[-2] for prompt in prompts})
    if len(lengths) > 1:  # what follows the prompts is found by their number
        raise ConfigError(f"Deep prompts of {lengths} tokens: give every block as many.")
    return prompts


def _insert(x: Tensor, prompts: Tensor, found: Tokens) -> Tensor:
    """Put prompts behind the prefix, in place of those that are there."""
    if prompts.dim() == 2:
        prompts = prompts.expand(x.shape[0], -1, -1)
    front, rest = x[:, : found.prefix], x[:, found.prefix + found.prompts :]
    found.prompts = prompts.shape[1]
    return torch.cat([front, prompts.to(x.dtype), rest], dim=1)
