"""Options of the umbrella's own commands. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from crossband.shared.config import OutputOptions, option


@dataclass(kw_only=True)
class DemoConfig(OutputOptions):
    """Options of `crossband demo`."""

    out: str = option("demo", "folder for the data, the run and the report")
    minutes: float = option(1.0, "minutes of training")
