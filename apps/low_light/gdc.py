"""Global dynamic convolution: one 1x1 kernel per patch, made from the image itself.

Troublemaker Learning (arXiv 2402.04584); the block that the authors' code calls SABlock.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.errors import ConfigError
from crossband.shared.kernels.linear import batched_linear, linear

Order = Literal["auto", "direct", "reassociated"]


class GDC(nn.Module):
    """Mixes every place of a feature map with a summary of every patch, plus the input.

    With queries `Q` (P, C), one per patch, and keys `K` (C, hw), the block adds
    `conv1(Q K + bias)`. As conv1 is linear with weight `W` (C, P), this equals
    `(W Q) K + bias * rowsum(W) + b`: `2 C P hw` multiply-adds become `C^2 (P + hw)`, which no
    longer grows with the square of the image. Each call takes the cheaper order.

    P is a dimension of the weights, so a block belongs to one size. With `resize_patch_grid`
    other sizes are taken too: the grids of `diff` and `W` are interpolated, and `W` is divided by
    the change in the number of patches, so that the sum over patches keeps its scale. At the
    native size this changes nothing.

    Args:
        dim: C, channels.
        in_shape: (h, w) of the input, or one number for a square.
        patch_size: Side of a patch; 0: 5, or 7 if `in_shape` is one number, as published.
        drop_path: Probability of leaving the block out, per sample, in training.
        resize_patch_grid: Accept other sizes.
        order: Which order of evaluation; `auto` takes the cheaper.

    Raises:
        ConfigError: patches do not tile the input.
    """

    def __init__(
        self,
        dim: int,
        in_shape: tuple[int, int] | int,
        *,
        patch_size: int = 0,
        drop_path: float = 0.2,
        resize_patch_grid: bool = False,
        order: Order = "auto",
    ) -> None:
        """Build the block; parameters carry the authors' names."""
        super().__init__()
        square = isinstance(in_shape, int)
        height, width = (in_shape, in_shape) if square else in_shape
        self.patch_size = p = patch_size or (7 if square else 5)
        if height % p or width % p or height < p or width < p:
            raise ConfigError(
                f"GDC cannot tile {height} x {width} with patches of {p}: both must be multiples."
            )
        self.grid = (height // p, width // p)
        self.drop_path = drop_path
        self.resize_patch_grid = resize_patch_grid
        self.order: Order = order
        patches = self.grid[0] * self.grid[1]
        self.patch = nn.Conv2d(dim, dim, p, stride=p, groups=dim)
        self.diff = nn.Parameter(torch.randn(dim, *self.grid))
        self.lnnorm = nn.LayerNorm(dim, eps=1e-6)
        self.convk = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.bias = nn.Parameter(torch.zeros(1))
        self.conv1 = nn.Conv2d(patches, dim, 1)
        # In the authors' checkpoints but never used: kept so that keys and counts are theirs.
        self.ln = nn.LayerNorm(dim).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape.

        Raises:
            ConfigError: another size than the block was made for, without `resize_patch_grid`.
        """
        batch, channels, height, width = x.shape
        diff, mix = self._weights_for(height, width)
        queries = self.patch(x) + diff
        queries = F.gelu(self.lnnorm(queries.permute(0, 2, 3, 1))).flatten(1, 2)  # B, P, C
        keys = self.convk(x).flatten(2).transpose(1, 2)  # B, hw, C: a view where channels are last
        if self._reassociate(channels, mix.shape[1], height * width):
            mixed = batched_linear(keys, mix @ queries)
        else:
            mixed = linear(batched_linear(keys, queries), mix)
        mixed = mixed + (self.bias * mix.sum(1) + self.conv1.bias)
        mixed = mixed.transpose(1, 2).unflatten(2, (height, width))
        if self.training and self.drop_path:
            keep = 1 - self.drop_path
            mixed = mixed * (x.new_empty(batch, 1, 1, 1).bernoulli_(keep) / keep)
        return x + mixed

    def _weights_for(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return `diff` (C, gh, gw) and `W` (C, gh gw) for the grid of an input."""
        p, grid = self.patch_size, self.grid
        weight = self.conv1.weight.flatten(1)
        here = (height // p, width // p)
        if height % p == 0 and width % p == 0 and (here == grid):
            return self.diff, weight
        if not self.resize_patch_grid or height % p or width % p:
            raise ConfigError(
                f"This GDC block was made for {grid[0] * p} x {grid[1] * p}, it got {height} x "
                f"{width}: give that size, or set resize_patch_grid and multiples of {p}."
            )
        diff = _resize(self.diff, here)
        weight = _resize(weight.unflatten(1, grid), here).flatten(1)
        return diff, weight * (grid[0] * grid[1] / (here[0] * here[1]))

    def _reassociate(self, channels: int, patches: int, places: int) -> bool:
        if self.order != "auto":
            return self.order == "reassociated"
        return channels * (patches + places) < 2 * patches * places


def _resize(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate (C, gh, gw) bilinearly."""
    return F.interpolate(grid[None], size, mode="bilinear", align_corners=False)[0]
