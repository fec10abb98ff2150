"""Help that fits one screen, made from the fields of the configuration class."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import MISSING

from crossband import __version__
from crossband.shared.cli.domain import Domain, Verb
from crossband.shared.cli.options import Option, options_of
from crossband.shared.cli.parser import recipes_of

WIDTH = 100


def verb_help(prog: str, verb: Verb, *, everything: bool = False) -> str:
    """Return the help of one command; `everything` adds the advanced options."""
    options = list(options_of(verb.config_class()))
    positional = [option for option in options if option.name in verb.positionals]
    usage = " ".join([prog, *(_usage_word(option) for option in positional), "[--option ...]"])
    rows = [(_bare_name(option), _describe(option)) for option in positional]
    shown = [o for o in options if o not in positional and (everything or not o.advanced)]
    rows += [(f"{o.flag} {o.metavar}".rstrip(), _describe(o)) for o in shown if "." not in o.name]
    if recipes := recipes_of(verb):
        rows.append(("--recipe NAME", f"shipped settings: {', '.join(sorted(recipes))}"))
    over = ", it overrides the recipe" if recipes else ""
    rows.append(("--config FILE", f"settings in YAML; flags override it{over}"))
    rows += [(f"{o.flag} {o.metavar}".rstrip(), _describe(o)) for o in shown if "." in o.name]
    more = ["--print_config shows the settings as YAML"]
    if not everything and len(shown) + len(positional) < len(options):
        more.insert(0, "--help-all lists all options")
    return "\n".join(
        [
            f"usage: {usage}",
            *textwrap.wrap(verb.summary, WIDTH),
            "",
            *_table(rows),
            "; ".join(more) + ".",
            "",
            "examples:",
            *(f"  {example}" for example in verb.examples),
        ]
    )


def group_help(prog: str, domain: Domain) -> str:
    """Return the help of a domain: its verbs, and one example of each of the first four."""
    examples = [verb.examples[0] for verb in domain.verbs.values() if verb.examples]
    return "\n".join(
        [
            f"usage: {prog} <verb> [--option ...]",
            *textwrap.wrap(domain.summary, WIDTH),
            "",
            *_table([(name, verb.summary) for name, verb in domain.verbs.items()]),
            f"{prog} <verb> --help explains a verb.",
            "",
            "examples:",
            *(f"  {example}" for example in examples[:4]),
        ]
    )


def umbrella_help(commands: Mapping[str, Domain | Verb], examples: tuple[str, ...]) -> str:
    """Return the help of `crossband` itself."""
    rows = [(name, command.summary) for name, command in commands.items()]
    return "\n".join(
        [
            "usage: crossband <command> [<verb>] [--option ...]",
            f"crossband {__version__}: applied computer vision beyond everyday photos.",
            "",
            *_table(rows),
            "crossband <command> --help explains a command; --version prints the version.",
            "",
            "examples:",
            *(f"  {example}" for example in examples),
        ]
    )


def _bare_name(option: Option) -> str:
    return option.name.rpartition(".")[2].upper()


def _usage_word(option: Option) -> str:
    word = _bare_name(option) + (" ..." if option.is_list else "")
    return word if option.required else f"[{word}]"


def _describe(option: Option) -> str:
    if option.required:
        return f"{option.help} (required)"
    if option.default in (None, "", False, MISSING) or option.default in ([], {}, ()):
        return option.help
    shown = option.default
    if isinstance(shown, (list, tuple)):
        shown = " ".join(map(str, shown))
    return f"{option.help} (default {'true' if shown is True else shown})"


def _table(rows: list[tuple[str, str]]) -> list[str]:
    left = min(max((len(name) for name, _ in rows), default=0), 28)  # longer names overhang
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, WIDTH - left - 4) or [""]
        if len(name) > WIDTH - left - 4:  # many choices: lines of their own
            lines += textwrap.wrap(
                name.replace(",", ", "),
                WIDTH,
                initial_indent="  ",
                subsequent_indent=" " * 6,
                break_long_words=False,
            )
            wrapped = ["", *wrapped]
        elif len(name) > left:
            wrapped = textwrap.wrap(text, WIDTH - len(name) - 4) or [""]
            lines.append(f"  {name}  {wrapped[0]}".rstrip())
        else:
            lines.append(f"  {name:<{left}}  {wrapped[0]}".rstrip())
        lines += [" " * (left + 4) + line for line in wrapped[1:]]
    return lines
