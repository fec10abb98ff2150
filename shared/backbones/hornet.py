"""HorNet: recursive gated convolution.

Rao et al. 2022, "HorNet: Efficient High-Order Spatial Interactions with Recursive Gated
Convolutions", arXiv 2207.14284. The authors' code and weights are MIT; this code is our own, made
from the paper, and has the authors' keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.backbones.base import (
    ImageClassifier,
    Pyramid,
    PyramidBackbone,
    Stage,
    drop_path_rates,
    initialise,
)
from crossband.shared.errors import ConfigError
from crossband.shared.kernels.linear import Linear
from crossband.shared.layers.drop_path import DropPath
from crossband.shared.layers.layer_norm import LayerNorm2d

__all__ = ["GlobalLocalFilter", "GnConv", "HorNet", "HorNetClassifier"]

FilterSize = Sequence[int] | None


class GlobalLocalFilter(nn.Module):
    """Half of the channels through a 3x3 convolution, half through a filter in frequency.

    The filter multiplies the half-plane spectrum; for maps of another size than it was made for
    it is interpolated (bilinear, corners aligned), as the authors do. Spectra are float32 in any
    precision.

    Args:
        channels: S, even.
        size: (h, w) of the half-plane spectrum, `w = W // 2 + 1` for maps W wide.
    """

    def __init__(self, channels: int, size: Sequence[int]) -> None:
        """Build the norms, the convolution and the filter."""
        super().__init__()
        half = channels // 2
        self.pre_norm = LayerNorm2d(channels)
        self.post_norm = LayerNorm2d(channels)
        self.dw = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        # Real and imaginary parts, since half precision and weight averages know no complex.
        self.complex_weight = nn.Parameter(torch.empty(half, *size, 2))
        nn.init.trunc_normal_(self.complex_weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, S, H, W) to the same shape."""
        x = self.pre_norm(x)
        near, far = x.chunk(2, dim=1)
        near, size = self.dw(near), far.shape[-2:]
        spectrum = torch.fft.rfft2(far.float(), norm="ortho")
        weight = resize_filter(self.complex_weight.float(), spectrum.shape[-2:])
        spectrum = spectrum * torch.view_as_complex(weight.contiguous())
        far = torch.fft.irfft2(spectrum, s=size, norm="ortho").to(near.dtype)
        x = torch.stack((near, far), dim=2).flatten(1, 2)  # channels interleaved
        return self.post_norm(x)


