"""A U-Net whose deepest level is a ViT, after TransUNet (Chen et al. 2021) and UNETR.

Convolutions see what is finer than a patch, the ViT what is larger than their field. The ViT keeps
the size of image that it was pre-trained on, whatever the resolution of the convolutions is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.backbones.base import AroundBackbone
from crossband.shared.backbones.sam import SAMEncoder
from crossband.shared.errors import ConfigError
from crossband.shared.heads.vit_segmentor import SegmentationViT
from crossband.shared.layers.resize import resize


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with instance norms and ReLUs, and a residual path."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        """Build the layers; the first convolution has the stride."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.InstanceNorm2d(out_channels, affine=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.InstanceNorm2d(out_channels, affine=True)
        same = in_channels == out_channels and stride == 1
        self.path = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, O, H / stride, W / stride)."""
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.path(x), inplace=True)


class MapUNet(AroundBackbone):
    """Convolutions down to a ViT's patches, the ViT's map beside theirs, and up again.

    Args:
        vit: Gives one map (B, D, ceil(H / p), ceil(W / p)) of an image, in a list.
        width: D.
        num_classes: K.
        patch_size: p, side of a patch, `stride` times a power of two.
        in_chans: Channels of the image.
        channels: Of the levels, finest first, from `stride` to the patches.
        stride: Resolution of the finest level: 1 is the image's own, 2 half of it.

    Raises:
        ConfigError: another number of levels than the patches need.
    """

    inner = "vit"

    def __init__(
        self,
        vit: nn.Module,
        width: int,
        *,
        num_classes: int,
        patch_size: int,
        in_chans: int,
        channels: Sequence[int],
        stride: int,
    ) -> None:
        """Build the convolutions around the ViT."""
        super().__init__()
        if stride * 2 ** (len(channels) - 1) != patch_size:
            raise ConfigError(
                f"{len(channels)} levels from a stride of {stride} do not end at patches of "
                f"{patch_size} pixels: give as many channels as levels, as 16 32 64 128 for a "
                "stride of 2 and patches of 16."
            )
        self.num_classes, self.stride, self.patch_size = num_classes, stride, patch_size
        self.vit = vit
        widths = [in_chans, *channels]
        self.downs = nn.ModuleList(
            ConvBlock(a, b, 1 if i == 0 else 2)
            for i, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True))
        )
        deepest = channels[-1]
        self.from_vit = nn.Sequential(
            nn.Conv2d(width, deepest, 1, bias=False), nn.InstanceNorm2d(deepest, affine=True)
        )
        self.joint = ConvBlock(2 * deepest, deepest)
        levels = range(len(channels) - 1, 0, -1)
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(channels[i], channels[i - 1], 2, 2) for i in levels
        )
        self.blocks = nn.ModuleList(ConvBlock(2 * channels[i - 1], channels[i - 1]) for i in levels)
        self.head = nn.Conv2d(channels[0], num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, C, H, W) to logits (B, K, H, W)."""
        height, width = image.shape[-2:]
        down, right = -height % self.patch_size, -width % self.patch_size
        image = F.pad(image, (0, right, 0, down)) if down or right else image
        (seen,) = self.vit(image)
        x = F.avg_pool2d(image, self.stride) if self.stride > 1 else image
        maps = []
        for block in self.downs:
            x = block(x)
            maps.append(x)
        x = self.joint(torch.cat([maps.pop(), self.from_vit(seen)], dim=1))
        for up, block in zip(self.ups, self.blocks, strict=True):
            x = block(torch.cat([up(x), maps.pop()], dim=1))
        return resize(self.head(x), image.shape[-2:])[..., :height, :width]

    def extra_repr(self) -> str:
        """Return the resolution."""
        return f"stride={self.stride}, patch_size={self.patch_size}"


class ViTUNet(MapUNet):
    """A plain ViT as the deepest level of a U-Net.

    Args:
        embed_dim: D of the ViT.
        depth: Its blocks.
        num_heads: Its heads.
        num_classes: K.
        img_size: Side that the ViT's table of positions is made for.
        patch_size: Side of a patch, `stride` times a power of two.
        in_chans: Channels of the image.
        channels: Of the levels, finest first, from `stride` to the patches.
        stride: Resolution of the finest level: 1 is the image's own, 2 half of it.
        drop_path_rate: Of the ViT's last block, rising linearly.
        mlp_ratio: Hidden channels of the ViT's MLPs over D.

    Raises:
        ConfigError: another number of levels than the patches need.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        num_classes: int,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        channels: Sequence[int] = (16, 32, 64, 128),
        stride: int = 2,
        drop_path_rate: float = 0.1,
        mlp_ratio: float = 4.0,
    ) -> None:
        """Build the parts."""
        vit = SegmentationViT(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            layer_scale_init=None,
            drop_path_rate=drop_path_rate,
            mlp_ratio=mlp_ratio,
        )
        super().__init__(
            vit,
            embed_dim,
            num_classes=num_classes,
            patch_size=patch_size,
            in_chans=in_chans,
            channels=channels,
            stride=stride,
        )


class SAMUNet(MapUNet):
    """SAM's image encoder, also LVM-Med's ViT, as the deepest level of a U-Net.

    The map after the encoder's neck is taken. The encoder takes images of any size: its tables of
    relative positions are interpolated.

    Args:
        num_classes: K.
        channels: Of the levels, finest first, from `stride` to the patches.
        stride: Resolution of the finest level: 1 is the image's own, 2 half of it.
        encoder: Arguments of `SAMEncoder`, as `{"depth": 12, "use_abs_pos": False}`.

    Raises:
        ConfigError: another number of levels than the patches need.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        channels: Sequence[int] = (16, 32, 64, 128),
        stride: int = 2,
        encoder: Mapping[str, Any] | None = None,
    ) -> None:
        """Build the parts."""
        vit = SAMEncoder(**(encoder or {}))
        super().__init__(
            vit,
            vit.out_channels[0],
            num_classes=num_classes,
            patch_size=vit.strides[0],
            in_chans=vit.patch_embed.proj.in_channels,
            channels=channels,
            stride=stride,
        )
