"""What every domain of crossband stands on; nothing here knows a domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossband.shared.inference import load as load
    from crossband.shared.registry import create_model as create_model
    from crossband.shared.registry import list_models as list_models
    from crossband.shared.registry import model_info as model_info

_EXPORTS = {
    "load": "crossband.shared.inference",
    "create_model": "crossband.shared.registry",
    "list_models": "crossband.shared.registry",
    "model_info": "crossband.shared.registry",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    """Import the public functions on first use, so that `crossband --help` needs no torch."""
    if name in _EXPORTS:
        from importlib import import_module

        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
