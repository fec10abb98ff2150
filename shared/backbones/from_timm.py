"""Models of timm under our contracts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import crossband.shared.compat  # noqa: F401 - before timm, which imports torchvision

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from crossband.shared.backbones.base import Backbone
from crossband.shared.checkpoints import load_state, read_state_dict
from crossband.shared.errors import ConfigError, CrossbandError, did_you_mean
from crossband.shared.registry import ModelEntry


class TimmBackbone(Backbone):
    """A model of timm as a `Backbone`.

    ViTs give maps of one stride. Models that keep their maps as (B, H, W, C) are permuted.

    Args:
        name: timm's name of the model.
        out_indices: Maps to return; None: timm's choice for the model.
        arguments: Arguments of timm's model.
        state: Weights of the whole model, under timm's keys.

    Raises:
        ConfigError: timm has no such model, or gives no maps of it.
    """

    def __init__(
        self,
        name: str,
        out_indices: Sequence[int] | None = None,
        *,
        state: dict[str, Tensor] | None = None,
        **arguments: Any,
    ) -> None:
        """Build timm's feature network."""
        super().__init__()
        if out_indices is not None:
            arguments["out_indices"] = tuple(out_indices)
        if state is not None:
            arguments |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}
        self.net = _build(name, features_only=True, **arguments)
        self.out_channels = list(self.net.feature_info.channels())
        self.strides = list(self.net.feature_info.reduction())
        format_ = getattr(self.net, "output_fmt", "NCHW")
        self.output_fmt = str(getattr(format_, "value", format_))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (B, C, H, W) to maps (B, out_channels[i], ~H/strides[i], ~W/strides[i])."""
        maps = self.net(image)
        if self.output_fmt == "NHWC":
            return [x.permute(0, 3, 1, 2) for x in maps]
        return list(maps)


def create(name: str, weights: str | Path | None, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a model of timm; weights under timm's keys are loaded strictly.

    Raises:
        ConfigError: timm has no such model, or it does not take an argument.
        CheckpointError: weights that cannot be read or do not fit.
    """
    model = _build(name, **arguments)
    if weights is not None:
        load_state(model, read_state_dict(weights)[0], str(weights))
    return model


def create_backbone(
    name: str, weights: str | Path | None, arguments: Mapping[str, Any]
) -> TimmBackbone:
    """Build a model of timm as a backbone; weights are those of the whole model.

    Raises:
        ConfigError: timm has no such model, it does not take an argument, or it has no maps.
        CheckpointError: weights that cannot be read or do not fit.
    """
    state = None
    if weights is not None:
        # timm loads what fits and only logs the rest, so the whole model is fitted first.
        whole = {k: v for k, v in arguments.items() if k != "out_indices"}
        state = create(name, weights, whole).state_dict()
    return TimmBackbone(name, state=state, **arguments)


def describe(name: str) -> ModelEntry:
    """Return what timm knows of a model.

    Raises:
        ConfigError: timm has no such model.
    """
    _check_name(name)
    cfg = get_pretrained_cfg(name)
    papers = [cfg.paper_ids] if isinstance(cfg.paper_ids, str) else list(cfg.paper_ids or ())
    return ModelEntry(
        name=f"timm:{name}",
        target="timm:create_model",
        task="classification",
        input_shape=tuple(cfg.input_size),
        summary=cfg.description or "a model of timm",
        paper=", ".join(papers) or cfg.origin_url or "see timm",
        licence=cfg.license or "see timm",
        weights=f"timm's, tag {cfg.tag}" if cfg.has_weights else "none",
        backbone=f"{__name__}:TimmBackbone",
        mean=tuple(cfg.mean),
        std=tuple(cfg.std),
    )


def _build(name: str, **arguments: Any) -> nn.Module:
    _check_name(name)
    try:
        return timm.create_model(name, **arguments)
    except CrossbandError:
        raise
    except TypeError as error:
        raise ConfigError(f"timm:{name} does not take these arguments: {error}.") from error
    except (AssertionError, AttributeError, LookupError, RuntimeError) as error:
        if not arguments.get("features_only") or isinstance(error, torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(
            f"timm gives no feature maps of {name!r} with these arguments ({reason}): choose "
            "another model or other out_indices."
        ) from error


def _check_name(name: str) -> None:
    if not timm.is_model(name.partition(".")[0]):
        hint = did_you_mean(name, timm.list_models())
        raise ConfigError(f"timm has no model {name!r}.{hint}")
