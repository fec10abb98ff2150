"""UniRepLKNet: large depth-wise kernels that re-parameterise.

Ding et al. 2024, "UniRepLKNet: A Universal Perception Large-Kernel ConvNet for Audio, Video,
Point Cloud, Time-Series and Image Recognition", arXiv 2311.15599. The authors' code and weights
are Apache-2.0; this code is our own, made from the paper, and has the authors' keys.

A network is trained with parallel dilated branches and batch norms; for use these fold, exactly,
into one convolution a block. `reparameterize` folds a network, `merge_state` a file of weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

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
from crossband.shared.layers.grn import GRN
from crossband.shared.layers.layer_norm import LayerNorm2d
from crossband.shared.layers.squeeze_excite import SqueezeExcite

__all__ = [
    "DilatedReparamBlock",
    "UniRepLKNet",
    "UniRepLKNetBlock",
    "UniRepLKNetClassifier",
    "merge_state",
    "reparameterize",
]

# Kernel size -> (kernel, dilation) of the parallel branches, as published.
BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 2), (3, 3)),
    5: ((3, 1), (3, 2)),
}
_SMALLEST_LARGE = 7  # smaller kernels have no branches
BN_EPS = 1e-5


class DilatedReparamBlock(nn.Module):
    """A large depth-wise convolution with dilated small ones beside it (section 3.2, figure 3).

    Each convolution has its own batch norm; their sum is one convolution of the large size.

    Args:
        channels: C.
        kernel_size: K, odd.
        branches: (kernel, dilation) of the branches; None: the published ones.
        deploy: Build the merged form, one convolution with a bias.

    Raises:
        ConfigError: no branches are published for this size, or one reaches beyond the kernel.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        branches: Sequence[tuple[int, int]] | None = None,
        deploy: bool = False,
    ) -> None:
        """Build the training or the merged form."""
        super().__init__()
        if branches is None and kernel_size not in BRANCHES:
            raise ConfigError(
                f"no branches are published for kernels of {kernel_size}: give branches, or one "
                f"of {', '.join(map(str, sorted(BRANCHES)))}."
            )
        self.branches = tuple(BRANCHES[kernel_size] if branches is None else branches)
        for small, dilation in self.branches:
            if dilation * (small - 1) + 1 > kernel_size:
                raise ConfigError(
                    f"a branch of kernel {small} and dilation {dilation} reaches beyond the "
                    f"kernel of {kernel_size}: take a smaller dilation."
                )
        self.lk_origin = _depthwise(channels, kernel_size, bias=deploy)
        if deploy:
            return
        self.origin_bn = nn.BatchNorm2d(channels, eps=BN_EPS)
        for small, dilation in self.branches:
            self.add_module(f"dil_conv_k{small}_{dilation}", _depthwise(channels, small, dilation))
            self.add_module(f"dil_bn_k{small}_{dilation}", nn.BatchNorm2d(channels, eps=BN_EPS))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        y = self.lk_origin(x)
        if not hasattr(self, "origin_bn"):
            return y
        y = self.origin_bn(y)
        for small, dilation in self.branches:
            conv = self.get_submodule(f"dil_conv_k{small}_{dilation}")
            y = y + self.get_submodule(f"dil_bn_k{small}_{dilation}")(conv(x))
        return y

    def reparameterize(self) -> None:
        """Replace all branches by the one convolution that equals them in eval mode."""
        if hasattr(self, "origin_bn"):
            merged = merge_state(self.state_dict())
            self.lk_origin = _with_bias(self.lk_origin, merged, "lk_origin.")
            del self.origin_bn
            for small, dilation in self.branches:
                delattr(self, f"dil_conv_k{small}_{dilation}")
                delattr(self, f"dil_bn_k{small}_{dilation}")


