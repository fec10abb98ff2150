"""Networks of mmsegmentation, built from its own classes with its configs' numbers."""

from __future__ import annotations

import logging
import warnings
from contextlib import nullcontext
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmseg.registry import MODELS
from torch import Tensor, nn

import crossband.shared.plugins.openmmlab  # noqa: F401 - before mmseg
from crossband.shared.errors import ConfigError, did_you_mean
from crossband.shared.layers.resize import resize

_NORM = {"type": "BN", "requires_grad": True}
_VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "segformer_b0": {
        "backbone": {
            "type": "MixVisionTransformer",
            "embed_dims": 32,
            "num_stages": 4,
            "num_layers": [2, 2, 2, 2],
            "num_heads": [1, 2, 5, 8],
            "patch_sizes": [7, 3, 3, 3],
            "sr_ratios": [8, 4, 2, 1],
            "out_indices": (0, 1, 2, 3),
            "mlp_ratio": 4,
            "qkv_bias": True,
            "drop_path_rate": 0.1,
        },
        "decode_head": {
            "type": "SegformerHead",
            "in_channels": [32, 64, 160, 256],
            "in_index": [0, 1, 2, 3],
            "channels": 256,
        },
    },
    "deeplabv3plus_r18": {
        "backbone": {
            "type": "ResNetV1c",
            "depth": 18,
            "num_stages": 4,
            "out_indices": (0, 1, 2, 3),
            "dilations": (1, 1, 2, 4),
            "strides": (1, 2, 1, 1),
            "norm_cfg": _NORM,
            "contract_dilation": True,
        },
        "decode_head": {
            "type": "DepthwiseSeparableASPPHead",
            "in_channels": 512,
            "in_index": 3,
            "channels": 128,
            "dilations": (1, 12, 24, 36),
            "c1_in_channels": 64,
            "c1_channels": 12,
        },
    },
}


class MMSegSegmentor(nn.Module):
    """A backbone and a decode head of mmseg.

    Args:
        variant: `segformer_b0` or `deeplabv3plus_r18`.
        num_classes: K.
        in_chans: Channels of the image.

    Raises:
        ConfigError: another variant.
    """

    def __init__(self, *, variant: str, num_classes: int, in_chans: int = 3) -> None:
        """Build the parts and initialise them as mmseg does."""
        super().__init__()
        if variant not in _VARIANTS:
            hint = did_you_mean(variant, _VARIANTS) or f" There are: {', '.join(_VARIANTS)}."
            raise ConfigError(f"no network of mmseg is called {variant!r} here.{hint}")
        parts = _VARIANTS[variant]
        head = {"num_classes": num_classes, "norm_cfg": _NORM, "align_corners": False}
        described = torch.get_default_device().type == "meta"
        # mmseg reads numbers off tensors while it builds, which the meta device has none of.
        with torch.device("cpu") if described else nullcontext():
            self.backbone = MODELS.build(parts["backbone"] | {"in_channels": in_chans})
            with warnings.catch_warnings():  # about losses, which are ours
                warnings.simplefilter("ignore")
                self.decode_head = MODELS.build(parts["decode_head"] | head)
        if described:
            self.to("meta")
        else:
            self._start()
        self.num_classes = num_classes

    def _start(self) -> None:
        logger = MMLogger.get_current_instance()
        level = logger.level
        logger.setLevel(logging.WARNING)  # it tells the start of every tensor
        self.backbone.init_weights()
        self.decode_head.init_weights()
        logger.setLevel(level)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, C, H, W) to logits (B, K, H, W)."""
        return resize(self.decode_head(self.backbone(image)), image.shape[-2:])
