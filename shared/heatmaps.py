"""Where in an image a classifier looks: attention rollout, gradient heatmaps, overlays.

A heatmap shows where a network takes its evidence from, not whether the evidence is right. In
`tests/shared/test_heatmaps.py` networks learn to find bright and dark blobs; with ViTs the maxima
of `gradient_heatmap` lie in the blob more often than those of rollout, and far more often than
those of Grad-CAM on the last block, whose tokens have already mixed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.backbones.vit import Attention, ViTTrunk
from crossband.shared.errors import ConfigError

_COLOURS = "inferno"
_STRENGTH = 0.6  # of the colours where the heat is largest
_TINY = 1e-12


@torch.no_grad()
def attention_rollout(model: nn.Module, image: Tensor) -> Tensor:
    """Follow attention back to the patches (Abnar and Zuidema 2020, arXiv 2005.00928, eq. 1).

    The maps `A` of every block, averaged over heads, become `(A + I) / 2`, for the residual path;
    their product says how much of a last token comes from each patch. It is the same for all
    outputs. The network runs in evaluation and is left as it was.

    Args:
        model: A network with a plain ViT in it.
        image: (B, C, H, W).

    Returns:
        (B, h, w) shares of the class token, or the mean over patches where these are pooled.

    Raises:
        ConfigError: a network without a plain ViT.
    """
    trunk = _trunk(model)
    if trunk is None:
        raise ConfigError(
            f"{type(model).__name__} has no plain ViT, and so no attention to follow: take "
            "gradient heatmaps."
        )
    captured = _Captured()
    with _evaluation(model), _hooks((attn, captured.attention) for attn in _attentions(trunk)):
        model(image)
    flow = None
    for logits in captured.logits:
        mixing = _residual(logits.float().softmax(-1).mean(1))
        flow = mixing if flow is None else mixing @ flow
    assert flow is not None
    grid = _grid(trunk, image)
    rows = flow[:, :1] if _reads_class_token(trunk) else flow[:, -grid[0] * grid[1] :]
    return _patches(rows.mean(1), grid)


def gradient_heatmap(
    model: nn.Module, image: Tensor, target: int | Tensor, layer: nn.Module | None = None
) -> Tensor:
    """Show which places raise one output.

    CNNs: Grad-CAM (Selvaraju et al. 2017, eq. 1 and 2) on the last feature map.

    Plain ViTs: the output's relevance for the last tokens (activation times gradient of the pooled
    patches, or all of it on the class token) goes back through all blocks by `(A + I) / 2`, where
    `A` is how far attending to a token raises the output: the positive gradient by the attention's
    logits, averaged over heads (after Chefer et al. 2021, arXiv 2103.15679), rows summing to 1.

    The network runs in evaluation; neither gradients nor hooks are left behind, and callers may be
    under `no_grad` or `inference_mode`.

    Args:
        model: Classifier with outputs (B, K).
        image: (B, C, H, W).
        target: Number of the output, one for all or (B,).
        layer: CNNs: module whose map (B, C, h, w) is taken; None: the last one.

    Returns:
        (B, h, w), not negative; 0 everywhere where no place raises the output.

    Raises:
        ConfigError: an output that does not exist, or a network without feature maps.
    """
    trunk = _trunk(model)
    with torch.inference_mode(False), torch.no_grad(), _evaluation(model):
        image = image.detach().clone()  # made outside of inference mode
        if trunk is not None and layer is None:
            return _relevance(model, trunk, image, target)
        return _grad_cam(model, layer or _last_map(model, image), image, target)


def overlay(pixels: np.ndarray, heat: np.ndarray | Tensor) -> np.ndarray:
    """Lay a heatmap over an image.

    Heat runs from its own smallest to its own largest value, so colours of two images cannot be
    compared; where it is smallest, or the same everywhere, the image shows as it is.

    Args:
        pixels: uint8 (H, W), or RGB (H, W, 3).
        heat: (h, w) of any size.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        ConfigError: an image of another kind, or heat that is no map of finite numbers.
    """
    from matplotlib import colormaps

    picture = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (1, 3):
        raise ConfigError(
            f"An overlay takes uint8 (H, W) or (H, W, 3), not {pixels.dtype} {pixels.shape}."
        )
    values = torch.as_tensor(heat).detach().float().cpu()
    if values.dim() != 2 or not bool(torch.isfinite(values).all()):
        raise ConfigError(f"A heatmap is (h, w) of finite numbers, not {tuple(values.shape)}.")
    values = values - values.min()
    values = values / values.max().clamp_min(_TINY)
    values = F.interpolate(values[None, None], pixels.shape[:2], mode="bilinear")[0, 0].numpy()
    colours = colormaps[_COLOURS](values)[..., :3]
    share = _STRENGTH * values[..., None]
    mixed = (1 - share) * picture + share * 255 * colours
    return mixed.round().astype(np.uint8)


class _Captured:
    """What hooks keep of one pass."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []
        self.last: Tensor | None = None

    def attention(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Before an attention: have it keep its logits."""
        return inputs[0], self.logits

    def start_graph(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Before the first block: build the graph from here, whatever is frozen or before it."""
        torch.set_grad_enabled(True)  # the caller's `no_grad` ends it
        return inputs[0].detach().requires_grad_(), *inputs[1:]

    def tokens(self, _: nn.Module, __: Any, output: Tensor) -> None:
        """After the last block: keep its tokens."""
        self.last = output

    def leaf(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        """After a layer: build the graph from its map; a copy goes on, as it may be overwritten."""
        torch.set_grad_enabled(True)
        self.last = output.detach().requires_grad_()
        return self.last.clone()


def _relevance(model: nn.Module, trunk: ViTTrunk, image: Tensor, target: int | Tensor) -> Tensor:
    captured = _Captured()
    blocks = trunk.blocks
    hooks = [(attn, captured.attention) for attn in _attentions(trunk)]
    with _hooks([(blocks[0], captured.start_graph), *hooks], [(blocks[-1], captured.tokens)]):
        score = _chosen(model(image), target)
    last = captured.last
    assert last is not None
    *slopes, slope = torch.autograd.grad(score, [*captured.logits, last])
    rows, columns = grid = _grid(trunk, image)
    relevance = torch.zeros(last.shape[:2], device=last.device)
    if _reads_class_token(trunk):
        relevance[:, 0] = 1
    else:
        gain = (last.detach() * slope).float().sum(-1)
        relevance[:, -rows * columns :] = gain[:, -rows * columns :].clamp_min(0)
    for slope in reversed(slopes):
        raising = slope.float().clamp_min(0).mean(1)
        raising = raising / raising.sum(-1, keepdim=True).clamp_min(_TINY)
        relevance = (relevance[:, None] @ _residual(raising))[:, 0]
    return _patches(relevance, grid)


def _grad_cam(model: nn.Module, layer: nn.Module, image: Tensor, target: int | Tensor) -> Tensor:
    captured = _Captured()
    with _hooks([], [(layer, captured.leaf)]):
        score = _chosen(model(image), target)
    if captured.last is None or captured.last.dim() != 4:
        raise ConfigError("The layer of a heatmap must give one map (B, C, h, w): name another.")
    (slope,) = torch.autograd.grad(score, captured.last)
    maps, slope = captured.last.detach().float(), slope.float()
    if _channels_last(model):
        maps, slope = maps.permute(0, 3, 1, 2), slope.permute(0, 3, 1, 2)
    return (maps * slope.mean((2, 3), keepdim=True)).sum(1).clamp_min(0)


def _chosen(outputs: Tensor, target: int | Tensor) -> Tensor:
    """Return the sum of the outputs to explain; images do not depend on each other."""
    number = torch.as_tensor(target, device=outputs.device).expand(len(outputs))
    if outputs.dim() != 2 or not bool(((number >= 0) & (number < outputs.shape[1])).all()):
        raise ConfigError(
            f"There is no output {target} among {tuple(outputs.shape)}: give one from 0 on of a "
            "classifier."
        )
    return outputs.gather(1, number[:, None]).sum()


def _last_map(model: nn.Module, image: Tensor) -> nn.Module:
    """Return the last module that gives a map (B, C, h, w) of more than one place.

    Raises:
        ConfigError: none, or tokens follow it, so that it is only the patch embedding.
    """
    found: list[nn.Module] = []
    last = _channels_last(model)

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        rows, columns = (1, 2) if last else (2, 3)
        if output.dim() == 4 and output.shape[rows] * output.shape[columns] > 1:
            found.append(module)
        elif output.dim() == 3 and output.shape[1] > 1:
            found.clear()

    with _hooks([], [(module, look) for module in model.modules()]):
        model(image[:1])
    if not found:
        raise ConfigError(
            f"{type(model).__name__} ends in no feature map (B, C, h, w): name the layer whose map "
            "is to be taken."
        )
    return found[-1]


def _channels_last(model: nn.Module) -> bool:
    """Say whether a network keeps its maps as (B, h, w, C), as timm's Swin does and tells."""
    formats = (getattr(module, "output_fmt", "NCHW") for module in model.modules())
    return any(str(getattr(name, "value", name)) == "NHWC" for name in formats)


def _trunk(model: nn.Module) -> ViTTrunk | None:
    return next((m for m in model.modules() if isinstance(m, ViTTrunk)), None)


def _attentions(trunk: ViTTrunk) -> list[nn.Module]:
    return [m for m in trunk.blocks.modules() if isinstance(m, Attention)]


def _reads_class_token(trunk: ViTTrunk) -> bool:
    return getattr(trunk, "global_pool", "token") == "token" and trunk.cls_token is not None


def _residual(mixing: Tensor) -> Tensor:
    return 0.5 * mixing + 0.5 * torch.eye(mixing.shape[-1], device=mixing.device)


def _grid(trunk: ViTTrunk, image: Tensor) -> tuple[int, int]:
    return -(-image.shape[-2] // trunk.patch_size), -(-image.shape[-1] // trunk.patch_size)


def _patches(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the last tokens (B, T), those of the patches, as (B, h, w)."""
    return tokens[:, -grid[0] * grid[1] :].unflatten(1, grid).contiguous()


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _hooks(before: Any, after: Any = ()) -> Iterator[None]:
    """Register (module, hook) pairs before and after modules; take them away at the end."""
    handles = []
    try:
        handles += [module.register_forward_pre_hook(hook) for module, hook in before]
        handles += [module.register_forward_hook(hook) for module, hook in after]
        yield
    finally:
        for handle in handles:
            handle.remove()
