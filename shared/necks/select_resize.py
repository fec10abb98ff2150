"""A pyramid without parameters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.errors import ConfigError


class SelectResize(nn.Module):
    """Chooses maps and resizes each, bilinearly, to the stride that its place asks for.

    Args:
        channels: Of the maps that come in.
        in_strides: Of the same.
        indices: Which map makes which level; a map may make several.
        strides: Of the levels.

    Raises:
        ConfigError: a map that does not exist, or not one map for each level.
    """

    def __init__(
        self,
        channels: Sequence[int],
        in_strides: Sequence[int],
        indices: Sequence[int] = (0, 1, 2, 3),
        strides: Sequence[int] = (4, 8, 16, 32),
    ) -> None:
        """Keep the plan."""
        super().__init__()
        if len(indices) != len(strides):
            raise ConfigError(f"{len(indices)} maps for {len(strides)} levels: give one for each.")
        if not all(-len(channels) <= i < len(channels) for i in indices):
            raise ConfigError(f"indices {list(indices)} name no map of {len(channels)}.")
        self.indices, self.strides = list(indices), list(strides)
        self.factors = [in_strides[i] / s for i, s in zip(indices, strides, strict=True)]
        self.out_channels = [channels[i] for i in indices]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map (B, C_i, h_i, w_i) to the levels, finest first."""
        levels = []
        for index, factor in zip(self.indices, self.factors, strict=True):
            x = maps[index]
            if factor != 1:
                size = [max(1, round(side * factor)) for side in x.shape[-2:]]
                x = F.interpolate(x, size, mode="bilinear", align_corners=False)
            levels.append(x)
        return levels
