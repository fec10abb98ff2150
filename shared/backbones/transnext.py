"""TransNeXt: aggregated attention, a fine neighbourhood and a coarse map in one softmax.

Shi 2024, "TransNeXt: Robust Foveal Visual Perception for Vision Transformers", arXiv 2311.17132.
The authors' code and weights are Apache-2.0; this code is our own, made from the paper, and has
the authors' keys.

Sizes are those of the maps themselves, so any image is taken. Feature maps are (B, H, W, C)
inside, and the neighbourhood is read as shifted views, never unfolded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.backbones.base import (
    ImageClassifier,
    Pyramid,
    PyramidBackbone,
    Stage,
    drop_path_rates,
)
from crossband.shared.errors import ConfigError
from crossband.shared.kernels.dispatch import exporting
from crossband.shared.kernels.linear import Linear, linear
from crossband.shared.layers.drop_path import DropPath

__all__ = ["AggregatedAttention", "CosineAttention", "ConvGLU", "TransNeXt", "TransNeXtClassifier"]

PositionMode = Literal["extrapolate", "interpolate"]
# A bias that is cached has so many numbers at most: 16 MB in float32.
_LARGEST_CACHED = 2**22


class _Attention(nn.Module):
    """What both kinds of attention share: cosine similarity and the continuous position bias.

    Args:
        dim: C.
        num_heads: Heads; C / heads is the head dimension d.
        qkv_bias: Whether the projections to queries, keys and values have a bias.
        reduction: Sides of the pooled map are this many times smaller.
        pool_size: Side of the pooled map if it is fixed; None: by `reduction`.
        pretrain_side: Side of this stage's map at the training size; distances are measured in it.
        bias_size: Size (H, W) of the map for which the bias is made and then interpolated; None:
            it is made for the map at hand.

    Raises:
        ConfigError: heads do not divide the channels.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        reduction: int = 1,
        pool_size: int | None = None,
        pretrain_side: int = 7,
        bias_size: tuple[int, int] | None = None,
    ) -> None:
        """Build the parameters of similarity and position."""
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"{num_heads} heads cannot share {dim} channels: give a divisor.")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.reduction = reduction
        self.pool_size = pool_size
        self.pretrain_side = pretrain_side
        self.bias_size = bias_size
        # softplus(temperature) starts at 1 / 0.24.
        start = math.log(math.expm1(1 / 0.24))
        self.temperature = nn.Parameter(torch.full((num_heads, 1, 1), start))
        self.query_embedding = nn.Parameter(torch.empty(num_heads, 1, self.head_dim))
        nn.init.trunc_normal_(self.query_embedding, std=0.02)
        self.cpb_fc1 = nn.Linear(2, 512)
        self.cpb_fc2 = nn.Linear(512, num_heads)
        self.proj = Linear(dim, dim)
        self._cached: tuple[object, Tensor] | None = None

    def pooled_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of the coarse map of a map."""
        if self.pool_size is not None:
            return self.pool_size, self.pool_size
        return max(1, height // self.reduction), max(1, width // self.reduction)

    def position_bias(self, height: int, width: int) -> Tensor:
        """Return the bias of every query for every coarse key, (heads, H W, Hp Wp).

        In eval mode without gradients the bias of the last size is kept until the weights change.
        """
        tracing = torch.compiler.is_compiling() or exporting()
        keep = not (self.training or torch.is_grad_enabled() or tracing)
        weights = [*self.cpb_fc1.parameters(), *self.cpb_fc2.parameters()]
        if not keep or any(weight.is_inference() for weight in weights):
            return self._position_bias(height, width)
        key = (height, width, *((w.data_ptr(), w._version, w.dtype) for w in weights))
        cached = self._cached  # once, since other threads may replace it
        if cached is not None and cached[0] == key:
            return cached[1]
        bias = self._position_bias(height, width)
        self._cached = (key, bias) if bias.numel() <= _LARGEST_CACHED else None
        return bias

    def train(self, mode: bool = True) -> _Attention:
        """Set the mode and forget the cached bias."""
        self._cached = None
        return super().train(mode)

    def _position_bias(self, height: int, width: int) -> Tensor:
        made_for = (height, width) if self.bias_size is None else self.bias_size
        bias = self._continuous_bias(*made_for)  # heads, H, W, Hp, Wp
        if made_for != (height, width):
            bias = _resize_axes(bias, self.pooled_size(height, width))
            bias = _resize_axes(bias.permute(0, 3, 4, 1, 2), (height, width))
            bias = bias.permute(0, 3, 4, 1, 2)
        return bias.flatten(1, 2).flatten(2)

    def _continuous_bias(self, height: int, width: int) -> Tensor:
        """Evaluate the bias (heads, H, W, Hp, Wp) once for every different offset."""
        pooled = self.pooled_size(height, width)
        weight = self.cpb_fc1.weight
        offsets, places = [], []
        for queries, keys in zip((height, width), pooled, strict=True):
            offset, index = _offsets(queries, keys, weight.device)
            offset = offset * (8 / max(1, self.pretrain_side - 1))
            offsets.append(offset.sign() * (offset.abs() + 1).log2() / math.log2(8))
            places.append(index)
        rows, columns = offsets[0].shape[0], offsets[1].shape[0]
        table = torch.stack(
            (
                offsets[0][:, None].expand(rows, columns),
                offsets[1][None].expand(rows, columns),
            ),
            dim=-1,
        )
        table = self.cpb_fc2(F.relu(self.cpb_fc1(table.flatten(0, 1).to(weight.dtype))))
        place = places[0][:, None, :, None] * columns + places[1][None, :, None, :]
        bias = table.t()[:, place.flatten()]
        return bias.view(self.num_heads, height, width, *pooled)


class CosineAttention(_Attention):
    """Attention of all places to all places by cosine similarity (section 3.2, equation 9)."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, **position: object) -> None:
        """Build the projections; `position` are the other arguments of `_Attention`."""
        super().__init__(dim, num_heads, qkv_bias, **position)
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        batch, height, width, dim = x.shape
        qkv = self.qkv(x).view(batch, height * width, 3 * self.num_heads, self.head_dim)
        q, k, v = qkv.transpose(1, 2).chunk(3, dim=1)  # B, heads, N, d
        scale = F.softplus(self.temperature) * math.log(height * width)
        q = (F.normalize(q, dim=-1) + self.query_embedding) * scale
        k = F.normalize(k, dim=-1)
        weights = q @ k.transpose(-2, -1) + self.position_bias(height, width)
        y = weights.softmax(-1).to(v.dtype) @ v
        return self.proj(y.transpose(1, 2).reshape(batch, height, width, dim))


