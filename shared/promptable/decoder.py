"""From the image's map and the tokens of prompts to masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.kernels.linear import Linear
from crossband.shared.layers.layer_norm import LayerNorm2d
from crossband.shared.promptable.transformer import TwoWayTransformer


class HeadMlp(nn.Module):
    """Linear layers with ReLUs between them, under the authors' names.

    Args:
        dim: Channels in.
        hidden: Channels between.
        out: Channels out.
        depth: Layers.
    """

    def __init__(self, dim: int, hidden: int, out: int, depth: int) -> None:
        """Build the layers."""
        super().__init__()
        widths = [dim, *[hidden] * (depth - 1), out]
        self.layers = nn.ModuleList(
            Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class MaskDecoder(nn.Module):
    """SAM's mask decoder: a mask for a clear prompt, three more for one of several meanings.

    Args:
        dim: C, channels of the map and the tokens.
        transformer: Attention between the two.
        num_multimask_outputs: Masks for a prompt of several meanings.
        iou_head_depth: Layers of what tells the masks' quality.
        iou_head_hidden_dim: Its hidden channels.
    """

    def __init__(
        self,
        dim: int,
        transformer: TwoWayTransformer,
        num_multimask_outputs: int = 3,
        iou_head_depth: int = 3,
        iou_head_hidden_dim: int = 256,
    ) -> None:
        """Build the layers."""
        super().__init__()
        self.transformer = transformer
        count = num_multimask_outputs + 1
        self.iou_token, self.mask_tokens = nn.Embedding(1, dim), nn.Embedding(count, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, 2, stride=2),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            HeadMlp(dim, dim, dim // 8, 3) for _ in range(count)
        )
        self.iou_prediction_head = HeadMlp(dim, iou_head_hidden_dim, count, iou_head_depth)

    def forward(
        self,
        image: Tensor,
        positions: Tensor,
        sparse: Tensor,
        dense: Tensor,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, M, 4 h, 4 w) and predicted IoU (B, M) of B prompts.

        M is 1, or with `multimask` the number of masks for several meanings.

        Args:
            image: Map (B, C, h, w) of each prompt's image, or (1, C, h, w) of the image of all.
            positions: Of the map's places, (1, C, h, w).
            sparse: Tokens of the prompts, (B, T, C).
            dense: Maps of the prompts, (B, C, h, w).
            multimask: Several meanings.
        """
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(sparse), -1, -1), sparse], 1)
        found, places = self.transformer(image + dense, positions, tokens)
        places = places.transpose(1, 2).unflatten(2, image.shape[-2:])
        fine = self.output_upscaling(places)
        chosen = slice(1, None) if multimask else slice(0, 1)
        heads = self.output_hypernetworks_mlps[chosen]
        kinds = found[:, 1 : len(own)][:, chosen]
        weights = torch.stack([head(kinds[:, n]) for n, head in enumerate(heads)], 1)
        masks = torch.einsum("bmc,bchw->bmhw", weights, fine)
        return masks, self.iou_prediction_head(found[:, 0])[:, chosen]
