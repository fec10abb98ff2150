"""Heads for MultiMAE's encoder in use (Bachmann et al. 2022), and the whole network.

Tokens of the main kinds of maps, side by side on the channels, become dense maps: by ConvNeXt
blocks, by a mask transformer (Segmenter) or by the fusion of several layers (DPT).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.backbones.vit import Block
from crossband.shared.errors import ConfigError
from crossband.shared.kernels.linear import Linear
from crossband.shared.pretraining.multimae import MultiModalEncoder
from crossband.shared.pretraining.multimae_adapters import initialise, token

_EPS = 1e-6


class Head(nn.Module):
    """Makes a map of channels from the outputs of some encoder blocks.

    Attributes:
        layers: Blocks whose outputs are wanted; negative numbers count from the end.
    """

    layers: tuple[int, ...] = (-1,)

    def forward(self, layers: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Map tokens (B, N, D) of every layer to (B, C, rows k, columns k), k of the head."""
        raise NotImplementedError


class ConvNeXtBlock(nn.Module):
    """A ConvNeXt block without layer scale (Liu et al. 2022)."""

    def __init__(self, dim: int, norm_eps: float = _EPS) -> None:
        """Build the layers."""
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.pwconv1, self.act, self.pwconv2 = Linear(dim, 4 * dim), nn.GELU(), Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return x + self.pwconv2(self.act(self.pwconv1(y))).permute(0, 3, 1, 2)


class ConvNeXtHead(Head):
    """Spreads every token over several places, then mixes them by ConvNeXt blocks.

    Args:
        in_dim: Channels of the tokens.
        channels: Of the result.
        embed_dim: Channels over all places of a token.
        preds_per_patch: Places per token, a square number.
        depth: Blocks.
        norm_eps: Of the norms.

    Raises:
        ConfigError: places that are no square, or that do not divide the channels.
    """

    def __init__(
        self,
        in_dim: int,
        channels: int,
        *,
        embed_dim: int = 6144,
        preds_per_patch: int = 16,
        depth: int = 4,
        norm_eps: float = _EPS,
    ) -> None:
        """Build the layers."""
        super().__init__()
        self.side = round(preds_per_patch**0.5)
        if self.side**2 != preds_per_patch or embed_dim % preds_per_patch:
            raise ConfigError(
                f"{preds_per_patch} places per patch must be a square number that divides the "
                f"{embed_dim} channels."
            )
        dim = embed_dim // preds_per_patch
        self.proj_dec = Linear(in_dim, embed_dim)
        self.blocks = nn.Sequential(*(ConvNeXtBlock(dim, norm_eps) for _ in range(depth)))
        self.final_layer = nn.Conv2d(dim, channels, 1)

    def forward(self, layers: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Map tokens (B, N, D) of the last layer to (B, C, rows side, columns side)."""
        cut = self.proj_dec(layers[0]).unflatten(2, (self.side, self.side, -1)).unflatten(1, grid)
        x = cut.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
        return self.final_layer(self.blocks(x))


class SegmenterHead(Head):
    """Compares tokens with learned tokens of the classes (Strudel et al. 2021).

    Args:
        in_dim: Channels of the tokens.
        channels: Classes.
        embed_dim: Channels of the head.
        depth: Blocks.
        num_heads: Of a block.
        mlp_ratio: Hidden channels of the MLPs over `embed_dim`.
        norm_eps: Of all norms.
    """

    def __init__(
        self,
        in_dim: int,
        channels: int,
        *,
        embed_dim: int = 768,
        depth: int = 2,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        norm_eps: float = _EPS,
    ) -> None:
        """Build the layers."""
        super().__init__()
        self.proj_dec = Linear(in_dim, embed_dim)
        self.cls_emb = token(channels, embed_dim)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio=mlp_ratio, norm_eps=norm_eps)
            for _ in range(depth)
        )
        self.decoder_norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.patch_proj = Linear(embed_dim, embed_dim, bias=False)
        self.classes_proj = Linear(embed_dim, embed_dim, bias=False)
        self.mask_norm = nn.LayerNorm(channels, eps=norm_eps)

    def forward(self, layers: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Map tokens (B, N, D) of the last layer to (B, C, rows, columns)."""
        x = self.proj_dec(layers[0])
        x = torch.cat([x, self.cls_emb.to(x).expand(len(x), -1, -1)], dim=1)
        for block in self.blocks:
            x = block(x)
        patches, classes = self.decoder_norm(x).tensor_split([grid[0] * grid[1]], dim=1)
        patches = F.normalize(self.patch_proj(patches), dim=2)
        classes = F.normalize(self.classes_proj(classes), dim=2)
        masks = self.mask_norm(patches @ classes.transpose(1, 2))
        return masks.transpose(1, 2).unflatten(2, grid)


class ResidualConv(nn.Module):
    """Two convolutions after ReLUs, added to the input; which stays as it was."""

    def __init__(self, dim: int, use_bn: bool) -> None:
        """Build the layers."""
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(dim, dim, 3, padding=1, bias=not use_bn) for _ in "12")
        self.bn1, self.bn2 = (nn.BatchNorm2d(dim) if use_bn else nn.Identity() for _ in "12")

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        y = self.bn1(self.conv1(F.relu(x)))
        return x + self.bn2(self.conv2(F.relu(y)))


