"""Which parameters are trained."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from crossband.shared.errors import ConfigError


def train_only(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Freeze all parameters but those whose names match.

    Args:
        model: Network, changed in place.
        patterns: Shell patterns of parameter names, as `head.*`.

    Returns:
        Names of the parameters that are trained.

    Raises:
        ConfigError: a pattern that matches nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"No parameter of {type(model).__name__} matches {pattern!r}.")
    chosen = [name for name in names if any(fnmatchcase(name, p) for p in patterns)]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return chosen


def linear_probe(model: nn.Module, head: str = "head") -> list[str]:
    """Train the head alone; batch norms of all else keep their statistics in training too.

    Args:
        model: Network, changed in place.
        head: Name of the module that is trained.

    Returns:
        Names of the parameters that are trained.

    Raises:
        ConfigError: no such module, or one without parameters.
    """
    chosen = train_only(model, [f"{head}.*"])
    for name, module in model.named_modules():
        if not f"{name}.".startswith(f"{head}."):
            _keep_statistics(module)
    return chosen


def freeze(module: nn.Module) -> None:
    """Train nothing of a part of a network; its batch norms keep their statistics in training too.

    Args:
        module: The part, changed in place.
    """
    module.requires_grad_(False)
    for part in module.modules():
        _keep_statistics(part)


def _keep_statistics(module: nn.Module) -> None:
    if isinstance(module, _BatchNorm):
        module.eval()
        if not isinstance(module, _Frozen):
            module.__class__ = _frozen(type(module))


class _Frozen:
    """Mixed in before a batch norm, which then stays in evaluation."""

    def train(self, mode: bool = True) -> Any:
        return super().train(False)

    def __reduce__(self) -> tuple:  # pickle and copy find no class that was made at run time
        return _restore, (type(self).__bases__[1],), self.__dict__


@cache
def _frozen(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (_Frozen, kind), {})


def _restore(kind: type[nn.Module]) -> nn.Module:
    frozen = _frozen(kind)
    return frozen.__new__(frozen)
