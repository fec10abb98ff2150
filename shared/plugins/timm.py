"""Importing this registers crossband's backbones with timm.

    import crossband.shared.plugins.timm
    timm.create_model("transnext_tiny", features_only=True, out_indices=(1, 3), in_chans=1)

With `features_only` the network is the `Backbone` of the family, the one that
`crossband.shared.create_model(name, features_only=True)` builds, else its classifier. A name that
timm has already stays timm's, with a warning.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import crossband.shared.compat  # noqa: F401 - before timm, which imports torchvision

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from crossband.shared.backbones.base import ImageClassifier, fit_backbone
from crossband.shared.backbones.catalog import MODELS
from crossband.shared.cli.domain import load_object
from crossband.shared.errors import CheckpointError
from crossband.shared.registry import ModelEntry, left_out

__all__: list[str] = []
_OFFICIAL = "crossband.shared.backbones.official:from_official"  # of every family here


def _settings(entry: ModelEntry) -> dict[str, Any]:
    """Return timm's description of a model and its weights."""
    assert entry.input_shape is not None
    paper = re.search(r"arXiv (\d+\.\d+)", entry.paper)
    side = entry.input_shape[-1]
    return {
        "input_size": entry.input_shape,
        "pool_size": (side // 32, side // 32),
        "mean": entry.mean,
        "std": entry.std,
        "crop_pct": 0.875 if side < 384 else 1.0,
        "interpolation": "bicubic",
        "first_conv": load_object(entry.target).first_conv,
        "classifier": "head",
        "license": "apache-2.0",
        "paper_ids": f"arXiv:{paper[1]}" if paper else None,
        "paper_name": entry.paper,
        "description": entry.summary,
        "notes": (f"weights: {entry.weights}",),
    }


def _adapt(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Bring a file of weights to a network's form; timm then fits the first convolution."""
    own = load_object(_OFFICIAL)(state)
    if isinstance(model, ImageClassifier):
        return model.adapt_state(own)
    state = fit_backbone(model, own, "the file", left=left_out(state, _OFFICIAL))
    wanted = model.state_dict().keys()
    if differing := wanted ^ state.keys():
        raise CheckpointError(
            f"the file does not fit {type(model).__name__}: {len(differing)} keys differ (first: "
            f"{min(differing)}). Choose the model that these weights were made with."
        )
    return state


def _last_map(backbone: type[nn.Module]) -> type[nn.Module]:
    """Return a backbone that gives its last map alone: timm's hook network wants a tensor."""

    def forward(self: nn.Module, image: Tensor) -> Tensor:
        return backbone.forward(self, image)[-1]

    return type(backbone.__name__, (backbone,), {"forward": forward})


def _entrypoint(entry: ModelEntry) -> Callable[..., nn.Module]:
    """Return the function that builds one size, as timm wants it."""

    def build(pretrained: bool = False, **arguments: Any) -> nn.Module:
        features = arguments.get("features_only", False)
        model_class = load_object(entry.backbone if features else entry.target)
        if features and "hook" in str(arguments.get("feature_cls")).lower():
            model_class = _last_map(model_class)
        return build_model_with_cfg(
            model_class,
            entry.name,
            pretrained,
            feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
            kwargs_filter=("num_classes", "global_pool") if features else None,
            pretrained_filter_fn=_adapt,
            **(entry.arguments | arguments),
        )

    build.__name__ = build.__qualname__ = entry.name
    build.__doc__ = f"{entry.summary} ({entry.paper})."
    return build


def _register() -> None:
    for entry in _ENTRIES:
        name = entry.name
        if timm.is_model(name):
            if timm.model_entrypoint(name).__module__ != __name__:
                warnings.warn(
                    f"timm has a model {name!r} already, so crossband's is not registered: build "
                    f"it by crossband.shared.create_model({name!r}).",
                    stacklevel=3,
                )
            continue
        globals()[name] = register_model(_entrypoint(entry))


_ENTRIES = [e for e in MODELS if issubclass(load_object(e.target), ImageClassifier)]
default_cfgs = generate_default_cfgs({entry.name: _settings(entry) for entry in _ENTRIES})
_register()