class AggregatedAttention(_Attention):
    """Attention to the neighbourhood of each place and to a pooled map (section 3, figure 3).

    Args:
        dim: C.
        num_heads: Heads.
        window_size: Side of the neighbourhood, odd.
        qkv_bias: Whether the projections have a bias.
        position: The other arguments of `_Attention`.

    Raises:
        ConfigError: an even window.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 3,
        qkv_bias: bool = True,
        **position: object,
    ) -> None:
        """Build the projections and the learned keys of the neighbourhood."""
        super().__init__(dim, num_heads, qkv_bias, **position)
        if window_size % 2 == 0:
            raise ConfigError(f"window_size {window_size} has no centre: give an odd number.")
        self.window_size = window_size
        cells = window_size**2
        self.q = Linear(dim, dim, bias=qkv_bias)
        self.kv = Linear(dim, 2 * dim, bias=qkv_bias)
        self.sr = nn.Conv2d(dim, dim, 1)
        self.norm = nn.LayerNorm(dim)
        self.relative_pos_bias_local = nn.Parameter(torch.empty(num_heads, cells))
        self.learnable_tokens = nn.Parameter(torch.empty(num_heads, self.head_dim, cells))
        self.learnable_bias = nn.Parameter(torch.zeros(num_heads, 1, cells))
        nn.init.trunc_normal_(self.relative_pos_bias_local, std=0.0004)
        nn.init.trunc_normal_(self.learnable_tokens, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        batch, height, width, dim = x.shape
        heads = (self.num_heads, self.head_dim)
        q = F.normalize(self.q(x).unflatten(-1, heads), dim=-1)
        k, v = self.kv(x).chunk(2, dim=-1)
        k = F.normalize(k.unflatten(-1, heads), dim=-1)
        k_pool, v_pool = self._pooled(x)

        outside = self._outside(height, width, x)
        cells = self.window_size**2
        keys = cells - outside.sum(-1, dtype=x.dtype) + k_pool.shape[2]  # each query's, (H, W)
        scale = F.softplus(self.temperature).view(-1, 1) * keys.log()[..., None, None]
        scaled = (q + self.query_embedding.squeeze(1)) * scale  # B, H, W, heads, d

        near = torch.stack([(scaled * cell).sum(-1) for cell in self._cells(k)], dim=-1)
        near = near + self.relative_pos_bias_local
        near = near.masked_fill(outside[:, :, None], -math.inf)
        near = near.flatten(1, 2).transpose(1, 2)  # B, heads, N, L
        far = scaled.flatten(1, 2).transpose(1, 2) @ k_pool.transpose(-2, -1)
        far = far + self.position_bias(height, width)
        weights = torch.cat((near, far), dim=-1).softmax(-1)
        near, far = weights.split((cells, far.shape[-1]), dim=-1)

        # Positional attention joins after the softmax and takes the unscaled queries.
        learned = q.flatten(1, 2).transpose(1, 2) @ self.learnable_tokens + self.learnable_bias
        near = (near + learned).to(v.dtype).transpose(1, 2).unflatten(1, (height, width))
        y: Tensor | None = None
        for index, cell in enumerate(self._cells(v.unflatten(-1, heads))):
            weight = near[..., index, None]
            y = weight * cell if y is None else torch.addcmul(y, weight, cell)
        far = (far.to(v.dtype) @ v_pool).transpose(1, 2).unflatten(1, (height, width))
        return self.proj((y + far).reshape(batch, height, width, dim))

    def _pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return normalised keys and values of the coarse map, each (B, heads, P, d)."""
        y = F.gelu(linear(x, self.sr.weight.flatten(1), self.sr.bias))
        size = self.pooled_size(x.shape[1], x.shape[2])
        y = F.adaptive_avg_pool2d(y.permute(0, 3, 1, 2), size).flatten(2).transpose(1, 2)
        kv = self.kv(self.norm(y)).unflatten(-1, (2 * self.num_heads, self.head_dim))
        k, v = kv.transpose(1, 2).chunk(2, dim=1)
        return F.normalize(k, dim=-1), v

    def _cells(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the view of each cell of the window, row by row, zeros outside the map."""
        height, width = x.shape[1:3]
        reach = self.window_size // 2
        padded = F.pad(x, (0, 0, 0, 0, reach, reach, reach, reach))
        for dy in range(self.window_size):
            for dx in range(self.window_size):
                yield padded[:, dy : dy + height, dx : dx + width]

    def _outside(self, height: int, width: int, like: Tensor) -> Tensor:
        """Return whether each cell of each place's window is outside the map, (H, W, L)."""
        shift = torch.arange(self.window_size, device=like.device) - self.window_size // 2
        y = torch.arange(height, device=like.device)[:, None] + shift
        x = torch.arange(width, device=like.device)[:, None] + shift
        y, x = (y < 0) | (y >= height), (x < 0) | (x >= width)
        return (y[:, None, :, None] | x[None, :, None, :]).flatten(2)


class _DepthwiseConv(nn.Module):
    """A 3x3 depth-wise convolution on (B, H, W, C); the name in between is the authors'."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        # A dense copy in this layout, since on half of a tensor's channels it is far slower.
        x = x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        return self.dwconv(x).permute(0, 2, 3, 1)


class ConvGLU(nn.Module):
    """Gated linear unit whose gate looks at the 3x3 neighbourhood (section 3.4).

    Args:
        dim: C.
        hidden: Channels of the gate and of what it gates.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        """Build the projections and the convolution."""
        super().__init__()
        self.fc1 = Linear(dim, 2 * hidden)
        self.dwconv = _DepthwiseConv(hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.gelu(self.dwconv(gate)) * value)


class TransNeXtBlock(nn.Module):
    """Attention and a ConvGLU, each after a norm."""

    def __init__(self, dim: int, attn: nn.Module, mlp_ratio: float, drop_path: float) -> None:
        """Build one block of `dim` channels around an attention."""
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        # Two thirds, so that the gate does not cost more than a plain perceptron.
        self.mlp = ConvGLU(dim, int(2 * int(dim * mlp_ratio) / 3))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class OverlapPatchEmbed(nn.Module):
    """A strided convolution with overlap, then LayerNorm."""

    def __init__(self, in_chans: int, dim: int, kernel_size: int, stride: int) -> None:
        """Build the convolution and the norm."""
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size, stride, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, H', W', dim)."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class OutputNorm(nn.LayerNorm):
    """LayerNorm of (B, H, W, C) that gives (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, C, H, W)."""
        return super().forward(x).permute(0, 3, 1, 2)