class GnConv(nn.Module):
    """Recursive gated convolution of order n (equations 3.1 to 3.3).

    Projects to n groups of channels, mixes places in all but the first, and multiplies the
    groups in turn: `p = pw(p) * q_i`, each twice as wide as the one before.

    Args:
        dim: C, a multiple of `2 ** (order - 1)`.
        order: n.
        scale: What the mixed groups are multiplied by; 1/3 in the authors' code.
        filter_size: Size of a `GlobalLocalFilter` to mix with; None: a 7x7 convolution.

    Raises:
        ConfigError: channels that cannot be halved so often.
    """

    def __init__(
        self, dim: int, order: int = 5, scale: float = 1 / 3, filter_size: FilterSize = None
    ) -> None:
        """Build the projections and the mixer."""
        super().__init__()
        if dim % 2 ** (order - 1):
            raise ConfigError(
                f"gnConv of order {order} cannot halve {dim} channels {order - 1} times: give a "
                f"multiple of {2 ** (order - 1)}."
            )
        self.scale = scale
        self.dims = [dim // 2**i for i in reversed(range(order))]
        mixed = sum(self.dims)
        self.proj_in = nn.Conv2d(dim, 2 * dim, 1)
        self.dwconv = (
            nn.Conv2d(mixed, mixed, 7, padding=3, groups=mixed)
            if filter_size is None
            else GlobalLocalFilter(mixed, filter_size)
        )
        self.pws = nn.ModuleList(
            nn.Conv2d(narrow, wide, 1)
            for narrow, wide in zip(self.dims[:-1], self.dims[1:], strict=True)
        )
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        p, q = self.proj_in(x).split((self.dims[0], sum(self.dims)), dim=1)
        first, *others = (self.dwconv(q) * self.scale).split(self.dims, dim=1)
        p = p * first
        for project, group in zip(self.pws, others, strict=True):
            p = project(p) * group
        return self.proj_out(p)


class HorNetBlock(nn.Module):
    """gnConv and a two-layer perceptron, each after a norm and with a layer scale."""

    def __init__(
        self,
        dim: int,
        order: int,
        scale: float,
        filter_size: FilterSize,
        drop_path: float,
        layer_scale_init_value: float,
    ) -> None:
        """Build one block of `dim` channels."""
        super().__init__()
        self.norm1 = LayerNorm2d(dim)
        self.gnconv = GnConv(dim, order, scale, filter_size)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = Linear(dim, 4 * dim)
        self.pwconv2 = Linear(4 * dim, dim)
        self.gamma1 = nn.Parameter(torch.full((dim,), layer_scale_init_value))
        self.gamma2 = nn.Parameter(torch.full((dim,), layer_scale_init_value))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        x = x + self.drop_path(self.gamma1[:, None, None] * self.gnconv(self.norm1(x)))
        y = self.norm2(x.permute(0, 2, 3, 1))
        y = self.gamma2 * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + self.drop_path(y.permute(0, 3, 1, 2))


class HorNetTrunk(Pyramid):
    """Stem and stages of HorNet.

    Args:
        in_chans: Channels of the image.
        depths: Blocks of each stage.
        base_dim: Channels of the first stage; each stage has twice as many as the one before.
        orders: Order n of the gnConv of each stage.
        scale: See `GnConv`.
        filter_sizes: Of each stage, the spectrum (h, w) of its global filters, or None for 7x7
            convolutions; the GF variants have (14, 8) and (7, 4) in stages 2 and 3 at 224 px.
        drop_path_rate: Of the last block; that of the others rises from 0 linearly.
        layer_scale_init_value: What the layer scales start at.
    """

    min_size = 32
    first_conv = "downsample_layers.0.0"
    stem_pattern = r"downsample_layers\.0\."
    block_pattern = r"stages\.(\d+)\.(\d+)"
    entry_pattern = r"downsample_layers\.(\d+)"

    def __init__(
        self,
        *,
        in_chans: int = 3,
        depths: Sequence[int] = (2, 3, 18, 2),
        base_dim: int = 64,
        orders: Sequence[int] = (2, 3, 4, 5),
        scale: float = 1 / 3,
        filter_sizes: Sequence[FilterSize] = (None, None, None, None),
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
    ) -> None:
        """Build and initialise the stages; parameters carry the authors' names."""
        super().__init__()
        dims = [base_dim * 2**i for i in range(4)]
        stem = nn.Sequential(nn.Conv2d(in_chans, dims[0], 4, stride=4), LayerNorm2d(dims[0]))
        self.downsample_layers = nn.ModuleList([stem])
        for narrow, wide in zip(dims[:-1], dims[1:], strict=True):
            down = nn.Sequential(LayerNorm2d(narrow), nn.Conv2d(narrow, wide, 2, stride=2))
            self.downsample_layers.append(down)
        rates = drop_path_rates(drop_path_rate, depths)
        self.stages = nn.ModuleList(
            Stage(
                *(
                    HorNetBlock(
                        dims[i], orders[i], scale, filter_sizes[i], rate, layer_scale_init_value
                    )
                    for rate in rates[i]
                )
            )
            for i in range(4)
        )
        self.apply(initialise)
        self._describe(dims, depths, in_chans, "stages.{}")

    def forward_stage(self, index: int, x: Tensor) -> Tensor:
        """Map the image or a stage's map to the next stage's map (B, C, H, W)."""
        return self.stages[index](self.downsample_layers[index](x))

    def _drop_stages_after(self, last: int) -> None:
        self.downsample_layers = self.downsample_layers[: last + 1]
        self.stages = self.stages[: last + 1]

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Interpolate global filters that were made for another image size to this one's."""
        own, adapted = self.state_dict(), dict(state)
        for key, value in state.items():
            if key.endswith(".complex_weight") and key in own and value.dim() == 4:
                adapted[key] = resize_filter(value, own[key].shape[1:3])
        return adapted


class HorNet(PyramidBackbone, HorNetTrunk):
    """HorNet as a backbone: maps at strides 4, 8, 16, 32, each normalised by `norm{i}`.

    Takes `out_indices` of `PyramidBackbone` and the arguments of `HorNetTrunk`.
    """


class HorNetClassifier(ImageClassifier, HorNetTrunk):
    """HorNet as an image classifier.

    Takes the arguments of `ImageClassifier` and `HorNetTrunk`.
    """


def resize_filter(weight: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate filters (S, h, w, 2) to (S, *size, 2), bilinear with aligned corners."""
    if tuple(weight.shape[1:3]) == tuple(size):
        return weight
    parts = weight.permute(3, 0, 1, 2)
    parts = F.interpolate(parts, tuple(size), mode="bilinear", align_corners=True)
    return parts.permute(1, 2, 3, 0)
