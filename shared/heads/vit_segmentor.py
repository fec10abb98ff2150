"""A plain ViT that segments: LL-FPN (UNIP, Zhang et al., ICLR 2025) under mmseg's heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.backbones.base import AroundBackbone, Backbone
from crossband.shared.backbones.vit import ViT
from crossband.shared.errors import ConfigError
from crossband.shared.heads import FCNHead, UPerHead
from crossband.shared.heads.segmentor import Segmentor
from crossband.shared.layers.pos_embed import sincos_pos_embed
from crossband.shared.necks import LLFPN
from crossband.shared.necks.spatial_prior import SpatialPrior

_PROJECTION = "patch_embed.proj.weight"


class SegmentationViT(ViT):
    """A ViT under a segmentation head: blocks' outputs as they are; `norm` is kept, not applied.

    Files of pre-training and of UNIP's segmentation models hold a final norm that nothing uses
    here. It is kept so that a file converts both ways, and not trained. Positions start as the
    sine-cosine table and are learned.

    Args:
        arguments: Of `ViT`.
    """

    def __init__(self, **arguments: Any) -> None:
        """Build the trunk."""
        super().__init__(**arguments)
        self.norm = nn.LayerNorm(self.embed_dim, eps=self.norm_eps).requires_grad_(False)
        with torch.no_grad():
            table = sincos_pos_embed(self.embed_dim, self.grid, self.cls_token is not None)
            self.pos_embed.copy_(table)

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Fit positions as `ViT` does, and a projection of one channel to equal ones."""
        state = super().adapt_state(state)
        kernel, channels = state.get(_PROJECTION), self.patch_embed.proj.in_channels
        if kernel is not None and kernel.shape[1] == 1 < channels:
            state[_PROJECTION] = kernel.expand(-1, channels, -1, -1) / channels
        return state

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (B, C, H, W) to maps (B, D, ceil(H / p), ceil(W / p))."""
        found = self.forward_tokens(image, layers=set(self.out_indices))
        return [found.map(block) for block in self.out_indices]


class ViTPyramid(AroundBackbone, Backbone):
    """The ViT and LL-FPN; perhaps with a convolutional branch beside them.

    Args:
        vit: Gives one map (UNIP), or four of as many blocks (its baselines).
        detail: Channels of the branch; 0: none.
        in_chans: Channels of the image.

    Raises:
        ConfigError: a branch beside patches of another size than 16.
    """

    inner = "vit"

    def __init__(self, vit: ViT, detail: int = 0, in_chans: int = 3) -> None:
        """Join the parts."""
        super().__init__()
        if detail and vit.patch_size != 16:  # the branch has strides 4 to 32
            raise ConfigError(
                f"detail={detail} goes with patches of 16 pixels, not of {vit.patch_size}: give "
                "detail=0."
            )
        self.vit = vit
        self.fpn = LLFPN(vit.embed_dim, vit.patch_size)
        self.detail = SpatialPrior(in_chans, detail, vit.embed_dim) if detail else None
        self.out_channels, self.strides = self.fpn.out_channels, self.fpn.strides

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (B, C, H, W) to four maps (B, D, ...) of strides 4 to 32."""
        maps = self.fpn(self.vit(image))
        if self.detail is None:
            return maps
        side = self.vit.patch_size  # the ViT fills up the last patches, so the branch does too
        down, right = -image.shape[-2] % side, -image.shape[-1] % side
        return self.detail(F.pad(image, (0, right, 0, down)), maps)


class ViTSegmentor(Segmentor):
    """ViT, LL-FPN on the last block, UPerHead, and an auxiliary FCNHead on the map of stride 16.

    Args:
        embed_dim: D.
        depth: Blocks.
        num_heads: Heads of a block.
        num_classes: K.
        img_size: Side that the table of positions is made for.
        patch_size: Side of a patch.
        in_chans: Channels of the image.
        out_indices: Blocks, from 0: one (default: the last), or four as the baselines have.
        channels: Of the head; None: D.
        auxiliary: Whether there is an auxiliary head.
        auxiliary_channels: Its channels.
        last_heads: Heads of the last block; None: `num_heads`, as the authors fine-tune.
        layer_scale_init: Start of the layer scale.
        drop_path_rate: Of the last block, rising linearly.
        dropout: Of the heads' features.
        detail: Channels of a convolutional branch beside the ViT; 0: none.
        mlp_ratio: Hidden channels of the MLPs over D.

    Raises:
        ConfigError: another number of blocks than one or four.
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
        out_indices: Sequence[int] | None = None,
        channels: int | None = None,
        auxiliary: bool = True,
        auxiliary_channels: int = 256,
        last_heads: int | None = None,
        layer_scale_init: float | None = 1.0,
        drop_path_rate: float = 0.1,
        dropout: float = 0.1,
        detail: int = 0,
        mlp_ratio: float = 4.0,
    ) -> None:
        """Build the parts."""
        vit = SegmentationViT(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            last_heads=last_heads,
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            layer_scale_init=layer_scale_init,
            drop_path_rate=drop_path_rate,
            out_indices=_one_or_four(out_indices, depth),
            mlp_ratio=mlp_ratio,
        )
        widths = [embed_dim] * 4
        auxiliary_head = None
        if auxiliary:
            auxiliary_head = FCNHead(
                widths, num_classes, in_index=(2,), channels=auxiliary_channels, dropout=dropout
            )
        super().__init__(
            ViTPyramid(vit, detail, in_chans),
            UPerHead(widths, num_classes, channels=channels or embed_dim, dropout=dropout),
            auxiliary_head,
        )

    @property
    def vit(self) -> ViT:
        """Return the part that pre-training gives."""
        return self.backbone.vit  # type: ignore[return-value]


def _one_or_four(indices: Sequence[int] | None, depth: int) -> Sequence[int]:
    indices = (depth - 1,) if indices is None else indices
    if len(indices) not in (1, 4):
        raise ConfigError(f"{len(indices)} blocks: LL-FPN takes maps of one block or of four.")
    return indices
