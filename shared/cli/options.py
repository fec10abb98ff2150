"""The fields of a configuration class, flattened to command-line options."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from crossband.shared.errors import did_you_mean

_NUMBER = {int: ("N", "a whole number"), float: ("X", "a number")}


@dataclass(frozen=True)
class Option:
    """One option: `name` is the dotted path of the field, `type` its type without `| None`."""

    name: str
    type: Any
    default: Any  # MISSING when required
    help: str
    advanced: bool
    nullable: bool = False  # the type allows None

    @property
    def flag(self) -> str:
        """Spelling in help and messages: dashes at the top level, underscores below a dot."""
        return "--" + (self.name if "." in self.name else self.name.replace("_", "-"))

    @property
    def required(self) -> bool:
        """Whether the command cannot run without it."""
        return self.default is MISSING

    @property
    def is_bool(self) -> bool:
        """Whether the flag may be given bare."""
        return self.type is bool

    @property
    def is_list(self) -> bool:
        """Whether it takes several values."""
        return get_origin(self.type) in (list, tuple)

    @property
    def is_dict(self) -> bool:
        """Whether it takes `key=value` pairs."""
        return self.type is dict or get_origin(self.type) is dict

    @property
    def is_text(self) -> bool:
        """Whether its values are words, kept as they are typed."""
        return self.element is str or bool(self.choices)

    @property
    def element(self) -> Any:
        """Type of one value of a list."""
        return (get_args(self.type) or (str,))[0] if self.is_list else self.type

    @property
    def choices(self) -> tuple[str, ...]:
        """Accepted words, empty when free."""
        is_literal = get_origin(self.element) is Literal
        return tuple(map(str, get_args(self.element))) if is_literal else ()

    @property
    def metavar(self) -> str:
        """Placeholder of the value in help."""
        if self.is_bool:
            return ""
        if self.is_dict:
            return "KEY=VALUE ..."
        one = "{" + ",".join(self.choices) + "}" if self.choices else ""
        one = one or _NUMBER.get(self.element, ("TEXT", ""))[0]
        return f"{one} ..." if self.is_list else one

    @property
    def expected(self) -> str:
        """What one value must be, in words."""
        if self.is_bool:
            return "true or false"
        if self.is_dict:
            return "a set of KEY=VALUE pairs"
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        return _NUMBER.get(self.element, ("", "a text"))[1]


def options_of(config: type, prefix: str = "", advanced: bool = False) -> Iterator[Option]:
    """Yield the options of a configuration dataclass, nested ones with dotted names."""
    hints = get_type_hints(config)
    for item in fields(config):
        name, kind = prefix + item.name, _without_none(hints[item.name])
        hidden = advanced or bool(item.metadata.get("advanced"))
        if is_dataclass(kind):
            yield from options_of(kind, name + ".", hidden)
            continue
        default = item.default
        if item.default_factory is not MISSING:
            default = item.default_factory()
        nullable = type(None) in get_args(hints[item.name])
        yield Option(name, kind, default, item.metadata.get("help", ""), hidden, nullable)


def near_names(name: str, known: list[str]) -> str:
    """Suggest what `name` may have meant: the same last part first, then similar spellings."""
    last = name.rpartition(".")[2].lstrip("-").replace("-", "_")
    near = [k for k in known if k.rpartition(".")[2].lstrip("-").replace("-", "_") == last]
    near = near or get_close_matches(name, known, n=2, cutoff=0.8)
    return did_you_mean(near[0], near) if near else did_you_mean(name, known)


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        rest = [part for part in get_args(kind) if part is not type(None)]
        return rest[0] if len(rest) == 1 else kind
    return kind
