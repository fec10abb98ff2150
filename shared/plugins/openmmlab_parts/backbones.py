"""Backbones and necks for configs of OpenMMLab.

- every family of the catalog by its class name (`crossband.UniRepLKNet`);
- any backbone of the registry or of timm by `crossband.Backbone`;
- necks that make a plain ViT a pyramid: `LLFPN`, `SimpleFeaturePyramid`, `SelectResize`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import crossband.shared.compat  # noqa: F401 - before timm, which imports torchvision

from mmengine.model import BaseModule
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from crossband.shared.backbones.base import load_backbone
from crossband.shared.checkpoints import HEADER_KEY, find_state_dict, load_state
from crossband.shared.cli.domain import load_object
from crossband.shared.errors import CheckpointError, ConfigError, did_you_mean
from crossband.shared.necks import LLFPN, SelectResize, SimpleFeaturePyramid
from crossband.shared.plugins.openmmlab import MODELS
from crossband.shared.registry import ModelEntry, catalog, create_model, get_entry


class Managed(BaseModule):
    """What mmengine's users expect of a backbone, around a network of ours.

    Attributes:
        official: "module:function" that brings the authors' keys to ours, or None.
        frozen_stages: Stages that are not trained: 0 the stem, 1 the first stage too, ...; -1 none.
            Stages of a plain ViT are its blocks.
        norm_eval: Whether batch norms keep their statistics in training.
    """

    official: str | None = None
    frozen_stages = -1
    norm_eval = False

    def _manage(self, frozen_stages: int, norm_eval: bool, init_cfg: dict | None) -> None:
        self._is_init = False  # a network of ours does not call BaseModule's constructor
        self.init_cfg = init_cfg
        self.norm_eval = norm_eval
        self.frozen_stages = frozen_stages
        if frozen_stages >= 0:
            for name, parameter in self.named_parameters():
                if self._frozen(name):
                    parameter.requires_grad_(False)

    def _network(self) -> nn.Module:
        return self

    def _frozen(self, name: str) -> bool:
        network = self._network()
        if network is not self:
            name = name.partition(".")[2]
        if hasattr(network, "stem_pattern"):
            stage = network.stage_index(name)
            return stage is not None and stage < self.frozen_stages
        if not hasattr(network, "layer_index"):
            raise ConfigError(
                f"frozen_stages {self.frozen_stages}: the stages of {type(network).__name__} have "
                "no names that are known here; leave frozen_stages out, or choose a backbone of "
                "crossband."
            )
        return network.layer_index(name) <= self.frozen_stages  # of a plain ViT: blocks

    def train(self, mode: bool = True) -> Managed:
        """Set the mode; frozen stages and, if asked, batch norms stay in evaluation."""
        super().train(mode)
        if mode:
            for name, module in self.named_modules():
                frozen = self.frozen_stages >= 0 and name and self._frozen(f"{name}.")
                if frozen or (
                    self.norm_eval and isinstance(module, nn.modules.batchnorm._BatchNorm)
                ):
                    module.training = False
        return self

    def init_weights(self) -> None:
        """Load what `init_cfg` names, else keep the values that the network drew itself.

        Takes the authors' files, ours, and those of mmseg and mmdet, whose backbone is under
        `backbone.`; a classifier's too. What does not fit is an error, what is left is told.

        Raises:
            CheckpointError: the file cannot be read, would run code, or does not fit.
            ConfigError: another `init_cfg`.
        """
        config = self.init_cfg
        if config is None or self._is_init:
            self._is_init = True
            return
        if not isinstance(config, dict) or config.get("type") != "Pretrained":
            raise ConfigError(
                f"init_cfg {config} of {type(self).__name__}: our networks initialise themselves, "
                'so only dict(type="Pretrained", checkpoint=FILE) can be given.'
            )
        source = str(config["checkpoint"])
        content = CheckpointLoader.load_checkpoint(source, "cpu")
        state, _ = find_state_dict(content, source)
        state = _below(state, config.get("prefix") or "", source)
        meta = content.get("meta", {}) if isinstance(content, dict) else {}
        ours = HEADER_KEY in meta
        if self.official and not ours:
            state = load_object(self.official)(state)
        if not ours and "crossband." not in str(meta.get("cfg")):  # nor of a run with this class
            state = getattr(self._network(), "adapt_official", dict)(state)
        self._load(state, source)
        self._is_init = True

    def _load(self, state: dict[str, Tensor], source: str) -> None:
        load_backbone(self._network(), state, source)


def _below(state: dict[str, Tensor], prefix: str, source: str) -> dict[str, Tensor]:
    """Return what is under a prefix; without one, under `module.` and `backbone.` if there."""
    if prefix:
        prefix = prefix.rstrip(".") + "."
        found = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if not found:
            raise CheckpointError(
                f"{source} has no weights under {prefix!r} (its first: {next(iter(state))!r}): "
                "give another prefix in init_cfg, or none."
            )
        return found
    for usual in ("module.", "backbone."):
        found = {k.removeprefix(usual): v for k, v in state.items() if k.startswith(usual)}
        state = found or state
    return state


def managed_class(
    network: type[nn.Module],
    variants: Mapping[str, Mapping[str, Any]],
    official: str | None = None,
) -> type[Managed]:
    """Return a backbone class of ours as mmengine's users know it.

    Args:
        network: Under the contract of backbones.
        variants: Arguments by the name of a size.
        official: "module:function" that brings the authors' keys to ours.
    """

    def __init__(
        self: Any,
        variant: str | None = None,
        *,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        init_cfg: dict | None = None,
        **arguments: Any,
    ) -> None:
        if variant is not None:
            if variant not in variants:
                hint = did_you_mean(variant, variants) or f" There are: {', '.join(variants)}."
                raise ConfigError(f"{network.__name__} has no variant {variant!r}.{hint}")
            arguments = {**variants[variant], **arguments}
        network.__init__(self, **arguments)
        self._manage(frozen_stages, norm_eval, init_cfg)

    text = f"""{network.__name__} for OpenMMLab; see `{network.__module__}`.

    Args:
        variant: {", ".join(variants)}; other arguments go over it. None: all by arguments.
        frozen_stages: Stages that are not trained: 0 the stem, 1 the first stage too, ...
        norm_eval: Whether batch norms keep their statistics in training.
        init_cfg: `dict(type="Pretrained", checkpoint=FILE)`.
        arguments: Of the network, `out_indices` among them.
    """
    body = {"__init__": __init__, "__doc__": text, "__module__": __name__, "official": official}
    return type(network.__name__, (Managed, network), body)


def _register_families() -> None:
    families: dict[str, dict[str, ModelEntry]] = defaultdict(dict)
    for entry in catalog().values():
        if entry.backbone:
            families[entry.backbone][entry.name] = entry
    for target, entries in families.items():
        common = os.path.commonprefix(list(entries))
        start = common.rfind("_") + 1 if len(entries) > 1 else 0
        variants = {name[start:]: entry.arguments for name, entry in entries.items()}
        official = next(iter(entries.values())).official
        MODELS.register_module(module=managed_class(load_object(target), variants, official))


_register_families()
for _neck in (LLFPN, SelectResize, SimpleFeaturePyramid):
    MODELS.register_module(module=_neck)


@MODELS.register_module()
class Backbone(Managed):
    """Any backbone by its name in crossband's registry: `hornet_tiny_gf`, `timm:convnext_tiny`.

    Args:
        name: Of the registry.
        frozen_stages: As for our own families; unknown for timm's networks.
        norm_eval: Whether batch norms keep their statistics in training.
        init_cfg: `dict(type="Pretrained", checkpoint=FILE)`.
        arguments: Of the network.
    """

    def __init__(
        self,
        name: str,
        *,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        init_cfg: dict | None = None,
        **arguments: Any,
    ) -> None:
        """Build the network."""
        super().__init__()
        self.name = name
        self.arguments = arguments
        self.network = create_model(name, features_only=True, **arguments)
        self.official = get_entry(name).official
        self.out_channels = self.network.out_channels
        self.strides = self.network.strides
        self._manage(frozen_stages, norm_eval, init_cfg)

    def _network(self) -> nn.Module:
        return self.network

    def _load(self, state: dict[str, Tensor], source: str) -> None:
        own = {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")}
        if own:  # a file of a run with this class
            load_state(self.network, own, source)
        elif self.name.startswith("timm:"):  # a file of the whole model, its head included
            from crossband.shared.backbones.from_timm import TimmBackbone

            whole = {k: v for k, v in self.arguments.items() if k != "out_indices"}
            model = create_model(self.name, **whole)
            load_state(model, state, source)
            timm_name = self.name.removeprefix("timm:")
            filled = TimmBackbone(timm_name, state=model.state_dict(), **self.arguments)
            self.network.load_state_dict(filled.state_dict())
        else:
            super()._load(state, source)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (B, C, H, W) to feature maps, finest first."""
        return self.network(image)
