"""Models of the domain by name, and the adapters of its golden numbers. Torch-free."""

from __future__ import annotations

from crossband.shared.registry import ModelEntry

MODELS: tuple[ModelEntry, ...] = ()
CONFORMANCE = {
    "predformer": "crossband.spatiotemporal.predformer.conformance:run",
    "spatiotemporal_metrics": "crossband.spatiotemporal.conformance:run",
}
