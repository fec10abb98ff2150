"""The one exception that users see, and the exit codes of every command.

A `CrossbandError` is one sentence that names the thing, the value and the remedy. The command
line prints it without a traceback (`--debug` shows one) and exits with `exit_code`.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

EXIT_OK = 0
EXIT_FAILED = 1  # a check that ran to its end and failed (models verify, data check)
EXIT_USAGE = 2  # bad input: options, data, checkpoints
EXIT_PARTIAL = 3  # a folder was processed but some files were broken
EXIT_INTERRUPTED = 130  # Ctrl-C; the run can be resumed


class CrossbandError(Exception):
    """Bad input or a broken file, told in one sentence with the remedy."""

    exit_code = EXIT_USAGE


class ConfigError(CrossbandError):
    """An option or a combination of options that cannot work."""


class DataError(CrossbandError):
    """Data that cannot be read or does not fit."""


class CheckpointError(CrossbandError):
    """A checkpoint that is missing, foreign, corrupt or unsafe."""


class MissingExtraError(CrossbandError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        """Name the missing package and the pip command that installs it."""
        super().__init__(
            f"This needs the package '{package}', which is not installed: "
            f"run `pip install 'crossband[{extra}]'`."
        )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x' or 'y'?` for near names, else an empty string."""
    near = get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
