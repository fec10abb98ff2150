"""Optimiser constructors for configs of OpenMMLab."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from crossband.shared.config import OptimizerConfig
from crossband.shared.errors import ConfigError, did_you_mean
from crossband.shared.plugins.openmmlab import OPTIM_WRAPPER_CONSTRUCTORS
from crossband.shared.plugins.openmmlab_parts.backbones import Managed
from crossband.shared.training.optimizers import parameter_groups

# Options of `paramwise_cfg`, and their names on our own command line.
_OPTIONS = {
    "decay_rate": "layer_decay",
    "decay_positions": "decay_positions",
    "decay_norm_and_bias": "decay_norm_and_bias",
}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecay(DefaultOptimWrapperConstructor):
    """Layer-wise learning rates by the rule of `crossband ... train`.

        optim_wrapper = dict(
            optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05),
            constructor="crossband.LayerDecay",
            paramwise_cfg=dict(decay_rate=0.85, decay_positions=False))

    A parameter of layer `k` of `n` gets `lr * decay_rate ** (n - k)`. The model's backbone, one of
    ours, says which layer a parameter belongs to; necks and heads come last. Norms and biases take
    no weight decay unless `decay_norm_and_bias`; tables of positions and class tokens none unless
    `decay_positions`, as BEiT's and UNIP's code has it (it looks for their names without the
    prefix `backbone.`, and never finds them).
    """

    def add_params(self, params: list[dict], module: nn.Module, **_: Any) -> None:
        """Append groups of parameters.

        Raises:
            ConfigError: an unknown option, or a backbone that does not tell its layers.
        """
        for name in self.paramwise_cfg:
            if name not in _OPTIONS:
                hint = did_you_mean(name, _OPTIONS) or f" There are: {', '.join(_OPTIONS)}."
                raise ConfigError(f"LayerDecay knows no paramwise_cfg {name!r}.{hint}")
        given = {_OPTIONS[name]: value for name, value in self.paramwise_cfg.items()}
        config = OptimizerConfig(
            lr=self.base_lr,
            weight_decay=self.base_wd or 0.0,
            **{"decay_norm_and_bias": False, **given},
        )
        params.extend(parameter_groups(_Layers(module), config))  # type: ignore[arg-type]


class _Layers:
    """A model of OpenMMLab that tells the layers of its parameters."""

    def __init__(self, model: nn.Module) -> None:
        backbone = getattr(model, "backbone", None)
        network = backbone._network() if isinstance(backbone, Managed) else backbone
        if not hasattr(network, "layer_index"):
            raise ConfigError(
                f"LayerDecay: the backbone {type(network).__name__} does not tell its layers; take "
                "one of crossband, or leave out the constructor."
            )
        self.model, self.network = model, network
        self.prefix = "backbone." if network is backbone else "backbone.network."

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.model.named_parameters()

    def layer_index(self, name: str) -> int:
        inner = name.removeprefix(self.prefix)
        return self.network.layer_index(inner if inner != name else "norm.weight")

    def no_weight_decay(self) -> set[str]:
        names = getattr(self.network, "no_weight_decay", set)()
        return {self.prefix + name for name in names}
