"""From argv to a typed configuration: recipe < config file < flags, checked by jsonargparse."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser

from crossband.shared.cli.domain import Verb
from crossband.shared.cli.options import Option, near_names, options_of
from crossband.shared.errors import ConfigError, did_you_mean

SPECIAL = ("help", "help-all", "print_config", "version")
_VALUE_LIKE = re.compile(r"-(\.?\d.*)?$")  # "-" and negative numbers are values, not options


@dataclass
class Words:
    """An argv taken apart."""

    flags: dict[str, Any] = field(default_factory=dict)  # dotted name -> text or list of texts
    special: set[str] = field(default_factory=set)
    files: list[str] = field(default_factory=list)
    recipe: str | None = None


def parse(verb: Verb, argv: Sequence[str]) -> Any:
    """Return the configuration that `argv` describes.

    Flags override the config file, which overrides the recipe; `key=value` options are merged.
    `--print_config` prints it instead and exits (SystemExit 0), also when required options are
    still missing.

    Raises:
        ConfigError: an unknown option, a value of the wrong kind, a missing required option.
    """
    config = verb.config_class()
    options = {option.name: option for option in options_of(config)}
    words = split_words(verb, options, argv)
    files = [str(find_recipe(verb, words.recipe))] if words.recipe else []
    files += words.files
    sources = {name: _read_config(name, options) for name in files}
    flags = {name: _typed(options[name], texts) for name, texts in words.flags.items()}
    values: dict[str, Any] = {}
    for source in (*sources.values(), flags):
        for name, value in source.items():
            merge = options[name].is_dict and isinstance(value, dict)
            values[name] = {**(values.get(name) or {}), **value} if merge else value

    def explain(message: str) -> NoReturn:
        raise ConfigError(_explain(message, verb, options, flags, sources))

    parser = _Parser(explain)
    parser.add_class_arguments(config)
    arguments = [f"--{name}={_encode(value)}" for name, value in values.items()]
    if "print_config" in words.special:
        arguments.append("--print_config")
    return _build(config, parser.parse_args(arguments).as_dict())


def dump_config(config: Any) -> str:
    """Return a configuration as YAML that `--config` reads back."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def split_words(verb: Verb, options: dict[str, Option], argv: Sequence[str]) -> Words:
    """Take an argv apart: flags with their texts, bare arguments to the verb's positionals.

    Raises:
        ConfigError: an unknown option, a value missing or too many bare arguments.
    """
    spellings = {name.replace("-", "_"): name for name in (*options, *SPECIAL, "config")}
    if verb.recipe_packages:
        spellings["recipe"] = "recipe"
    words, bare, rest = Words(), [], list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            bare += rest
            break
        if not _is_option(word):
            bare.append(word)
            continue
        spelled, equals, text = word.partition("=")
        name = "help" if spelled == "-h" else _name_of(spelled, spellings, options)
        if name in SPECIAL:
            words.special.add(name)
            continue
        option = options.get(name)
        values = [text] if equals else []
        if option is not None and option.is_bool:
            if not equals:
                follows = bool(rest) and rest[0].lower() in ("true", "false")
                values = [rest.pop(0) if follows else "true"]
        elif option is not None and (option.is_list or option.is_dict):
            while not equals and rest and not _is_option(rest[0]):
                values.append(rest.pop(0))
            words.flags.setdefault(name, [])
        elif not equals and rest and not _is_option(rest[0]):
            values = [rest.pop(0)]
        if not values:
            raise ConfigError(f"{spelled} needs a value, as in {spelled} {_metavar(option)}")
        if name == "config":
            words.files += values
        elif name == "recipe":
            words.recipe = values[0]
        elif option is not None and (option.is_list or option.is_dict):
            words.flags[name] += values
        else:
            words.flags[name] = values[0]
    _assign_bare(verb, options, bare, words.flags)
    return words


def recipes_of(verb: Verb) -> dict[str, Path]:
    """Return the shipped recipes of a verb by name; `system/name` where two systems share one.

    The systems' packages are located, not imported: importing them would import torch.
    """
    found: dict[str, list[tuple[str, Path]]] = {}
    for package in verb.recipe_packages:
        spec = find_spec(package)
        for folder in spec.submodule_search_locations if spec else ():
            for path in sorted(Path(folder, "recipes").glob("*.yaml")):
                found.setdefault(path.stem, []).append((package.rpartition(".")[2], path))
    named = {}
    for name, places in found.items():
        for system, path in places:
            named[name if len(places) == 1 else f"{system}/{name}"] = path
    return named


def find_recipe(verb: Verb, name: str) -> Path:
    """Return the file of a shipped recipe.

    Raises:
        ConfigError: there is none of that name.
    """
    known = recipes_of(verb)
    if name not in known:
        near = did_you_mean(name, known) or f" There are: {', '.join(sorted(known)) or 'none'}."
        raise ConfigError(f"--recipe: no shipped recipe is called {name!r}.{near}")
    return known[name]


