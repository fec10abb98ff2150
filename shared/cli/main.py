"""Dispatch: find the verb, parse its options, run it, turn every failure into one sentence."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

from crossband import __version__
from crossband.shared.cli.domain import Domain, Verb, load_object
from crossband.shared.cli.help import group_help, umbrella_help, verb_help
from crossband.shared.cli.options import options_of
from crossband.shared.cli.parser import parse, split_words
from crossband.shared.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    ConfigError,
    CrossbandError,
    did_you_mean,
)

EXIT_BROKEN_PIPE = 141  # what a shell reports for a program ended by SIGPIPE


def run_domain(domain: Domain, argv: Sequence[str] | None = None) -> int:
    """Run `crossband-<domain> <argv>` and return the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    return guarded(lambda: _run_group(f"crossband {domain.name}", domain, words), words)


def run_umbrella(
    commands: Callable[[], Mapping[str, Callable[[], Domain | Verb]]],
    examples: tuple[str, ...],
    argv: Sequence[str] | None = None,
) -> int:
    """Run `crossband <argv>` and return the exit code.

    Args:
        commands: Gives the commands by name, each with a function that loads it; only the one
            that is asked for is loaded.
        examples: Command lines at the end of the help.
        argv: Words after `crossband`; those of the process when None.
    """
    words = sys.argv[1:] if argv is None else list(argv)

    def run() -> int:
        if words[:1] == ["--version"]:
            print(f"crossband {__version__}")
            return EXIT_OK
        known = commands()
        if not words or words[0] in ("-h", "--help", "--help-all"):
            print(umbrella_help({name: load() for name, load in known.items()}, examples))
            return EXIT_OK
        name, *rest = words
        if name not in known:
            hint = did_you_mean(name, known) or f" There are: {', '.join(known)}."
            raise ConfigError(f"unknown command {name!r}.{hint}")
        command = known[name]()
        if isinstance(command, Verb):
            return _run_verb(f"crossband {name}", command, rest)
        return _run_group(f"crossband {name}", command, rest)

    return guarded(run, words)


def guarded(run: Callable[[], int], words: Sequence[str]) -> int:
    """Call `run` and turn what it raises into a sentence on stderr and an exit code."""
    debug = "--debug" in words
    try:
        code = run()
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # --print_config
        return stop.code if isinstance(stop.code, int) else EXIT_OK
    except BrokenPipeError:
        # The reader (head, less) has gone; give the interpreter's last flush somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except (KeyboardInterrupt, Exception) as error:
        if debug:
            traceback.print_exc()
        sentence, code = describe(error)
        print(f"crossband: {sentence}", file=sys.stderr)
        return code


def describe(error: BaseException) -> tuple[str, int]:
    """Return the sentence and the exit code for an exception."""
    text = " ".join(str(error).split())
    if isinstance(error, CrossbandError):
        return f"error: {text}", error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return text or "interrupted.", EXIT_INTERRUPTED
    if isinstance(error, OSError) and error.errno is not None:
        place = f"{error.filename}: " if error.filename else ""
        remedy = "free some space and run again." if error.errno == errno.ENOSPC else ""
        remedy = remedy or "check the path and its permissions."
        return f"error: {place}{(error.strerror or text).lower()}; {remedy}", EXIT_USAGE
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "error: out of memory; use a smaller batch, model or input.", EXIT_FAILED
    return (
        f"internal error: {type(error).__name__}: {text[:300]} "
        "(run again with --debug for the traceback).",
        EXIT_FAILED,
    )


def _run_group(prog: str, domain: Domain, words: list[str]) -> int:
    if words[:1] == ["--version"]:
        print(f"crossband {__version__}")
        return EXIT_OK
    if not words or words[0] in ("-h", "--help", "--help-all"):
        print(group_help(prog, domain))
        return EXIT_OK
    for length in (2, 1):
        name = " ".join(words[:length])
        if len(words) >= length and name in domain.verbs:
            return _run_verb(f"{prog} {name}", domain.verbs[name], words[length:])
    below = {n: verb for n, verb in domain.verbs.items() if n.startswith(words[0] + " ")}
    if below and (len(words) == 1 or words[1] in ("-h", "--help", "--help-all")):
        print(group_help(prog, Domain(domain.name, domain.summary, below)))
        return EXIT_OK
    name = " ".join(words[:2]) if below else words[0]
    hint = did_you_mean(name, domain.verbs) or f" There are: {', '.join(domain.verbs)}."
    raise ConfigError(f"{prog}: unknown verb {name!r}.{hint}")


def _run_verb(prog: str, verb: Verb, words: list[str]) -> int:
    options = {option.name: option for option in options_of(verb.config_class())}
    special = split_words(verb, options, words).special
    if special & {"help", "help-all"}:
        print(verb_help(prog, verb, everything="help-all" in special))
        return EXIT_OK
    if "version" in special:
        print(f"crossband {__version__}")
        return EXIT_OK
    config = parse(verb, words)
    code = load_object(verb.run)(config)
    return EXIT_OK if code is None else code