class UniRepLKNetBlock(nn.Module):
    """Depth-wise convolution, squeeze-excite and a perceptron with GRN (figure 2).

    Args:
        dim: C.
        kernel_size: Of the depth-wise convolution; from 7 on with dilated branches, 0 for none.
        drop_path: Probability of leaving the block out, per sample, in training.
        layer_scale_init_value: What the layer scale starts at; None or 0: there is none.
        deploy: Build the merged form.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        drop_path: float = 0.0,
        layer_scale_init_value: float | None = 1e-6,
        deploy: bool = False,
    ) -> None:
        """Build one block of `dim` channels."""
        super().__init__()
        self.dwconv: nn.Module = nn.Identity()
        if kernel_size >= _SMALLEST_LARGE:
            self.dwconv = DilatedReparamBlock(dim, kernel_size, deploy=deploy)
        elif kernel_size:
            self.dwconv = _depthwise(dim, kernel_size, bias=deploy)
        folded = deploy or not kernel_size
        self.norm = nn.Identity() if folded else nn.BatchNorm2d(dim, eps=BN_EPS)
        self.se = SqueezeExcite(dim, dim // 4)
        # Numbers as the authors count them: 0 is a change of layout.
        self.pwconv1 = nn.Sequential(nn.Identity(), Linear(dim, 4 * dim))
        self.act = nn.Sequential(nn.GELU(), GRN(4 * dim, bias=not deploy))
        self.pwconv2 = nn.Sequential(Linear(4 * dim, dim, bias=deploy), _ToChannelsFirst())
        if not deploy:
            self.pwconv2.append(nn.BatchNorm2d(dim, eps=BN_EPS))
        scaled = bool(layer_scale_init_value) and not deploy
        self.gamma = nn.Parameter(torch.full((dim,), layer_scale_init_value)) if scaled else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        y = self.se(self.norm(self.dwconv(x)))
        y = self.pwconv2(self.act(self.pwconv1(y.permute(0, 2, 3, 1))))
        if self.gamma is not None:
            y = self.gamma[:, None, None] * y
        return x + self.drop_path(y)

    def reparameterize(self) -> None:
        """Fold branches, batch norms, GRN's shift and the layer scale, exactly in eval mode."""
        if len(self.pwconv2) < 3:
            return
        merged = merge_state(self.state_dict())
        if isinstance(self.dwconv, DilatedReparamBlock):
            self.dwconv.reparameterize()
            conv = self.dwconv.lk_origin
            conv.load_state_dict({k: merged[f"dwconv.lk_origin.{k}"] for k in conv.state_dict()})
        elif isinstance(self.dwconv, nn.Conv2d):
            self.dwconv = _with_bias(self.dwconv, merged, "dwconv.")
        self.norm, self.gamma, self.act[1].beta = nn.Identity(), None, None
        old = self.pwconv2[0]
        linear = Linear(old.in_features, old.out_features)
        linear = linear.to(old.weight.device, old.weight.dtype)
        linear.load_state_dict({k: merged[f"pwconv2.0.{k}"] for k in ("weight", "bias")})
        self.pwconv2 = nn.Sequential(linear, self.pwconv2[1]).train(self.training)