class Fusion(nn.Module):
    """Adds a finer map to a coarser one and doubles the resolution (RefineNet, DPT)."""

    def __init__(self, dim: int, use_bn: bool) -> None:
        """Build the layers."""
        super().__init__()
        self.resConfUnit1, self.resConfUnit2 = (ResidualConv(dim, use_bn) for _ in "12")
        self.out_conv = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, skip: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Map (B, C, H, W), and a map to add, to (B, C, *size)."""
        if skip is not None:
            x = x + self.resConfUnit1(skip)
        x = F.interpolate(self.resConfUnit2(x), size, mode="bilinear", align_corners=True)
        return self.out_conv(x)


class Double(nn.Module):
    """Doubles the resolution, corner on corner."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, 2 H, 2 W)."""
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class DPTHead(Head):
    """Fuses four layers of the encoder at four resolutions (Ranftl et al. 2021).

    Args:
        in_dim: Channels of the tokens.
        channels: Of the result.
        hooks: Encoder blocks, from 0.
        layer_dims: Channels of the four maps.
        feature_dim: Channels of their fusion.
        head_type: Last layers: `regression` (depth) or `semseg`.
        use_bn: Normalise batches in the fusion.
    """

    def __init__(
        self,
        in_dim: int,
        channels: int,
        *,
        hooks: Sequence[int] = (2, 5, 8, 11),
        layer_dims: Sequence[int] = (96, 192, 384, 768),
        feature_dim: int = 256,
        head_type: Literal["regression", "semseg"] = "regression",
        use_bn: bool = False,
    ) -> None:
        """Build the layers.

        Raises:
            ConfigError: another number of layers than four, or an unknown head.
        """
        super().__init__()
        if len(hooks) != 4 or len(layer_dims) != 4 or head_type not in ("regression", "semseg"):
            raise ConfigError(
                f"A DPT head of blocks {list(hooks)}, channels {list(layer_dims)} and type "
                f"{head_type!r} cannot be: give four blocks, four widths, and regression or semseg."
            )
        self.layers = tuple(hooks)
        a, b, c, d = layer_dims
        scalings = (nn.ConvTranspose2d(a, a, 4, 4), nn.ConvTranspose2d(b, b, 2, 2), None)
        scalings = (*scalings, nn.Conv2d(d, d, 3, 2, 1))
        self.act_postprocess = nn.ModuleList(
            nn.Sequential(nn.Conv2d(in_dim, dim, 1), *([scaling] if scaling else []))
            for dim, scaling in zip((a, b, c, d), scalings, strict=True)
        )
        self.scratch = nn.Module()
        self.scratch.layer_rn = nn.ModuleList(
            nn.Conv2d(dim, feature_dim, 3, padding=1, bias=False) for dim in layer_dims
        )
        for number in range(1, 5):
            self.scratch.add_module(f"refinenet{number}", Fusion(feature_dim, use_bn))
        if head_type == "regression":
            self.head = nn.Sequential(
                nn.Conv2d(feature_dim, feature_dim // 2, 3, padding=1),
                Double(),
                nn.Conv2d(feature_dim // 2, 32, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(32, channels, 1),
            )
        else:
            self.head = nn.Sequential(
                nn.Conv2d(feature_dim, feature_dim, 3, padding=1, bias=False),
                nn.BatchNorm2d(feature_dim) if use_bn else nn.Identity(),
                nn.ReLU(),
                nn.Dropout(0.1),
                nn.Conv2d(feature_dim, channels, 1),
                Double(),
            )

    def forward(self, layers: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Map tokens (B, N, D) of four layers to (B, C, 16 rows, 16 columns)."""
        maps = []
        for x, scale, project in zip(
            layers, self.act_postprocess, self.scratch.layer_rn, strict=True
        ):
            maps.append(project(scale(x.transpose(1, 2).unflatten(2, grid))))
        x = maps[3]
        for number in (4, 3, 2, 1):
            finer = maps[number - 2] if number > 1 else None
            size = (2 * x.shape[-2], 2 * x.shape[-1])
            if finer is not None:  # an odd map was halved and rounded up
                size = (finer.shape[-2], finer.shape[-1])
            skip = maps[number - 1] if number < 4 else None
            x = getattr(self.scratch, f"refinenet{number}")(x, skip, size)
        return self.head(x)


HEADS: dict[str, type[Head]] = {
    "convnext": ConvNeXtHead,
    "segmenter": SegmenterHead,
    "dpt": DPTHead,
}


class MultiViT(MultiModalEncoder):
    """MultiMAE's encoder on whole maps, with a head: segmentation or regression, place by place.

    Args:
        num_classes: Channels of the result.
        head: `convnext`, `segmenter` or `dpt`.
        head_options: Arguments of the head.
        main_tasks: Modalities whose tokens the head gets; None: all inputs. They must be there when
            the network is used, others may be missing.
        output_name: Of the head in the state dict.
        encoder: Arguments of `MultiModalEncoder`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        head: str = "convnext",
        head_options: Mapping[str, Any] | None = None,
        main_tasks: Sequence[str] | None = None,
        output_name: str = "semseg",
        **encoder: Any,
    ) -> None:
        """Build encoder and head.

        Raises:
            ConfigError: an unknown head, main task or block.
        """
        super().__init__(**encoder)
        if head not in HEADS:
            raise ConfigError(f"There is no head {head!r}: choose from {', '.join(HEADS)}.")
        self.main_tasks = tuple(self.input_adapters if main_tasks is None else main_tasks)
        if unknown := set(self.main_tasks) - set(self.input_adapters):
            raise ConfigError(
                f"The main tasks {', '.join(sorted(unknown))} are no inputs: choose from "
                f"{', '.join(self.input_adapters)}."
            )
        in_dim = self.embed_dim * len(self.main_tasks)
        made = HEADS[head](in_dim, num_classes, **(head_options or {}))
        depth = len(self.encoder)
        if not all(-depth <= block < depth for block in made.layers):
            raise ConfigError(
                f"The head wants blocks {list(made.layers)} of {depth}: give others as hooks."
            )
        self.output_name = output_name
        self.output_adapters = nn.ModuleDict({output_name: made})
        initialise(self)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Map modality -> (B, C, H, W) to (B, num_classes, H, W) at the image's resolution.

        Raises:
            ConfigError: a main modality is missing.
        """
        if missing := [name for name in self.main_tasks if name not in inputs]:
            raise ConfigError(f"The head needs {', '.join(missing)}: give all its main tasks.")
        tokens, grid = self.tokenise(inputs)
        head: Any = self.output_adapters[self.output_name]
        wanted = [block % len(self.encoder) for block in head.layers]
        _, found = self.encode(torch.cat(list(tokens.values()), dim=1), wanted)
        starts, start = {}, 0
        for name, x in tokens.items():
            starts[name], start = start, start + x.shape[1]
        count = grid[0] * grid[1]
        layers = [
            torch.cat([found[i][:, starts[n] : starts[n] + count] for n in self.main_tasks], dim=-1)
            for i in wanted
        ]
        x = head(layers, grid)
        size = (grid[0] * self.patch_size, grid[1] * self.patch_size)
        if x.shape[-2:] == size:
            return x
        return F.interpolate(x, size, mode="bilinear", align_corners=False)
