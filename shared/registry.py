"""Models by name: reads the catalogs of the installed domains, builds what is asked for.

Torch-free at import, so that `crossband models list` answers at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, entry_points
from typing import TYPE_CHECKING, Any

from crossband.shared.cli.domain import load_object
from crossband.shared.errors import ConfigError, MissingExtraError, did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

GROUP = "crossband.domains"


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
    """Return the models of all installed domains by name."""
    entries: dict[str, ModelEntry] = {}
    for package in domain_packages().values():
        for entry in load_object(f"{package}.catalog:MODELS"):
            if entry.name in entries:
                raise ConfigError(f"two models are called {entry.name!r}: rename the newer one.")
            entries[entry.name] = entry
    return entries


@cache
def conformance_adapters() -> Mapping[str, str]:
    """Return fixture `system` -> "module:function" of all installed domains."""
    adapters: dict[str, str] = {}
    for package in domain_packages().values():
        adapters |= load_object(f"{package}.catalog:CONFORMANCE")
    return adapters


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern, sorted."""
    return sorted(name for name in catalog() if fnmatchcase(name, pattern))


def get_entry(name: str) -> ModelEntry:
    """Return the catalog entry of a model.

    Raises:
        ConfigError: no model has that name; near names are listed.
    """
    entries = catalog()
    if name not in entries:
        hint = did_you_mean(name, entries) or " `crossband models list` shows all."
        raise ConfigError(f"unknown model {name!r}.{hint}")
    return entries[name]


def create_model(name: str, weights: str | Path | None = None, **arguments: Any) -> nn.Module:
    """Build a model by name.

    Args:
        name: Of the catalog, or `timm:<name>` for a model of timm.
        weights: Our checkpoint or the authors'; loaded strictly.
        arguments: Constructor arguments that override the catalog's.

    Raises:
        ConfigError: unknown name or argument, or a size that must be given is missing.
        CheckpointError: weights that cannot be read or do not fit.
    """
    if name.startswith("timm:"):
        model = _create_timm(name.removeprefix("timm:"), arguments)
        official = None
    else:
        entry = get_entry(name)
        model_class = load_object(entry.target)
        merged = entry.arguments | arguments
        _check_arguments(name, model_class, merged)
        model = model_class(**merged)
        official = entry.official
    if weights is not None:
        from crossband.shared.checkpoints import load_state

        load_state(model, read_weights(weights, official), str(weights))
    return model


def read_weights(path: str | Path, official: str | None) -> dict[str, Tensor]:
    """Read a state dict; authors' keys are renamed by `official` ("module:function")."""
    from crossband.shared.checkpoints import HEADER_KEY, read_state_dict

    state, header = read_state_dict(path)
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
        "arguments": entry.arguments | arguments,
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
    entry = get_entry(name)
    given = entry.arguments | dict(arguments)
    parameters = _parameters(load_object(entry.target))
    return [n for n, p in parameters.items() if p.default is p.empty and n not in given]


def _parameters(model_class: type) -> dict[str, inspect.Parameter]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(model_class).parameters
    return {name: p for name, p in parameters.items() if p.kind in named}


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


def _create_timm(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        import crossband.shared.compat  # noqa: F401 - before timm, which imports torchvision

        import timm
    except ModuleNotFoundError as error:
        raise MissingExtraError("timm", "all") from error
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise ConfigError(f"timm has no model {name!r}.{hint}")
    try:
        return timm.create_model(name, **arguments)
    except TypeError as error:
        raise ConfigError(f"timm:{name} does not take these arguments: {error}.") from error
