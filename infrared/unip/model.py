"""UNIP's networks (Zhang et al., ICLR 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from crossband.shared.backbones.vit import ViT, ViTTrunk
from crossband.shared.heads import FCNHead
from crossband.shared.heads.segmentor import Segmentor
from crossband.shared.heads.vit_segmentor import SegmentationViT


class UNIPViT(ViTTrunk):
    """The small ViT of pre-training: keys are timm's without a head.

    Args:
        trunk: Arguments of `ViTTrunk`; positions are MAE's fixed ones, drop path is 0.1 in every
            block, and `last_heads` is the number of heads of the teacher's layer.
    """

    def __init__(self, **trunk: Any) -> None:
        """Build trunk and final norm."""
        defaults = {"pos_embed": "sincos", "drop_path_rate": 0.1, "drop_path_mode": "constant"}
        super().__init__(**(defaults | trunk))
        self.norm = nn.LayerNorm(self.embed_dim, eps=self.norm_eps)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, C, H, W) to normalised tokens (B, 1 + N, D)."""
        return self.norm(self.forward_tokens(image).x)

    def no_weight_decay(self) -> set[str]:
        """Return no name: in pre-training only biases and norms are spared."""
        return set()


class UNIPProbe(Segmentor):
    """A frozen ViT and one 1x1 convolution: linear and layer-wise probing.

    There is no layer scale and no drop path.

    Args:
        embed_dim: D.
        depth: Blocks.
        num_heads: Heads of a block.
        num_classes: K.
        img_size: Side that the table of positions is made for.
        patch_size: Side of a patch.
        in_chans: Channels of the image.
        out_indices: Blocks, from 0, whose maps are joined: one, or as many as wanted.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        num_classes: int,
        img_size: int | tuple[int, int] = 512,
        patch_size: int = 16,
        in_chans: int = 3,
        out_indices: Sequence[int] = (3, 5, 7, 11),
    ) -> None:
        """Build the parts and freeze the ViT."""
        vit = SegmentationViT(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            out_indices=out_indices,
        )
        head = FCNHead(
            vit.out_channels,
            num_classes,
            in_index=range(len(vit.out_channels)),
            num_convs=0,
            dropout=0.0,
        )
        super().__init__(vit.requires_grad_(False), head)

    @property
    def vit(self) -> ViT:
        """Return the part that pre-training gives."""
        return self.backbone  # type: ignore[return-value]
