"""Rivals that people would pick instead of a network: persistence, climatology, ridge."""

from __future__ import annotations

from crossband.shared.errors import ConfigError, did_you_mean
from crossband.spatiotemporal.baselines.base import Baseline
from crossband.spatiotemporal.baselines.climatology import HourOfDayClimatology
from crossband.spatiotemporal.baselines.persistence import Persistence
from crossband.spatiotemporal.baselines.ridge import Ridge

BASELINES = {b.name: b for b in (Persistence, HourOfDayClimatology, Ridge)}

__all__ = ["BASELINES", "Baseline", "create_baseline"]


def create_baseline(name: str) -> Baseline:
    """Return an unfitted baseline by name.

    Raises:
        ConfigError: unknown name.
    """
    if name not in BASELINES:
        known = ", ".join(BASELINES)
        raise ConfigError(
            f"There is no baseline '{name}'.{did_you_mean(name, BASELINES)} Known: {known}."
        )
    return BASELINES[name]()
