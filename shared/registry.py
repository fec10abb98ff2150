"""Models by name: reads the catalogs of the installed domains, builds what is asked for.

Torch-free at import, so that `crossband models list` answers at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution, entry_points
from typing import TYPE_CHECKING, Any

from crossband.shared.cli.domain import load_object
from crossband.shared.errors import ConfigError, MissingExtraError, did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from crossband.shared.backbones.base import Backbone

GROUP = "crossband.domains"
SHARED = "crossband.shared.backbones"  # its catalog is read beside those of the domains
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Prefix of a model's name -> module that builds it by `build(name)`, and the extra it needs.
_PLUGINS = {
    "mmseg": ("crossband.shared.plugins.openmmlab", "openmmlab"),
    "mmdet": ("crossband.shared.plugins.openmmlab", "openmmlab"),
    "monai": ("crossband.shared.plugins.monai", "medical"),
}
OTHER_LIBRARIES = tuple(f"{prefix}:" for prefix in _PLUGINS)  # timm's models are described


@dataclass(frozen=True)
class ModelEntry:
    """One named model of a catalog."""

    name: str
    target: str  # "module:Class"
    arguments: dict[str, Any] = field(default_factory=dict)
    task: str = ""
    input_shape: tuple[int, ...] | None = None  # without the batch; None: any size by arguments
    summary: str = ""
    paper: str = ""
    licence: str = ""
    weights: str = "none published"
    # "module:function", the authors' state_dict -> ours; the way back is `to_official` beside it
    official: str | None = None
    backbone: str | None = None  # "module:Class" of the same network under the Backbone contract
    head: dict[str, Any] = field(default_factory=dict)  # arguments that `backbone` does not take
    mean: tuple[float, ...] | None = None  # per channel of an image in [0, 1]
    std: tuple[float, ...] | None = None


def domain_packages() -> dict[str, str]:
    """Return command word -> package of every installed domain.

    Raises:
        ConfigError: crossband runs from a source folder that was never installed.
    """
    found = {point.name: point.value for point in entry_points(group=GROUP)}
    if not found:
        try:
            distribution("crossband")
        except PackageNotFoundError as error:
            raise ConfigError(
                "crossband is on the Python path but not installed, so its domains cannot be "
                "found: run `pip install -e .` in its folder."
            ) from error
    return dict(sorted(found.items()))


@cache
def catalog() -> Mapping[str, ModelEntry]:
    """Return the models of all installed domains and the shared backbones by name."""
    entries: dict[str, ModelEntry] = {}
    for package in (*domain_packages().values(), SHARED):
        for entry in load_object(f"{package}.catalog:MODELS"):
            if entry.name in entries:
                raise ConfigError(f"two models are called {entry.name!r}: rename the newer one.")
            entries[entry.name] = entry
    return entries


@cache
def conformance_adapters() -> Mapping[str, str]:
    """Return fixture `system` -> "module:function" of all domains and the shared backbones."""
    adapters: dict[str, str] = {}
    for package in (*domain_packages().values(), SHARED):
        adapters |= load_object(f"{package}.catalog:CONFORMANCE")
    return adapters


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern, sorted."""
    return sorted(name for name in catalog() if fnmatchcase(name, pattern))


def get_entry(name: str) -> ModelEntry:
    """Return the catalog entry of a model, or one made of what timm knows of `timm:<name>`.

    Raises:
        ConfigError: no model has that name; near names are listed.
    """
    if name.startswith("timm:"):
        from crossband.shared.backbones.from_timm import describe

        return describe(name.removeprefix("timm:"))
    entries = catalog()
    if name not in entries:
        hint = did_you_mean(name, entries) or " `crossband models list` shows all."
        raise ConfigError(f"unknown model {name!r}.{hint}")
    return entries[name]


def create_model(
    name: str,
    weights: str | Path | None = None,
    *,
    features_only: bool = False,
    **arguments: Any,
) -> nn.Module:
    """Build a model by name.

    Args:
        name: Of the catalog, or of another library by its prefix: `timm:convnext_tiny`,
            `mmseg:...`, `mmdet:...`, `monai:UNet`.
        weights: Our checkpoint or the authors'; loaded strictly.
        features_only: Build a network under the `Backbone` contract (`shared/backbones/base.py`)
            from a backbone of ours or of timm. A classifier's weights are taken too, with a
            warning that says what is left out and what is missing.
        arguments: Constructor arguments that override the catalog's.

    Raises:
        ConfigError: unknown name or argument, a size that must be given is missing, or a model
            that gives no feature maps.
        CheckpointError: weights that cannot be read or do not fit.
        MissingExtraError: the library of a prefix is not installed.
    """
    prefix, _, rest = name.partition(":")
    if prefix == "timm" and rest:
        from crossband.shared.backbones import from_timm

        build = from_timm.create_backbone if features_only else from_timm.create
        return build(rest, weights, arguments)
    if prefix in _PLUGINS and rest:
        if features_only:
            raise ConfigError(
                f"{name} cannot be built with features_only: take it as it is, or a backbone of "
                "ours or of timm."
            )
        model, official = _create_by_plugin(prefix, name, arguments), None
    else:
        entry = get_entry(name)
        model = _create_ours(entry, features_only, arguments)
        official = entry.official
    if weights is not None:
        if features_only:
            _load_backbone(model, weights, official)
        else:
            _load(model, weights, official)
    return model


