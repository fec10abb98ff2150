"""`crossband`: one command over all domains, found through the entry points of the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from crossband.shared.cli.bundle import BUNDLE
from crossband.shared.cli.domain import Domain, Verb, load_object
from crossband.shared.cli.env import ENV
from crossband.shared.cli.main import run_umbrella
from crossband.shared.cli.models import MODELS
from crossband.shared.registry import domain_packages

DEMO = Verb(
    config="crossband.apps.config:DemoConfig",
    run="crossband.apps.demo:run",
    summary="the main jobs on data that it makes, from training to one HTML report",
    examples=("crossband demo", "crossband demo --out my-demo/ --minutes 3"),
)
EXAMPLES = (
    "crossband demo",
    'crossband models list "predformer*"',
    "crossband spatiotemporal train --help",
    "crossband low-light predict --help",
    "crossband infrared train --help",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `crossband <argv>` and return the exit code."""
    return run_umbrella(commands, EXAMPLES, argv)


def commands() -> Mapping[str, Callable[[], Domain | Verb]]:
    """Return the commands by name, each with the function that loads it."""
    loaders: dict[str, Callable[[], Domain | Verb]] = {
        name: partial(load_object, f"{package}.cli:DOMAIN")
        for name, package in domain_packages().items()
    }
    own: dict[str, Domain | Verb] = {"bundle": BUNDLE, "models": MODELS, "env": ENV, "demo": DEMO}
    for name, command in own.items():
        loaders[name] = lambda command=command: command
    return loaders


if __name__ == "__main__":
    raise SystemExit(main())
