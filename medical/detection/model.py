"""Faster R-CNN with a feature pyramid: from options to what a checkpoint stores, and to mmdet."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossband.medical.config import TrainConfig
from crossband.medical.data.transforms import Normalisation
from crossband.shared.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from torch import nn

NAME = "faster_rcnn"
_LIBRARIES = ("mmengine", "mmcv", "mmdet", "pycocotools")
# Names that people know, and where the networks come from.
SHORT = {"resnet50": "lvm_med_resnet50"}
_FINEST, _COARSEST = 4, 32  # strides of the maps that the pyramid is built on
_BASE = "_base_/models/faster-rcnn_r50_fpn.py"


def require_openmmlab() -> None:
    """Import the plugin that mmdet needs here.

    Raises:
        MissingExtraError: a library of the extra is not installed.
    """
    for name in _LIBRARIES:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(name, "openmmlab")
    # mmdet tells of metrics and data sets that it has not; nobody here asked for them.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in ("crossband.medical.detection.openmmlab", "mmdet.evaluation"):
            import_module(module)


@dataclass(frozen=True)
class Parts:
    """Numbers of the detector; `--network.arguments` gives them by these names.

    Attributes:
        anchor_scales: Sides of the anchors, in strides of their map.
        anchor_ratios: Height by width of the anchors.
        fpn_channels: Of every map of the pyramid.
        fc_channels: Of the two layers that look at a box.
        proposals: Most boxes that the second stage looks at, per image.
        detections: Most boxes that are returned per image; COCO's scores count 100.
        overlap: IoU from which two found boxes of a class are one.
    """

    anchor_scales: tuple[float, ...] = (8.0,)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    fpn_channels: int = 256
    fc_channels: int = 1024
    proposals: int = 1000
    detections: int = 100
    overlap: float = 0.5

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> tuple[Parts, dict[str, Any]]:
        """Return the numbers among arguments, and the others, which are the backbone's.

        Raises:
            ConfigError: a number that cannot be.
        """
        own = {field.name for field in fields(cls)}
        given = {name: value for name, value in arguments.items() if name in own}
        try:
            for name in ("anchor_scales", "anchor_ratios"):
                if name in given:
                    value = given[name]
                    items = value if isinstance(value, (list, tuple)) else [value]
                    given[name] = tuple(map(float, items))
            found = cls(**given)
            numbers = (*found.anchor_scales, *found.anchor_ratios, found.fpn_channels)
            if min(*numbers, found.fc_channels, found.proposals, found.detections) <= 0:
                raise ValueError("all of them must be above 0")
            if not 0 < found.overlap <= 1:
                raise ValueError("overlap is in (0, 1]")
        except (TypeError, ValueError) as error:
            shown = " ".join(f"{name}={value}" for name, value in given.items())
            raise ConfigError(f"--network.arguments {shown}: {error}.") from error
        return found, {k: v for k, v in arguments.items() if k not in own}


def describe(
    config: TrainConfig, classes: int, arguments: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return what a checkpoint stores of a detector: name and arguments.

    Args:
        config: Options of `train`.
        classes: Number of classes.
        arguments: Of the detector and its backbone; default: `--network.arguments`.

    Raises:
        ConfigError: a network that gives no pyramid of maps.
    """
    import torch

    from crossband.shared.registry import create_model

    parts, own = Parts.of(config.network.arguments if arguments is None else arguments)
    backbone = SHORT.get(config.model, config.model)
    with torch.device("meta"):
        whole = create_model(backbone, features_only=True, **own)
    strides = list(whole.strides)
    kept = [i for i, s in enumerate(strides) if _FINEST <= s <= _COARSEST]
    chosen = [strides[i] for i in kept]
    if len(chosen) < 2 or chosen != [chosen[0] * 2**i for i in range(len(chosen))]:
        raise ConfigError(
            f"--model {config.model} gives maps of the strides {', '.join(map(str, strides))}, and "
            "boxes need a pyramid (4, 8, 16, 32): take resnet50, timm:NAME of a CNN, or another."
        )
    return {
        "name": NAME,
        "arguments": {
            "backbone": backbone,
            "backbone_arguments": own | {"out_indices": kept},
            "strides": chosen,
            "channels": [whole.out_channels[i] for i in kept],
            "num_classes": classes,
            **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(parts).items()},
        },
    }


def mmdet_model(
    description: Mapping[str, Any],
    normalisation: Normalisation,
    weights: str | None = None,
) -> dict[str, Any]:
    """Return the `model` of a config of mmdet: its own Faster R-CNN, on the backbone wanted.

    With weights the stem and the first stage of a ResNet stay as they are, and batch norms of any
    backbone keep their statistics, as in mmdet's configs; without, everything is trained.

    Args:
        description: Of `describe`.
        normalisation: Of pixels in 0..1.
        weights: File of the backbone to start from, or None.
    """
    import mmdet
    from mmengine.config import Config

    given = description["arguments"]
    configs = Path(mmdet.__file__).parent / ".mim" / "configs"
    model = Config.fromfile(configs / _BASE).model.to_dict()
    model["data_preprocessor"].update(
        mean=[255 * value for value in normalisation.mean],
        std=[255 * value for value in normalisation.std],
        bgr_to_rgb=False,  # `crossband.LoadPicture` gives RGB
    )
    start = {"init_cfg": {"type": "Pretrained", "checkpoint": weights}} if weights else {}
    model["backbone"] = {
        "type": "crossband.MedicalBackbone",
        "name": given["backbone"],
        **given["backbone_arguments"],
        "frozen_stages": 1 if weights else -1,
        "norm_eval": bool(weights),
        **start,
    }
    strides, channels = given["strides"], given["fpn_channels"]
    model["neck"].update(
        in_channels=given["channels"], out_channels=channels, num_outs=len(strides) + 1
    )
    model["rpn_head"].update(in_channels=channels, feat_channels=channels)
    model["rpn_head"]["anchor_generator"].update(
        scales=given["anchor_scales"],
        ratios=given["anchor_ratios"],
        strides=[*strides, 2 * strides[-1]],
    )
    roi = model["roi_head"]
    roi["bbox_roi_extractor"].update(out_channels=channels, featmap_strides=strides)
    roi["bbox_head"].update(
        in_channels=channels,
        fc_out_channels=given["fc_channels"],
        num_classes=given["num_classes"],
    )
    count = given["proposals"]
    model["train_cfg"]["rpn_proposal"].update(nms_pre=2 * count, max_per_img=count)
    model["test_cfg"]["rpn"].update(nms_pre=count, max_per_img=count)
    model["test_cfg"]["rcnn"].update(
        max_per_img=given["detections"], nms={"type": "nms", "iou_threshold": given["overlap"]}
    )
    return model


def build(description: Mapping[str, Any], normalisation: Normalisation) -> nn.Module:
    """Build the detector of a checkpoint, its weights not yet loaded.

    Raises:
        MissingExtraError: mmdet is not installed.
    """
    require_openmmlab()
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build(ConfigDict(mmdet_model(description, normalisation)))
