"""`crossband env`: what is installed and what it runs on."""

from __future__ import annotations

import shutil

from crossband.shared.cli.config import EnvConfig
from crossband.shared.cli.domain import Verb
from crossband.shared.cli.output import format_table, print_json

ENV = Verb(
    config="crossband.shared.cli.config:EnvConfig",
    run="crossband.shared.cli.env:run",
    summary="versions, processor and accelerator, to paste into a bug report",
    examples=("crossband env", "crossband env --json"),
)


def run(config: EnvConfig) -> None:
    """Print the environment."""
    import torch

    from crossband.shared.environment import machine, versions
    from crossband.shared.registry import domain_packages

    facts = {
        **versions(),
        "machine": machine(),
        "torch threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else "not available",
        "C++ compiler": shutil.which("c++") or shutil.which("g++") or "not found",
        "domains": ", ".join(domain_packages()),
    }
    if config.json:
        print_json(facts)
    else:
        print(format_table(("item", "value"), list(facts.items())))