class TransNeXtTrunk(Pyramid):
    """Stem and stages of TransNeXt.

    Args:
        in_chans: Channels of the image.
        embed_dims: Channels of each stage.
        num_heads: Heads of each stage; None: one for 24 channels, as published.
        mlp_ratios: Of each stage, hidden channels of a plain perceptron of the same cost.
        depths: Blocks of each stage.
        sr_ratios: Of each stage, how much coarser the pooled map is; 1: plain attention.
        window_size: Of each stage, the side of the neighbourhood; unused where sr_ratio is 1.
        qkv_bias: Whether projections to queries, keys and values have a bias.
        drop_path_rate: Of the last block; that of the others rises from 0 linearly.
        pretrain_size: Image side at training; distances are measured in its cells.
        fixed_pool_size: Side of the pooled maps at any image size (linear mode; the paper takes
            7); None: by `sr_ratios`.
        position_bias: At other sizes than `pretrain_size`, `extrapolate` evaluates the position
            bias for the real offsets; `interpolate` evaluates it for `img_size` and interpolates.
        img_size: Image side, or (height, width), for which `interpolate` makes the bias.
    """

    first_stage = 1
    first_conv = "patch_embed1.proj"
    stem_pattern = r"patch_embed1\."
    block_pattern = r"block(\d+)\.(\d+)"
    entry_pattern = r"(?:patch_embed|norm)(\d+)"

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dims: Sequence[int] = (72, 144, 288, 576),
        num_heads: Sequence[int] | None = None,
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        depths: Sequence[int] = (2, 2, 15, 2),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        window_size: Sequence[int | None] = (3, 3, 3, 3),
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        pretrain_size: int = 224,
        fixed_pool_size: int | None = None,
        position_bias: PositionMode = "extrapolate",
        img_size: int | Sequence[int] = 224,
    ) -> None:
        """Build and initialise the stages; parameters carry the authors' names."""
        super().__init__()
        heads = [dim // 24 for dim in embed_dims] if num_heads is None else num_heads
        sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        rates = drop_path_rates(drop_path_rate, depths)
        channels = (in_chans, *embed_dims)
        for i, dim in enumerate(embed_dims):
            stride = 4 * 2**i
            position = {
                "pretrain_side": pretrain_size // stride,
                "bias_size": tuple(max(1, side // stride) for side in sides)
                if position_bias == "interpolate"
                else None,
            }
            blocks = []
            for rate in rates[i]:
                if sr_ratios[i] == 1:
                    attn: _Attention = CosineAttention(dim, heads[i], qkv_bias, **position)
                else:
                    attn = AggregatedAttention(
                        dim,
                        heads[i],
                        window_size[i] or 3,
                        qkv_bias,
                        reduction=sr_ratios[i],
                        pool_size=fixed_pool_size,
                        **position,
                    )
                blocks.append(TransNeXtBlock(dim, attn, mlp_ratios[i], rate))
            patch = (7, 4) if i == 0 else (3, 2)
            self.add_module(f"patch_embed{i + 1}", OverlapPatchEmbed(channels[i], dim, *patch))
            self.add_module(f"block{i + 1}", Stage(*blocks))
            self.add_module(f"norm{i + 1}", OutputNorm(dim, eps=1e-6))
        self.apply(_initialise)
        self._describe(embed_dims, depths, in_chans, "norm{}")

    def forward_stage(self, index: int, x: Tensor) -> Tensor:
        """Map the image or a stage's map to the next stage's normalised map (B, C, H, W)."""
        for part in ("patch_embed", "block", "norm"):
            x = self.get_submodule(f"{part}{index + 1}")(x)
        return x

    def _drop_stages_after(self, last: int) -> None:
        for index in range(last + 1, len(self.feature_info)):
            for part in ("patch_embed", "block", "norm"):
                delattr(self, f"{part}{index + 1}")

    def no_weight_decay(self) -> set[str]:
        """Return the parameters of similarity and position, which take no weight decay."""
        parts = ("query_embedding", "relative_pos_bias_local", "cpb", "temperature")
        return {name for name, _ in self.named_parameters() if any(p in name for p in parts)}


class TransNeXt(PyramidBackbone, TransNeXtTrunk):
    """TransNeXt as a backbone: maps at strides 4, 8, 16, 32, normalised by `norm1..4`.

    Takes `out_indices` of `PyramidBackbone` and the arguments of `TransNeXtTrunk`.
    """

    dense_norms = False  # those of the stages are on the way to the next stage


class TransNeXtClassifier(ImageClassifier, TransNeXtTrunk):
    """TransNeXt as an image classifier.

    Takes the arguments of `ImageClassifier` and `TransNeXtTrunk`.
    """

    pooled_norm = False


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
        nn.init.normal_(module.weight, std=math.sqrt(2 * module.groups / fan_out))
        nn.init.zeros_(module.bias)


def _offsets(queries: int, keys: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return offsets query - key on one axis (n,), and which one each pair has (queries, keys).

    A pooled key is at the mean of the cells it pools. Offsets come in steps of one cell where
    all keys pool alike, else of half a cell: counted, not searched for, so that compilers and
    exporters can follow.
    """
    key = torch.arange(keys, device=device)
    first = torch.div(key * queries, keys, rounding_mode="floor")
    stop = torch.div((key + 1) * queries + keys - 1, keys, rounding_mode="floor")
    step = 1 if queries % keys else 2  # in halves of a cell
    lowest = 1 - queries - (keys - 1) * queries // keys
    highest = 2 * (queries - 1) + 1 - (queries + keys - 1) // keys
    pairs = 2 * torch.arange(queries, device=device)[:, None] - (first + stop - 1)
    index = torch.div(pairs - lowest, step, rounding_mode="floor")
    count = (highest - lowest) // step + 1
    return (torch.arange(count, device=device) * step + lowest) / 2, index


def _resize_axes(bias: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate the last two axes of (heads, a, b, c, d) bilinearly."""
    if tuple(bias.shape[-2:]) == size:
        return bias
    resized = F.interpolate(bias.flatten(0, 2)[:, None], size, mode="bilinear")
    return resized.squeeze(1).unflatten(0, bias.shape[:3])
