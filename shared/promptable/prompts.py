"""Prompts as tokens and maps: points, boxes, rough masks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from crossband.shared.errors import ConfigError
from crossband.shared.layers.layer_norm import LayerNorm2d

_ABSENT, _CORNERS = -1, (2, 3)  # label of a padding point; embeddings of a box's two corners


class RandomPositions(nn.Module):
    """Positions as sines and cosines of random frequencies (Tancik et al. 2020).

    Args:
        features: Frequencies; the result has twice as many channels.
        scale: Standard deviation of the frequencies.
    """

    def __init__(self, features: int, scale: float = 1.0) -> None:
        """Draw the frequencies, which are stored and never trained."""
        super().__init__()
        self.register_buffer(
            "positional_encoding_gaussian_matrix", scale * torch.randn(2, features)
        )

    def forward(self, places: Tensor) -> Tensor:
        """Map places (x, y) in 0..1, (..., 2), to (..., 2 F)."""
        matrix = self.positional_encoding_gaussian_matrix
        angles = 2 * math.pi * ((2 * places.to(matrix.dtype) - 1) @ matrix)
        return torch.cat([angles.sin(), angles.cos()], -1)

    def grid(self, rows: int, columns: int) -> Tensor:
        """Return the positions of a map's places, (2 F, rows, columns)."""
        device = self.positional_encoding_gaussian_matrix.device
        y = (torch.arange(rows, device=device) + 0.5) / rows
        x = (torch.arange(columns, device=device) + 0.5) / columns
        down, across = torch.meshgrid(y, x, indexing="ij")
        return self(torch.stack([across, down], -1)).permute(2, 0, 1)


class PromptEncoder(nn.Module):
    """Turns prompts into tokens for the decoder, and a map to be added to the image's.

    Args:
        embed_dim: C, channels.
        grid: Rows and columns of the image's map.
        input_size: Height and width of the input frame, pixels; places are given in these.
        mask_in_chans: Channels of a rough mask on its way down.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        grid: tuple[int, int] = (64, 64),
        input_size: tuple[int, int] = (1024, 1024),
        mask_in_chans: int = 16,
    ) -> None:
        """Build the layers."""
        super().__init__()
        self.embed_dim, self.grid, self.input_size = embed_dim, grid, input_size
        self.pe_layer = RandomPositions(embed_dim // 2)
        # Of a point outside, a point inside, and the upper left and lower right corners of a box.
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed_dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        narrow = mask_in_chans // 4
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, narrow, 2, stride=2),
            LayerNorm2d(narrow),
            nn.GELU(),
            nn.Conv2d(narrow, mask_in_chans, 2, stride=2),
            LayerNorm2d(mask_in_chans),
            nn.GELU(),
            nn.Conv2d(mask_in_chans, embed_dim, 1),
        )
        self.no_mask_embed = nn.Embedding(1, embed_dim)

    def forward(
        self,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return tokens (B, T, C) and a map (B, C, rows, columns) of B prompts.

        Args:
            points: Places (x, y), (B, N, 2), pixels of the input frame; and labels (B, N): 1
                belongs to the object, 0 does not, -1 is no point.
            boxes: Corners x0, y0, x1, y1, (B, 4), pixels of the input frame.
            masks: Logits of rough masks, (B, 1, 4 rows, 4 columns).

        Raises:
            ConfigError: prompts of different numbers.
        """
        counts = {len(x) for x in (points[0] if points else None, boxes, masks) if x is not None}
        if len(counts) > 1:
            raise ConfigError(
                f"points, boxes and masks are of {' and '.join(map(str, sorted(counts)))} prompts: "
                "give as many of each."
            )
        count = counts.pop() if counts else 1
        tokens = [self.no_mask_embed.weight.new_empty(count, 0, self.embed_dim)]
        if points is not None:
            tokens.append(self._points(*points, pad=boxes is None))
        if boxes is not None:
            corners = self._places(boxes.reshape(-1, 2, 2))
            kinds = [self.point_embeddings[number].weight for number in _CORNERS]
            tokens.append(corners + torch.cat(kinds))
        if masks is not None:
            dense = self.mask_downscaling(masks)
        else:
            absent = self.no_mask_embed(torch.zeros(1, dtype=torch.int64, device=tokens[0].device))
            dense = absent[..., None, None].expand(count, -1, *self.grid)
        return torch.cat(tokens, 1), dense

    def dense_positions(self) -> Tensor:
        """Return the positions of the image's map, (1, C, rows, columns)."""
        return self.pe_layer.grid(*self.grid)[None]

    def _points(self, places: Tensor, labels: Tensor, pad: bool) -> Tensor:
        if pad:  # without a box the decoder knows a last point that is none
            places = torch.cat([places, places.new_zeros(len(places), 1, 2)], 1)
            labels = torch.cat([labels, labels.new_full((len(labels), 1), _ABSENT)], 1)
        labels = labels[..., None]
        tokens = self._places(places).where(labels != _ABSENT, 0)
        tokens = tokens + self.not_a_point_embed.weight * (labels == _ABSENT)
        for kind in (0, 1):
            tokens = tokens + self.point_embeddings[kind].weight * (labels == kind)
        return tokens

    def _places(self, places: Tensor) -> Tensor:
        """Encode pixels, whose middles are meant, (..., 2)."""
        height, width = self.input_size
        return self.pe_layer((places + 0.5) / places.new_tensor([width, height]))
