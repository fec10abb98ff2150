"""What a domain tells the command line about itself: verbs, their options and their functions.

Everything here is names ("package.module:object"); nothing is imported before it is needed, so
that `--help` never waits for torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from crossband.shared.errors import MissingExtraError


@dataclass(frozen=True)
class Verb:
    """One command: a configuration class, a function that takes it, and how help shows it."""

    config: str | type  # dataclass deriving from OutputOptions, or "module:Class"
    run: str  # "module:function", imported after parsing; run(config) -> exit code or None
    summary: str
    examples: tuple[str, ...]  # whole command lines; the tests parse them
    positional: str | tuple[str, ...] | None = None  # fields that take the bare arguments, in order
    recipes: str | tuple[str, ...] | None = None  # packages whose recipes/*.yaml --recipe chooses

    @property
    def positionals(self) -> tuple[str, ...]:
        """Fields that take the bare arguments, in order."""
        return _as_tuple(self.positional)

    @property
    def recipe_packages(self) -> tuple[str, ...]:
        """Packages whose recipes this verb accepts."""
        return _as_tuple(self.recipes)

    def config_class(self) -> type:
        """Import and return the dataclass of the options."""
        return load_object(self.config) if isinstance(self.config, str) else self.config


@dataclass(frozen=True)
class Domain:
    """A group of verbs: `crossband <name> <verb> ...`; two-word verbs are keys: "data check"."""

    name: str
    summary: str
    verbs: dict[str, Verb] = field(default_factory=dict)


def load_object(target: str) -> Any:
    """Import "package.module:name".

    Raises:
        MissingExtraError: the module needs a package that is not installed.
    """
    module, _, name = target.partition(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "crossband"):
            raise
        raise MissingExtraError(package, "all") from error


def _as_tuple(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value
