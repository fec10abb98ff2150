"""LVM-Med's pre-training: a backbone that learns to match the views of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossband.medical.lvm_med.objective import GraphMatchingObjective, ObjectiveOutput, View
from crossband.shared.backbones.sam import SAMEncoder
from crossband.shared.errors import ConfigError
from crossband.shared.registry import as_backbone, create_model

PREFIX = "backbone."
_NAMES = {"resnet50": "lvm_med_resnet50", "sam_vit_b": "lvm_med_vit_base"}


class LVMMed(nn.Module):
    """A backbone and the objective on its last map.

    Of SAM's encoder the last block's map counts (768 channels, as the paper's projector has); its
    neck gets no gradient and is frozen, unless `neck` is set.

    Args:
        backbone: Name of a backbone of ours or of timm (`timm:resnet50`), or a network. `resnet50`
            and `sam_vit_b` are LVM-Med's own two.
        weights: What the backbone starts from, our files or the authors'; None: random.
        backbone_arguments: Of a backbone given by name.
        neck: Take the map after the neck of SAM's encoder.
        objective: Arguments of `GraphMatchingObjective`.

    Raises:
        ConfigError: a network that gives no maps, or an argument that cannot work.
        CheckpointError: weights that cannot be read or do not fit.
    """

    def __init__(
        self,
        backbone: str | nn.Module = "resnet50",
        *,
        weights: str | Path | None = None,
        backbone_arguments: Mapping[str, Any] | None = None,
        neck: bool = False,
        objective: Mapping[str, Any] | None = None,
    ) -> None:
        """Build both parts."""
        super().__init__()
        if isinstance(backbone, str):
            name = _NAMES.get(backbone, backbone)
            arguments = dict(backbone_arguments or {})
            backbone = create_model(name, weights, features_only=True, **arguments)
        elif weights is not None or backbone_arguments:
            raise ConfigError(
                "A network that is given has its weights and arguments: give a name, or neither."
            )
        backbone = as_backbone(backbone)
        self.backbone = backbone
        dim = backbone.out_channels[-1]
        self.before_neck = isinstance(backbone, SAMEncoder) and not neck
        if self.before_neck:
            dim = backbone.neck[0].in_channels
            backbone.neck.requires_grad_(False)
        elif neck and not isinstance(backbone, SAMEncoder):
            raise ConfigError(f"{type(backbone).__name__} has no neck: set neck False.")
        try:
            self.objective = GraphMatchingObjective(dim, **(objective or {}))
        except TypeError as error:
            raise ConfigError(f"The objective does not take these arguments: {error}.") from error

    def feature_map(self, image: Tensor) -> Tensor:
        """Map (B, C, H, W) to the map that is learnt from, (B, dim, R, S)."""
        if self.before_neck:
            blocks = len(self.backbone.blocks)
            return self.backbone.stages(image)[f"block{blocks - 1}"].permute(0, 3, 1, 2)
        return self.backbone(image)[-1]

    def forward(
        self, batch: Mapping[str, Any], generator: torch.Generator | None = None
    ) -> ObjectiveOutput:
        """Match the views of a batch: both large ones, and each large one with each small one.

        Args:
            batch: As `training.LVMMedTask` describes it.
            generator: Of the noise, on the CPU; None: the global one.

        Raises:
            ConfigError: a batch without two large views.
        """
        large = self._views(batch["views"], batch.get("grids"), small=False)
        small = self._views(batch.get("small", ()), batch.get("small_grids"), small=True)
        if len(large) < 2:
            raise ConfigError(f"A batch of {len(large)} large views: give two of every image.")
        pairs = [(a, b) for i, a in enumerate(large) for b in large[i + 1 :]]
        pairs += [(a, b) for a in large for b in small]
        return self.objective(pairs, generator)

    def _views(self, images: Any, grids: Any, *, small: bool) -> list[View]:
        """Encode views of one size in one pass, and project each by itself."""
        if not len(images):
            return []
        if grids is not None and len(grids) != len(images):
            raise ConfigError(f"{len(images)} views have {len(grids)} grids: give one for each.")
        count = len(images)
        maps = self.feature_map(torch.cat(list(images))).chunk(count)
        return [
            self.objective.describe(
                view.mean((2, 3)), view, None if grids is None else grids[number], small=small
            )
            for number, view in enumerate(maps)
        ]

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the backbone's weights, under its own keys."""
        return dict(self.backbone.state_dict())
