"""Rules that the commands of every domain keep; new domains are found by themselves."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest

from crossband.apps.main import EXAMPLES, commands, main
from crossband.shared.cli.domain import Domain, Verb
from crossband.shared.cli.help import group_help, umbrella_help, verb_help
from crossband.shared.cli.options import options_of
from crossband.shared.cli.parser import parse

COMMANDS = {name: load() for name, load in commands().items()}
VERBS = {
    " ".join((command, *name)): verb
    for command, loaded in COMMANDS.items()
    for name, verb in (
        [((n,), v) for n, v in loaded.verbs.items()]
        if isinstance(loaded, Domain)
        else [((), loaded)]
    )
}


def fits_a_screen(text: str) -> bool:
    lines = text.splitlines()
    return len(lines) <= 40 and max(map(len, lines)) <= 100


@pytest.mark.parametrize("name", VERBS)
def test_help_of_every_verb_fits_a_screen_and_ends_with_examples(name: str) -> None:
    text = verb_help(f"crossband {name}", VERBS[name])
    assert fits_a_screen(text), text
    assert VERBS[name].examples
    assert text.splitlines()[-1].strip() == VERBS[name].examples[-1]


@pytest.mark.parametrize("name", VERBS)
def test_the_whole_help_names_every_option_in_its_width(name: str) -> None:
    text = verb_help(f"crossband {name}", VERBS[name], everything=True)
    assert max(map(len, text.splitlines())) <= 100
    words = " ".join(text.lower().replace("_", "-").split())
    for option in options_of(VERBS[name].config_class()):
        assert option.name.lower().replace("_", "-") in words


@pytest.mark.parametrize("name", VERBS)
def test_every_option_says_what_it_is(name: str) -> None:
    silent = [o.name for o in options_of(VERBS[name].config_class()) if not o.help]
    assert silent == []


@pytest.mark.parametrize("name", VERBS)
def test_examples_of_every_verb_parse(name: str) -> None:
    for example in VERBS[name].examples:
        words = shlex.split(example)
        command = ["crossband", *name.split()]
        assert words[: len(command)] == command
        parse(VERBS[name], words[len(command) :])


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_fits_a_screen(name: str) -> None:
    command = COMMANDS[name]
    if isinstance(command, Domain):
        assert fits_a_screen(group_help(f"crossband {name}", command))


def test_umbrella_help_fits_a_screen_and_its_examples_exist() -> None:
    assert fits_a_screen(umbrella_help(COMMANDS, EXAMPLES))
    for example in EXAMPLES:
        command, *rest = shlex.split(example)[1:]
        loaded = COMMANDS[command]
        assert isinstance(loaded, Verb) or rest[0] in loaded.verbs


def test_no_arguments_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.rstrip() == umbrella_help(COMMANDS, EXAMPLES)


def test_help_imports_nothing_heavy() -> None:
    """Everything that must answer at once, in one fresh process."""
    lines = [["--help"], ["models", "list"], ["--version"]]
    lines += [[*name.split(), "--help"] for name in VERBS]
    lines += [[name, "--help"] for name in COMMANDS]
    lines += [["models", "lst"], ["models", "list", "--bad"]]
    code = (
        "import sys, json; from crossband.apps.main import main\n"
        "[main(line) for line in json.loads(sys.argv[1])]\n"
        "heavy = {'torch', 'lightning', 'xarray', 'numpy', 'timm', 'matplotlib', 'pandas'}\n"
        "found = heavy & sys.modules.keys()\n"
        "sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(lines)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