def as_backbone(backbone: str | nn.Module, arguments: Mapping[str, Any] | None = None) -> Backbone:
    """Return a network under the `Backbone` contract: itself, or built by name.

    Args:
        backbone: The network, or a name as `create_model` takes it.
        arguments: Of a backbone given by name.

    Raises:
        ConfigError: a network that gives no feature maps, or an unknown name or argument.
    """
    from crossband.shared.backbones.base import Backbone

    if isinstance(backbone, str):
        backbone = create_model(backbone, features_only=True, **(arguments or {}))
    if not isinstance(backbone, Backbone):
        raise ConfigError(
            f"{type(backbone).__name__} gives no feature maps: give a Backbone, or its name."
        )
    return backbone


def _create_ours(entry: ModelEntry, features_only: bool, arguments: Mapping[str, Any]) -> nn.Module:
    target, given = entry.target, entry.arguments | entry.head
    if features_only:
        if entry.backbone is None:
            raise ConfigError(
                f"{entry.name} gives no feature maps, so features_only cannot be: choose a "
                'backbone, `crossband models list` shows them by the task "classification".'
            )
        target, given = entry.backbone, entry.arguments
    model_class = load_object(target)
    merged = given | dict(arguments)
    _check_arguments(entry.name, model_class, merged)
    return model_class(**merged)


def _create_by_plugin(prefix: str, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    module, extra = _PLUGINS[prefix]
    try:
        return import_module(module).build(name, **arguments)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "crossband"):
            raise
        raise MissingExtraError(package, extra) from error


def _load(model: nn.Module, weights: str | Path, official: str | None) -> None:
    from crossband.shared.checkpoints import load_state

    state, _ = _read_for(model, weights, official)
    adapt = getattr(model, "adapt_state", dict)
    load_state(model, adapt(state), str(weights))


def _load_backbone(model: nn.Module, weights: str | Path, official: str | None) -> None:
    from crossband.shared.backbones.base import load_backbone

    state, foreign = _read_for(model, weights, official)
    left = left_out(foreign, official) if official else []
    load_backbone(model, state, str(weights), left=left)


def _read_for(
    model: nn.Module, weights: str | Path, official: str | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return weights under our keys, and those of a file that is not ours as they were."""
    from crossband.shared.checkpoints import HEADER_KEY, read_state_dict

    raw, header = read_state_dict(weights)
    state = _translate(raw, header, official)
    if HEADER_KEY in header:
        return state, {}
    return getattr(model, "adapt_official", dict)(state), raw


def left_out(state: Mapping[str, Tensor], official: str) -> list[str]:
    """Return the keys of an authors' file that a translator has no use for.

    A translator that does more than to rename keys says so itself by `left_out` beside it.
    """
    module = import_module(official.partition(":")[0])
    if hasattr(module, "left_out"):
        return module.left_out(state)
    kept = set(load_object(official)({key: key for key in state}).values())
    return [key for key in state if key not in kept]


def read_weights(path: str | Path, official: str | None) -> dict[str, Tensor]:
    """Read a state dict; authors' keys are renamed by `official` ("module:function")."""
    from crossband.shared.checkpoints import read_state_dict

    return _translate(*read_state_dict(path), official)


def _translate(
    state: dict[str, Tensor], header: Mapping[str, Any], official: str | None
) -> dict[str, Tensor]:
    from crossband.shared.checkpoints import HEADER_KEY

    ours = HEADER_KEY in header
    return load_object(official)(state) if official and not ours else state


def model_info(name: str, **arguments: Any) -> dict[str, Any]:
    """Describe a model without allocating it.

    Returns:
        Catalog facts, `parameters`, and `flops` of one forward pass of one sample (two per
        multiply-add). Both are None for a model whose size is not given.
    """
    entry = get_entry(name)
    info: dict[str, Any] = {
        "name": name,
        "summary": entry.summary,
        "task": entry.task,
        "paper": entry.paper,
        "licence": entry.licence,
        "weights": entry.weights,
        "input_shape": list(entry.input_shape) if entry.input_shape else None,
        "mean": list(entry.mean) if entry.mean else None,
        "std": list(entry.std) if entry.std else None,
        "arguments": entry.arguments | entry.head | arguments,
        "parameters": None,
        "flops": None,
    }
    missing = missing_arguments(name, arguments)
    info["required_arguments"] = missing
    if not missing:
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        with torch.device("meta"):
            model = create_model(name, **arguments).eval()
        info["parameters"] = sum(p.numel() for p in model.parameters())
        if entry.input_shape is not None and not arguments:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                model(torch.empty(1, *entry.input_shape, device="meta"))
            info["flops"] = counter.get_total_flops()
    return info


def missing_arguments(name: str, arguments: Mapping[str, Any]) -> list[str]:
    """Return the constructor arguments that neither the catalog nor `arguments` gives."""
    if name.startswith("timm:"):
        return []
    entry = get_entry(name)
    given = entry.arguments | entry.head | dict(arguments)
    parameters = _parameters(load_object(entry.target))
    return [n for n, p in parameters.items() if p.default is p.empty and n not in given]


def _parameters(model_class: type) -> dict[str, inspect.Parameter]:
    """Return the named arguments of a class; one that passes keywords on takes its bases' too."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found: dict[str, inspect.Parameter] = {}
    for part in model_class.__mro__:
        if "__init__" not in vars(part) or part is object:
            continue
        parameters = list(inspect.signature(part.__init__).parameters.values())[1:]
        found = {p.name: p for p in parameters if p.kind in named} | found
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _check_arguments(name: str, model_class: type, arguments: Mapping[str, Any]) -> None:
    known = _parameters(model_class)
    for argument in arguments:
        if argument not in known:
            hint = did_you_mean(argument, known) or f" It takes: {', '.join(known)}."
            raise ConfigError(f"model {name!r} takes no argument {argument!r}.{hint}")
    missing = [n for n, p in known.items() if p.default is p.empty and n not in arguments]
    if missing:
        raise ConfigError(
            f"model {name!r} can have any size: give {', '.join(missing)} as arguments."
        )
