"""PredFormer: video, traffic and weather prediction by gated transformers alone.

Tang et al. 2024, "PredFormer: Transformers Are Effective Spatial-Temporal Predictive Learners"
(arXiv 2410.04733). State-dict keys are the authors'. Written from the paper and a description of
the released code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from crossband.shared.errors import ConfigError
from crossband.shared.kernels.attention import attention
from crossband.shared.kernels.linear import Linear

# The order of space (S) and time (T) attention in one block of each variant, with the names that
# the authors gave the transformers.
INTERLEAVED: dict[str, tuple[tuple[str, str], ...]] = {
    "binary_ts": (("ts_temporal_transformer", "T"), ("ts_space_transformer", "S")),
    "binary_st": (("st_space_transformer", "S"), ("st_temporal_transformer", "T")),
    "triplet_tst": (
        ("temporal_transformer_first", "T"),
        ("space_transformer", "S"),
        ("temporal_transformer_second", "T"),
    ),
    "triplet_sts": (
        ("space_transformer_first", "S"),
        ("temporal_transformer", "T"),
        ("space_transformer_second", "S"),
    ),
    "quadruplet_tsst": (
        ("ts_temporal_transformer", "T"),
        ("ts_space_transformer", "S"),
        ("st_space_transformer", "S"),
        ("st_temporal_transformer", "T"),
    ),
    "quadruplet_stts": (
        ("st_space_transformer", "S"),
        ("st_temporal_transformer", "T"),
        ("ts_temporal_transformer", "T"),
        ("ts_space_transformer", "S"),
    ),
}
FACTORISED: dict[str, tuple[tuple[str, str], ...]] = {
    "full": (("space_temporal_transformer", "F"),),
    "fac_st": (("space_transformer", "S"), ("temporal_transformer", "T")),
    "fac_ts": (("temporal_transformer", "T"), ("space_transformer", "S")),
}
VARIANTS = (*FACTORISED, *INTERLEAVED)

# Without gradients a CPU takes no more than these tokens at once, so that the activations stay in
# its caches (t2m, batch 8, one thread: 901 -> 721 ms) and memory does not grow with the batch.
_TOKENS_AT_ONCE = 2048


class Attention(nn.Module):
    """Multi-head self-attention over space (S), time (T) or both (F).

    As in the authors' code, dropout acts on the projected output, not on the weights.
    """

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float) -> None:
        """Make the projections; a single head as wide as the tokens has no output projection."""
        super().__init__()
        self.heads = heads
        inner = heads * dim_head
        self.to_qkv = Linear(dim, 3 * inner, bias=False)
        if heads == 1 and dim_head == dim:
            self.to_out: nn.Module = nn.Identity()
        else:
            self.to_out = nn.Sequential(Linear(inner, dim), nn.Dropout(dropout))

    def forward(self, x: Tensor, axis: str) -> Tensor:
        """Map (B, T, N, D) to the same shape."""
        frames, sites = x.shape[1], x.shape[2]
        qkv = self.to_qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, T, N, 3, h, e)
        if axis == "F":
            q, k, v = qkv.flatten(1, 2).permute(2, 0, 3, 1, 4)  # (B, h, T N, e)
            out = attention(q, k, v).transpose(1, 2).unflatten(1, (frames, sites))
        elif axis == "S":
            q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # (B, T, h, N, e)
            out = attention(q, k, v).transpose(2, 3)
        else:
            q, k, v = qkv.permute(3, 0, 2, 4, 1, 5)  # (B, N, h, T, e)
            out = attention(q, k, v).permute(0, 3, 1, 2, 4)
        return self.to_out(out.flatten(-2))


class SwiGLU(nn.Module):
    """Gated MLP `fc2(SiLU(fc1_g(x)) * fc1_x(x))` of full hidden width."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        """Make the three layers."""
        super().__init__()
        self.fc1_g = Linear(dim, hidden)
        self.fc1_x = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to the same shape."""
        gate, value = self.fc1_g(x), self.fc1_x(x)
        if torch.is_grad_enabled() or torch.compiler.is_exporting():
            hidden = nn.functional.silu(gate) * value
        else:  # spares two arrays of the hidden width
            hidden = nn.functional.silu(gate, inplace=True).mul_(value)
        return self.drop(self.fc2(self.drop(hidden)))


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch per sequence (the rows that attend together)."""

    def __init__(self, rate: float) -> None:
        """Keep the rate."""
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, axis: str) -> Tensor:
        """Map (B, T, N, D) to the same shape."""
        if not self.training or self.rate == 0.0:
            return x
        batch, frames, sites, _ = x.shape
        shape = {"F": (batch, 1, 1, 1), "S": (batch, frames, 1, 1), "T": (batch, 1, sites, 1)}
        keep = torch.empty(shape[axis], dtype=x.dtype, device=x.device).bernoulli_(1 - self.rate)
        return x * keep.div_(1 - self.rate)


class PreNorm(nn.Module):
    """LayerNorm before a branch; holds the authors' key names `norm` and `fn`."""

    def __init__(self, dim: int, fn: nn.Module, eps: float) -> None:
        """Keep the branch."""
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.fn = fn

    def forward(self, x: Tensor, *args: str) -> Tensor:
        """Normalise, then run the branch."""
        return self.fn(self.norm(x), *args)


