"""Attention both ways between tokens of prompts and the image's map."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.errors import ConfigError
from crossband.shared.kernels.linear import Linear


class Attention(nn.Module):
    """Attention of queries to keys, in fewer channels if `reduction` is above 1.

    Args:
        dim: Channels in and out.
        num_heads: Heads.
        reduction: Channels over those that the attention works in.
    """

    def __init__(self, dim: int, num_heads: int, reduction: int = 1) -> None:
        """Build the projections."""
        super().__init__()
        inner = dim // reduction
        if inner % num_heads:
            raise ConfigError(f"{inner} channels cannot be split over {num_heads} heads.")
        self.num_heads = num_heads
        self.q_proj, self.k_proj = Linear(dim, inner), Linear(dim, inner)
        self.v_proj, self.out_proj = Linear(dim, inner), Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Map queries (B, N, D), keys and values (B, M, D) to (B, N, D)."""
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class TokenMlp(nn.Module):
    """Two linear layers with a ReLU, under the authors' names."""

    def __init__(self, dim: int, hidden: int) -> None:
        """Build the layers."""
        super().__init__()
        self.lin1, self.lin2 = Linear(dim, hidden), Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to the same shape."""
        return self.lin2(F.relu(self.lin1(x)))


class TwoWayBlock(nn.Module):
    """Tokens attend to each other and to the image, then the image to the tokens; post-norm.

    Args:
        dim: Channels.
        num_heads: Heads.
        mlp_dim: Hidden channels of the MLP.
        reduction: Of the attention between tokens and image.
        first: The first block, whose tokens are the prompts themselves: they attend to each other
            without positions and without a shortcut.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_dim: int, reduction: int = 2, first: bool = False
    ) -> None:
        """Build the layers."""
        super().__init__()
        self.first = first
        self.self_attn = Attention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, num_heads, reduction)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = TokenMlp(dim, mlp_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, num_heads, reduction)

    def forward(
        self, tokens: Tensor, image: Tensor, prompts: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Map tokens (B, N, D) and image (B, M, D) to the same shapes.

        Args:
            tokens: What is made of the prompts.
            image: Places of the map.
            prompts: The prompts, which are the tokens' positions, (B, N, D).
            positions: Of the places, (1, M, D).
        """
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + prompts
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        k = image + positions
        tokens = tokens + self.cross_attn_token_to_image(tokens + prompts, k, image)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = image + self.cross_attn_image_to_token(k, tokens + prompts, tokens)
        return tokens, self.norm4(image)


class TwoWayTransformer(nn.Module):
    """The decoder's blocks, and a last look of the tokens at the image.

    Args:
        depth: Blocks.
        embedding_dim: D, channels.
        num_heads: Heads.
        mlp_dim: Hidden channels of the MLPs.
        reduction: Of the attention between tokens and image.
    """

    def __init__(
        self,
        depth: int = 2,
        embedding_dim: int = 256,
        num_heads: int = 8,
        mlp_dim: int = 2048,
        reduction: int = 2,
    ) -> None:
        """Build the blocks."""
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(embedding_dim, num_heads, mlp_dim, reduction, first=number == 0)
            for number in range(depth)
        )
        self.final_attn_token_to_image = Attention(embedding_dim, num_heads, reduction)
        self.norm_final_attn = nn.LayerNorm(embedding_dim)

    def forward(self, image: Tensor, positions: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (B, N, D) and the image (B, H W, D).

        Args:
            image: Map (B, D, H, W).
            positions: Of its places, (1, D, H, W).
            prompts: Tokens (B, N, D).
        """
        flat, places = (x.flatten(2).transpose(1, 2) for x in (image, positions))
        tokens = prompts
        for layer in self.layers:
            tokens, flat = layer(tokens, flat, prompts, places)
        look = self.final_attn_token_to_image(tokens + prompts, flat + places, flat)
        return self.norm_final_attn(tokens + look), flat
