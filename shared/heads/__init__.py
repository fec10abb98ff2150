"""Heads that turn the maps of a backbone into classes of pixels."""

from __future__ import annotations

from crossband.shared.heads.fcn import FCNHead
from crossband.shared.heads.upernet import UPerHead

__all__ = ["FCNHead", "UPerHead"]