class GatedTransformer(nn.Module):
    """Pre-norm layers of attention and SwiGLU, then a LayerNorm on the residual stream."""

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        dim_head: int,
        hidden: int,
        dropout: float,
        attn_dropout: float,
        drop_path: float,
        norm_eps: float,
    ) -> None:
        """Make the layers; Linear weights are truncated normal with std 0.02, biases zero."""
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PreNorm(dim, Attention(dim, heads, dim_head, attn_dropout), norm_eps),
                    PreNorm(dim, SwiGLU(dim, hidden, dropout), norm_eps),
                    DropPath(drop_path),
                ]
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, axis: str) -> Tensor:
        """Map (B, T, N, D) to the same shape, attending over `axis`."""
        for attend, mlp, drop_path in self.layers:
            x = x + drop_path(attend(x, axis), axis)
            x = x + drop_path(mlp(x), axis)
        return self.norm(x)


class Patchify(nn.Module):
    """Cuts frames into patches; a patch is read row, column, channel."""

    def __init__(self, patch_size: int) -> None:
        """Keep the size."""
        super().__init__()
        self.patch_size = patch_size

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C, H, W) to (B, T, N, p p C), patches row by row."""
        p = self.patch_size
        x = x.unflatten(3, (-1, p)).unflatten(5, (-1, p))  # (B, T, C, h, p, w, p)
        return x.permute(0, 1, 3, 5, 4, 6, 2).flatten(4).flatten(2, 3)


class PredFormer(nn.Module):
    """PredFormer: maps T frames to the next T frames.

    Args:
        variant: One of `VARIANTS` (section 3.3 of the paper).
        history: T, frames in and out.
        in_channels: Channels of an input frame.
        height: Rows of the grid, a multiple of `patch_size`.
        width: Columns of the grid, a multiple of `patch_size`.
        out_channels: Channels of an output frame; default `in_channels`.
        patch_size: Side of a patch.
        dim: Token width.
        heads: Attention heads.
        dim_head: Width of a head.
        mlp_ratio: SwiGLU hidden width / `dim`.
        depth: Blocks of the variant (`Ndepth` of the authors).
        block_depth: Layers in each transformer of an interleaved block.
        dropout: In the SwiGLU.
        attn_dropout: On the attention's output.
        drop_path: Stochastic depth, the same for all layers.
        layer_skip: Interleaved variants only: add the input of each block to its output, as the
            paper does for the triplets on Human3.6M.
        legacy_order: `fac_st` only: read the tokens out in the order of the authors' code, which
            mixes space and time; for their weights.
        norm_eps: Of all LayerNorms.

    Raises:
        ConfigError: unknown variant, a grid that the patches do not tile, or `layer_skip` for a
            variant without blocks.
    """

    def __init__(
        self,
        *,
        variant: str = "fac_ts",
        history: int,
        in_channels: int,
        height: int,
        width: int,
        out_channels: int | None = None,
        patch_size: int = 4,
        dim: int = 256,
        heads: int = 8,
        dim_head: int = 32,
        mlp_ratio: int = 4,
        depth: int = 2,
        block_depth: int = 1,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_skip: bool = False,
        legacy_order: bool = False,
        norm_eps: float = 1e-5,
    ) -> None:
        """Build the network."""
        super().__init__()
        if variant not in VARIANTS:
            raise ConfigError(
                f"PredFormer has no variant {variant!r}: choose {', '.join(VARIANTS)}."
            )
        sizes = {
            "patch_size": patch_size, "dim": dim, "heads": heads, "dim_head": dim_head,
            "mlp_ratio": mlp_ratio, "depth": depth, "block_depth": block_depth,
        }  # fmt: skip
        for name, value in sizes.items():
            if value < 1:
                raise ConfigError(f"PredFormer's {name} is {value}, but must be at least 1.")
        if height % patch_size or width % patch_size:
            raise ConfigError(_untiled(height, width, patch_size))
        if layer_skip and variant not in INTERLEAVED:
            raise ConfigError(f"layer_skip is for interleaved variants, {variant!r} has no blocks.")
        self.variant = variant
        self.input_shape = (history, in_channels, height, width)
        self.out_channels = out_channels or in_channels
        self.patch_size = patch_size
        self.rows, self.columns = height // patch_size, width // patch_size
        self.legacy_order = legacy_order and variant == "fac_st"
        self.layer_skip = layer_skip

        def transformer(layers: int) -> GatedTransformer:
            return GatedTransformer(
                dim, layers, heads, dim_head, dim * mlp_ratio, dropout, attn_dropout, drop_path,
                norm_eps,
            )  # fmt: skip

        area = patch_size**2
        self.to_patch_embedding = nn.Sequential(
            Patchify(patch_size), Linear(in_channels * area, dim)
        )
        if variant in INTERLEAVED:
            self.blocks = nn.ModuleList(
                nn.ModuleDict({name: transformer(block_depth) for name, _ in INTERLEAVED[variant]})
                for _ in range(depth)
            )
        else:
            for name, _ in FACTORISED[variant]:
                self.add_module(name, transformer(depth))
        self.mlp_head = nn.Sequential(
            nn.LayerNorm(dim, eps=norm_eps), Linear(dim, self.out_channels * area)
        )
        self.register_buffer(
            "pos_embedding",
            sinusoid(history * self.rows * self.columns, dim).view(1, history, -1, dim),
            persistent=False,  # the authors' state dict does not hold it either
        )

    def layer_index(self, name: str) -> int:
        """Return the depth of a parameter, for layer-wise rates: 0 embeds, the last reads out."""
        parts = name.split(".")
        if parts[0] == "to_patch_embedding":
            return 0
        if self.variant in INTERLEAVED:
            return len(self.blocks) + 1 if parts[0] == "mlp_head" else int(parts[1]) + 1
        stacks = [self.get_submodule(stack) for stack, _ in FACTORISED[self.variant]]
        if parts[0] == "mlp_head":
            return sum(len(stack.layers) for stack in stacks) + 1
        names = [stack for stack, _ in FACTORISED[self.variant]]
        before = sum(len(stack.layers) for stack in stacks[: names.index(parts[0])])
        own = stacks[names.index(parts[0])]
        return before + (int(parts[2]) + 1 if parts[1] == "layers" else len(own.layers))

    def embed(self, x: Tensor) -> Tensor:
        """Map frames (B, T, C, H, W) to tokens with their positions (B, T, N, D)."""
        return self.to_patch_embedding(x) + self.pos_embedding

    def encode(self, tokens: Tensor) -> Tensor:
        """Run the transformers over tokens (B, T, N, D)."""
        if self.variant in INTERLEAVED:
            for block in self.blocks:
                tokens = self.run_block(block, tokens)
        else:
            for name, axis in FACTORISED[self.variant]:
                tokens = self.get_submodule(name)(tokens, axis)
        return tokens

    def run_block(self, block: nn.ModuleDict, tokens: Tensor) -> Tensor:
        """Run one interleaved block in the order of the variant."""
        before = tokens
        for name, axis in INTERLEAVED[self.variant]:
            tokens = block[name](tokens, axis)
        return tokens + before if self.layer_skip else tokens

    def read_out(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, T, N, D) to frames; a patch is written channel, row, column."""
        if self.legacy_order:  # site-major tokens read as if they were time-major
            tokens = tokens.transpose(1, 2).reshape(tokens.shape)
        p = self.patch_size
        x = self.mlp_head(tokens).unflatten(-1, (self.out_channels, p, p))
        x = x.unflatten(2, (self.rows, self.columns))  # (B, T, h, w, C, p, p)
        return x.permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C, H, W) to the next T frames (B, T, out_channels, H, W).

        Raises:
            ConfigError: frames of another shape than the network was built for.
        """
        if tuple(x.shape[1:]) != self.input_shape:
            raise ConfigError(
                f"This PredFormer takes frames (T, C, H, W) = {self.input_shape}, not "
                f"{tuple(x.shape[1:])}: its position code is bound to the size."
            )
        parts = x.split(self._samples_at_once()) if _is_eager_cpu_inference(x) else (x,)
        outputs = [self.read_out(self.encode(self.embed(part))) for part in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _samples_at_once(self) -> int:
        _, history, sites, _ = self.pos_embedding.shape
        return max(1, _TOKENS_AT_ONCE // (history * sites))


def sinusoid(positions: int, dim: int) -> Tensor:
    """Return the fixed position code (positions, dim): sines at even, cosines at odd places."""
    place = torch.arange(positions, dtype=torch.float64)[:, None]
    channel = torch.arange(dim)
    angle = place / 10000 ** (2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


def _is_eager_cpu_inference(x: Tensor) -> bool:
    traced = torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not traced


def _untiled(height: int, width: int, patch: int) -> str:
    rows, columns = height // patch, width // patch
    larger = f"pad it to {-(-height // patch) * patch} x {-(-width // patch) * patch}"
    smaller = f"crop it to {rows * patch} x {columns * patch} or " if rows and columns else ""
    common = math.gcd(height, width)
    fitting = ", ".join(str(size) for size in range(1, common + 1) if common % size == 0)
    return (
        f"A grid of {height} x {width} cannot be cut into patches of {patch}: {smaller}{larger} "
        f"(--data.fit crop|pad), or choose patch_size from {fitting}."
    )
