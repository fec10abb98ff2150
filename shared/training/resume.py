"""The options of a run that is gone on with."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from crossband.shared.cli.domain import Verb
from crossband.shared.cli.parser import parse
from crossband.shared.errors import ConfigError
from crossband.shared.training.run_folder import RunFolder

Options = TypeVar("Options")
# How to print and where to compute may change; everything else is as the run began.
_KEPT = ("resume", "device", "quiet", "json", "debug", "dry_run")


def stored_options(verb: Verb, folder: RunFolder, given: Options) -> Options:
    """Return the run's own options, with those of `given` that may change.

    Args:
        verb: What the run is one of.
        folder: Its folder, which holds config.yaml.
        given: Options of the command line.

    Raises:
        ConfigError: a run of another command.
    """
    try:
        stored = parse(verb, ["--config", str(folder.config)])
    except ConfigError as error:
        raise ConfigError(
            f"--resume {folder.path}: the options of that run are not those of this command (it "
            f"is a run of another one, or of another version): {error}"
        ) from error
    return replace(stored, **{name: getattr(given, name) for name in _KEPT})
