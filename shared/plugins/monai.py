"""Importing this registers crossband's backbones as encoders of MONAI's FlexibleUNet.

    import crossband.shared.plugins.monai
    monai.networks.nets.FlexibleUNet(1, 2, backbone="crossband_hornet_tiny_7x7")

A plain ViT gets UNIP's last-layer pyramid (`crossband_vit_small_patch16`). Bundles are written,
checked, run and fine-tuned by `crossband.shared.bundles`.
"""

from __future__ import annotations

import warnings
from typing import Any

from monai.networks import nets
from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE
from torch import Tensor, nn

from crossband.shared.backbones.base import Backbone
from crossband.shared.backbones.catalog import MODELS
from crossband.shared.bundles.writing import write_bundle
from crossband.shared.errors import ConfigError, did_you_mean
from crossband.shared.layers.layer_norm import LayerNorm2d
from crossband.shared.necks import NeckedBackbone
from crossband.shared.registry import ModelEntry, create_model

__all__ = ["CrossbandEncoder", "build", "write_bundle"]

PREFIX = "crossband_"
ALIASES = {"hornet_tiny": "hornet_tiny_7x7", "hornet_small": "hornet_small_7x7"}


class CrossbandEncoder(nn.Module):
    """A backbone as MONAI wants an encoder: five maps, each half the one before.

    Ours begin at stride 4, so a small stem adds a map of stride 2 in front. Ours round sides up,
    MONAI's decoder expects them rounded down, so the last row or column may be cut off.

    Args:
        name: Of our catalog.
        spatial_dims: 2.
        in_channels: Of the image.
        pretrained: Must be false: nothing is downloaded.

    Raises:
        ConfigError: volumes, or weights that would have to be downloaded.
    """

    def __init__(
        self, name: str, spatial_dims: int = 2, in_channels: int = 3, pretrained: bool = False
    ) -> None:
        """Build stem and backbone."""
        super().__init__()
        if spatial_dims != 2:
            raise ConfigError(f"{PREFIX}{name} is for images: spatial_dims must be 2.")
        if pretrained:
            raise ConfigError(
                f"{PREFIX}{name}: nothing is downloaded; set pretrained=False and load weights "
                "into `.encoder.backbone`."
            )
        self.backbone = pyramid(name, in_chans=in_channels)
        width = _stem_width(self.backbone.out_channels)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, stride=2, padding=1), LayerNorm2d(width), nn.GELU()
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (B, C, H, W) to maps of strides 2, 4, 8, 16 and 32."""
        maps = [self.stem(image), *self.backbone(image)]
        height, width = maps[0].shape[-2:]
        cut = [maps[0]]
        for x in maps[1:]:
            height, width = height // 2, width // 2
            cut.append(x[..., :height, :width])
        return cut

    @classmethod
    def get_encoder_names(cls) -> list[str]:
        """Return the names under which `FlexibleUNet` finds the encoders."""
        return [PREFIX + name for name in _names()]

    @classmethod
    def get_encoder_parameters(cls) -> list[dict[str, Any]]:
        """Return the arguments of every encoder."""
        common = {"spatial_dims": 2, "in_channels": 3, "pretrained": False}
        return [{"name": ALIASES.get(name, name), **common} for name in _names()]

    @classmethod
    def num_channels_per_output(cls) -> list[tuple[int, ...]]:
        """Return the channels of every encoder's maps."""
        entries = {entry.name: entry for entry in MODELS}
        found = []
        for name in _names():
            channels = _channels(entries[ALIASES.get(name, name)])
            found.append((_stem_width(channels), *channels))
        return found

    @classmethod
    def num_outputs(cls) -> list[int]:
        """Return the number of every encoder's maps."""
        return [5] * len(_names())


def pyramid(name: str, **arguments: Any) -> Backbone:
    """Build a backbone of our catalog that gives maps of strides 4, 8, 16 and 32."""
    backbone = create_model(name, features_only=True, **arguments)
    assert isinstance(backbone, Backbone)
    return backbone if len(set(backbone.strides)) > 1 else NeckedBackbone(backbone, "ll_fpn")


def build(name: str, **arguments: Any) -> nn.Module:
    """Build `monai:<class of monai.networks.nets>`.

    Raises:
        ConfigError: MONAI has no such network, or it does not take an argument.
    """
    known = [n for n in dir(nets) if isinstance(getattr(nets, n), type)]
    short = name.removeprefix("monai:")
    if short not in known:
        raise ConfigError(f"MONAI has no network {short!r}.{did_you_mean(short, known)}")
    try:
        return getattr(nets, short)(**arguments)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"monai:{short} cannot be built so: {reason}") from error


def _names() -> list[str]:
    return [*(entry.name for entry in MODELS if _is_pyramid(entry)), *ALIASES]


def _is_pyramid(entry: ModelEntry) -> bool:
    patch = entry.arguments.get("patch_size", 16)  # of a plain ViT: its pyramid starts at a quarter
    return entry.backbone is not None and entry.task == "classification" and patch == 16


def _channels(entry: ModelEntry) -> tuple[int, ...]:
    """Return the channels of the four maps from the arguments, without building the network."""
    given = entry.arguments
    for name in ("embed_dims", "dims"):
        if name in given:
            return tuple(given[name])
    if "base_dim" in given:
        return tuple(given["base_dim"] * 2**i for i in range(4))
    return (given["embed_dim"],) * 4  # a plain ViT


def _stem_width(channels: tuple[int, ...] | list[int]) -> int:
    return max(16, channels[0] // 2)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it asks for a base class whose methods are here
    FLEXUNET_BACKBONE.register_class(CrossbandEncoder)