class UniRepLKNetTrunk(Pyramid):
    """Stem and stages of UniRepLKNet.

    Args:
        in_chans: Channels of the image.
        depths: Blocks of each stage.
        dims: Channels of each stage.
        kernel_sizes: Of each block of each stage; None: 3 in the first stage, 13 elsewhere.
        drop_path_rate: Of the last block; that of the others rises from 0 linearly.
        layer_scale_init_value: What the layer scales start at; None or 0: there are none.
        deploy: Build the merged form; `adapt_state` merges weights in the training layout.

    Raises:
        ConfigError: as many kernel sizes as blocks are needed.
    """

    first_conv = "downsample_layers.0.0"
    stem_pattern = r"downsample_layers\.0\."
    block_pattern = r"stages\.(\d+)\.(\d+)"
    entry_pattern = r"downsample_layers\.(\d+)"
    blocks_per_layer = 3

    def __init__(
        self,
        *,
        in_chans: int = 3,
        depths: Sequence[int] = (3, 3, 27, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        kernel_sizes: Sequence[Sequence[int]] | None = None,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = 1e-6,
        deploy: bool = False,
    ) -> None:
        """Build and initialise the stages; parameters carry the authors' names."""
        super().__init__()
        if kernel_sizes is None:
            kernel_sizes = [[13 if i else 3] * depth for i, depth in enumerate(depths)]
        if [len(sizes) for sizes in kernel_sizes] != list(depths):
            raise ConfigError(
                f"kernel_sizes has {[len(sizes) for sizes in kernel_sizes]} entries for stages of "
                f"{list(depths)} blocks: give one size a block."
            )
        stem = nn.Sequential(
            nn.Conv2d(in_chans, dims[0] // 2, 3, stride=2, padding=1),
            LayerNorm2d(dims[0] // 2),
            nn.GELU(),
            nn.Conv2d(dims[0] // 2, dims[0], 3, stride=2, padding=1),
            LayerNorm2d(dims[0]),
        )
        self.downsample_layers = nn.ModuleList([stem])
        for narrow, wide in zip(dims[:-1], dims[1:], strict=True):
            conv = nn.Conv2d(narrow, wide, 3, stride=2, padding=1)
            self.downsample_layers.append(nn.Sequential(conv, LayerNorm2d(wide)))
        rates = drop_path_rates(drop_path_rate, depths)
        self.stages = nn.ModuleList(
            Stage(
                *(
                    UniRepLKNetBlock(dim, size, rate, layer_scale_init_value, deploy)
                    for size, rate in zip(sizes, stage_rates, strict=True)
                )
            )
            for dim, sizes, stage_rates in zip(dims, kernel_sizes, rates, strict=True)
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
        """Merge weights in the training layout if this network has the merged one."""
        merged = not any(".pwconv2.2." in key for key in self.state_dict())
        return merge_state(state) if merged else dict(state)


class UniRepLKNet(PyramidBackbone, UniRepLKNetTrunk):
    """UniRepLKNet as a backbone: maps at strides 4, 8, 16, 32, each normalised by `norm{i}`.

    Takes `out_indices` of `PyramidBackbone` and the arguments of `UniRepLKNetTrunk`.
    """


class UniRepLKNetClassifier(ImageClassifier, UniRepLKNetTrunk):
    """UniRepLKNet as an image classifier.

    Takes the arguments of `ImageClassifier` and `UniRepLKNetTrunk`.
    """


def reparameterize(model: nn.Module) -> nn.Module:
    """Fold every block of a network in place; return it in eval mode.

    Outputs stay what they were in eval mode; training the merged form is another matter.
    """
    for module in list(model.modules()):
        if isinstance(module, (UniRepLKNetBlock, DilatedReparamBlock)):
            module.reparameterize()
    return model.eval()


def merge_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights in the training layout in the merged layout; merged ones as they are.

    Takes a state dict of a network, of a `UniRepLKNetBlock` or of a `DilatedReparamBlock`. The
    arithmetic is float64; results have the dtype of the weights they come from.
    """
    merged = dict(state)
    dtype = next((v.dtype for v in state.values() if v.is_floating_point()), torch.float32)
    for prefix in _prefixes(state, r"(.*?)origin_bn\.running_var$"):
        _merge_branches(merged, prefix)
    for prefix in _prefixes(state, r"(.*?)pwconv2\.2\.running_var$"):
        _merge_block(merged, prefix)
    return {k: v if v is state.get(k) else v.to(dtype) for k, v in merged.items()}


def _prefixes(state: Mapping[str, Tensor], pattern: str) -> list[str]:
    return [found[1] for key in state if (found := re.match(pattern, key))]


def _merge_branches(state: dict[str, Tensor], prefix: str) -> None:
    """Merge the branches of one `DilatedReparamBlock` in place, to float64."""
    weight = state.pop(f"{prefix}lk_origin.weight").double()
    scale, shift = _scale_and_shift(state, f"{prefix}origin_bn.")
    weight, bias = weight * scale[:, None, None, None], shift
    side = weight.shape[-1]
    for found in [re.match(rf"{re.escape(prefix)}dil_conv_k(\d+)_(\d+)\.", key) for key in state]:
        if found is None:
            continue
        dilation = int(found[2])
        small = state.pop(f"{found[0]}weight").double()
        scale, shift = _scale_and_shift(state, f"{found[0].replace('dil_conv', 'dil_bn')}")
        small, bias = small * scale[:, None, None, None], bias + shift
        # A dilated kernel is a dense one with zeros between its taps.
        first = side // 2 - dilation * (small.shape[-1] // 2)
        stop = side - first
        weight[..., first:stop:dilation, first:stop:dilation] += small
    state[f"{prefix}lk_origin.weight"] = weight
    state[f"{prefix}lk_origin.bias"] = bias


def _merge_block(state: dict[str, Tensor], prefix: str) -> None:
    """Merge what a block has beside the branches in place, to float64."""
    for conv in (f"{prefix}dwconv.lk_origin.", f"{prefix}dwconv."):
        if f"{conv}weight" in state:
            scale, shift = _scale_and_shift(state, f"{prefix}norm.")
            bias = state.get(f"{conv}bias", torch.zeros_like(shift)).double()
            state[f"{conv}weight"] = state[f"{conv}weight"].double() * scale[:, None, None, None]
            state[f"{conv}bias"] = bias * scale + shift
    linear = f"{prefix}pwconv2.0."
    weight = state[f"{linear}weight"].double()
    # The shift of GRN passes through the linear layer that follows it.
    bias = weight @ state.pop(f"{prefix}act.1.beta").double().flatten()
    scale, shift = _scale_and_shift(state, f"{prefix}pwconv2.2.")
    bias = bias * scale + shift
    if (gamma := state.pop(f"{prefix}gamma", None)) is not None:
        scale, bias = scale * gamma.double(), bias * gamma.double()
    state[f"{linear}weight"] = weight * scale[:, None]
    state[f"{linear}bias"] = bias


def _scale_and_shift(state: dict[str, Tensor], prefix: str) -> tuple[Tensor, Tensor]:
    """Take a batch norm out of a state dict; return it as `scale x + shift`, float64."""
    state.pop(f"{prefix}num_batches_tracked", None)
    weight, bias, mean, variance = (
        state.pop(prefix + name).double()
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / torch.sqrt(variance + BN_EPS)
    return scale, bias - mean * scale


def _depthwise(channels: int, kernel_size: int, dilation: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(
        channels,
        channels,
        kernel_size,
        padding=dilation * (kernel_size // 2),
        dilation=dilation,
        groups=channels,
        bias=bias,
    )


def _with_bias(conv: nn.Conv2d, state: Mapping[str, Tensor], prefix: str) -> nn.Conv2d:
    """Return a depth-wise convolution like `conv` with the weight and bias of a state dict."""
    new = _depthwise(conv.in_channels, conv.kernel_size[0], bias=True)
    new = new.to(conv.weight.device, conv.weight.dtype).train(conv.training)
    new.load_state_dict({key: state[prefix + key] for key in ("weight", "bias")})
    return new


class _ToChannelsFirst(nn.Module):
    """Permutes (B, H, W, C) to (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)