class _Parser(ArgumentParser):
    """jsonargparse's parser, its complaints handed to `explain`."""

    def __init__(self, explain: Any) -> None:
        # Without allow_abbrev=False `--trainer.max_epoch` would silently mean max_epochs.
        super().__init__(add_help=False, allow_abbrev=False, default_env=False)
        self._explain = explain
        self.add_argument("--config", action=ActionConfigFile)  # brings --print_config

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise our error instead of printing usage and exiting."""
        self._explain(message)


def _is_option(word: str) -> bool:
    return word.startswith("-") and not _VALUE_LIKE.match(word)


def _metavar(option: Option | None) -> str:
    return option.metavar if option is not None else "NAME"


def _name_of(spelled: str, spellings: dict[str, str], options: dict[str, Option]) -> str:
    top, dot, below = spelled[2:].partition(".")
    name = spellings.get(top.replace("-", "_") + dot + below)
    if name is None or not spelled.startswith("--"):
        known = [option.flag for option in options.values()]
        known += ["--" + name for name in spellings.values() if name not in options]
        hint = near_names(spelled, known) or " See --help-all for all options."
        raise ConfigError(f"unknown option {spelled}.{hint}")
    return name


def _assign_bare(
    verb: Verb, options: dict[str, Option], bare: list[str], flags: dict[str, Any]
) -> None:
    for name in verb.positionals:
        if bare and options[name].is_list:
            flags[name] = [*bare, *flags.get(name, [])]
            bare = []
        elif bare:
            flags[name] = bare.pop(0)
    if bare:
        takes = " ".join(name.upper() for name in verb.positionals) or "options only"
        raise ConfigError(
            f"unexpected argument {bare[0]!r}: this command takes {takes}. See --help."
        )


def _typed(option: Option, texts: str | list[str]) -> Any:
    """Read the texts of a flag as the values that a YAML file would hold."""
    if isinstance(texts, str):
        return texts
    if len(texts) == 1 and texts[0][:1] + texts[0][-1:] in ("[]", "{}"):
        return _as_texts(option, _yaml(texts[0]))
    if option.is_list:
        return [text if option.is_text else _scalar(text) for text in texts]
    pairs = {}
    for text in texts:
        key, equals, content = text.partition("=")
        if not equals:
            raise ConfigError(f"{option.flag} {text!r}: write it as KEY=VALUE.")
        words = get_args(option.type)[1:] == (str,)
        pairs[key] = content if words else _scalar(content)
    return pairs


def _encode(value: Any) -> str:
    """Write a value in the form that jsonargparse reads on a command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _as_texts(option: Option, value: Any) -> Any:
    """Undo YAML's guess that 2019 is a number, where the option takes words."""
    if isinstance(value, list):
        return [_as_texts(option, item) for item in value]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return str(value) if option.is_text and is_number else value


class _YamlLoader(yaml.SafeLoader):
    """YAML without dates, which stay as they are written."""


_YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _yaml(text: str) -> Any:
    return yaml.load(text, Loader=_YamlLoader)  # noqa: S506 - derives from SafeLoader


def _scalar(text: str) -> Any:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    try:
        return _yaml(text)
    except yaml.YAMLError:
        return text


def _read_config(name: str, options: dict[str, Option]) -> dict[str, Any]:
    """Read a YAML file into dotted names and values; refuse unknown keys, with near names."""
    try:
        content = _yaml(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {name}: {(error.strerror or str(error)).lower()}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {name} is not a text file.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise ConfigError(f"--config {name} is not valid YAML{where}: {problem}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {name}: expected 'option: value' lines, as --print_config.")
    values = {}
    for key, value in _flat(content, options).items():
        if key not in options:
            hint = near_names(key, list(options)) or " --print_config shows all keys."
            raise ConfigError(f"{name}: unknown key {key!r}.{hint}")
        if value is not None or options[key].nullable:  # `weights: null` leaves it to be given
            values[key] = _as_texts(options[key], value)
    return values


def _flat(content: dict[Any, Any], options: dict[str, Option], prefix: str = "") -> dict[str, Any]:
    """Flatten the groups of a YAML file to dotted names; values that are mappings stay whole."""
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        is_group = any(known.startswith(name + ".") for known in options)
        if is_group and isinstance(value, dict):
            values |= _flat(value, options, name + ".")
        elif not (is_group and value is None):
            values[name] = value
    return values


def _explain(
    message: str,
    verb: Verb,
    options: dict[str, Option],
    flags: dict[str, Any],
    sources: dict[str, dict[str, Any]],
) -> str:
    """Turn jsonargparse's report into one sentence."""
    if missing := re.search(r"arguments are required: (.+)", message):
        option = options[re.split(r"[,\s]+", missing[1])[0]]
        name = option.name.upper() if option.name in verb.positionals else option.flag
        return f"{name} is missing: {option.help}. See --help for examples."
    key = re.search(r'(?:Parser )?[kK]ey "([\w.]+)"', message)
    if key is None or key[1] not in options:
        return " ".join(message.split())
    option = options[key[1]]
    value = re.search(r"G(?:ot|iven) value: (.*)", message, re.DOTALL)
    given = value[1].strip() if value else "the value"
    where, expected = option.flag, option.expected
    if option.name not in flags:
        files = [name for name, values in sources.items() if option.name in values]
        where = f"{files[-1]}: {option.name}" if files else where
        if files and option.is_list and not isinstance(sources[files[-1]][option.name], list):
            expected = f"a list: write [{given}]"
    return f"{where}: {given!r} is not {expected}.{did_you_mean(given, option.choices)}"


def _build(config: type, values: dict[str, Any]) -> Any:
    """Make the dataclass, nested ones included, from plain dicts."""
    hints = get_type_hints(config)
    arguments = {}
    for item in fields(config):
        kind, value = hints[item.name], values[item.name]
        arguments[item.name] = _build(kind, value) if is_dataclass(kind) else value
    return config(**arguments)
