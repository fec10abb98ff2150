"""A backbone and a neck as one backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from crossband.shared.backbones.base import AroundBackbone, Backbone, take_indices
from crossband.shared.errors import ConfigError
from crossband.shared.necks.ll_fpn import LLFPN
from crossband.shared.necks.select_resize import SelectResize
from crossband.shared.necks.simple_fpn import SimpleFeaturePyramid

Kind = Literal["ll_fpn", "simple_fpn", "select_resize"]


class NeckedBackbone(AroundBackbone, Backbone):
    """A plain ViT that gives a pyramid, so that decoders made for pyramids take it.

    Args:
        backbone: Network whose maps have one stride.
        neck: A neck made for its maps, or the name of one: `ll_fpn`, `simple_fpn`,
            `select_resize`.
        out_indices: Levels to return.
        options: Of a neck given by name.

    Raises:
        ConfigError: a name that is not known, maps that the neck cannot take, or options beside a
            neck that is built already.
    """

    def __init__(
        self,
        backbone: Backbone,
        neck: nn.Module | Kind = "ll_fpn",
        *,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        **options: Any,
    ) -> None:
        """Join the two."""
        super().__init__()
        self.backbone = backbone
        if options and not isinstance(neck, str):
            raise ConfigError(
                f"{', '.join(options)} cannot be set on a {type(neck).__name__} that is built "
                "already: give them to it, or the neck by its name."
            )
        self.neck = _build(neck, backbone, options) if isinstance(neck, str) else neck
        if isinstance(self.neck, LLFPN) and len(backbone.out_channels) not in (1, 4):
            raise ConfigError(
                f"LLFPN takes one map or four, and this backbone gives {len(backbone.out_channels)}"
                ": choose its out_indices."
            )
        self.levels = take_indices(len(self.neck.strides), out_indices)
        self.out_channels = [self.neck.out_channels[i] for i in self.levels]
        self.strides = [self.neck.strides[i] for i in self.levels]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (B, C, H, W) to the levels, finest first."""
        maps = self.neck(self.backbone(image))
        return [maps[level] for level in self.levels]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the backbone's blocks again in the backward pass."""
        self.backbone.set_grad_checkpointing(enable)


def _build(name: str, backbone: Backbone, options: dict[str, Any]) -> nn.Module:
    channels, strides = backbone.out_channels, backbone.strides
    if name == "select_resize":
        return SelectResize(channels, strides, **options)
    if len(set(strides)) > 1 or len(set(channels)) > 1:
        raise ConfigError(
            f"{name} takes maps of one stride and width, as a plain ViT gives; these have strides "
            f"{strides} and channels {channels}."
        )
    kinds = {"ll_fpn": LLFPN, "simple_fpn": SimpleFeaturePyramid}
    if name not in kinds:
        raise ConfigError(f"There is no neck {name!r}: {', '.join(kinds)}, select_resize.")
    return kinds[name](channels[0], stride=strides[0], **options)
