"""Models of the domain by name, and the adapters of its golden numbers. Torch-free."""

from __future__ import annotations

from typing import Any

from crossband.shared.registry import ModelEntry

_HERE = "crossband.apps.low_light"
_TASK = "enhancement"
_PAPER = "Troublemaker Learning for Low-Light Image Enhancement, arXiv 2402.04584"


def _ugdc(name: str, target: str, summary: str, **details: Any) -> ModelEntry:
    return ModelEntry(
        name=name,
        target=f"{_HERE}.model:{target}",
        task=_TASK,
        summary=summary,
        paper=_PAPER,
        licence="Apache-2.0 (our code)",
        weights="the authors' cloud drive, no licence stated; see docs/weights.md",
        official=f"{_HERE}.official:from_official",
        input_shape=(3, 400, 640),
        **details,
    )


MODELS: tuple[ModelEntry, ...] = (
    _ugdc("tml", "TML", "PM and EM together, as published: 400 x 640"),
    _ugdc("ugdc", "UGDC", "the predicting network PM, stem 64", arguments={"stem": 64}),
    _ugdc("ugdc_enhance", "UGDC", "the enhancing network EM, stem 32", arguments={"stem": 32}),
    ModelEntry(
        name="zero_dce",
        target=f"{_HERE}.baselines.zero_dce:ZeroDCE",
        task=_TASK,
        summary="rival: curves chosen per pixel, any size",
        paper="Guo et al. 2020, Zero-DCE, arXiv 2001.06826",
        licence="Apache-2.0 (our code); the authors' weights CC BY-NC 4.0",
        weights="Epoch99.pth in the authors' repository",
        official=f"{_HERE}.baselines.official:from_official",
        input_shape=(3, 400, 600),
    ),
    ModelEntry(
        name="sci",
        target=f"{_HERE}.baselines.sci:SCI",
        task=_TASK,
        summary="rival: illumination by 258 parameters, any size",
        paper="Ma et al. 2022, SCI, arXiv 2204.10137",
        licence="Apache-2.0 (our code); the authors' weights MIT",
        weights="easy.pt, medium.pt, difficult.pt in the authors' repository",
        official=f"{_HERE}.baselines.official:from_official",
        input_shape=(3, 400, 600),
    ),
)
CONFORMANCE = {
    "gdc": f"{_HERE}.conformance:gdc",
    "ugdc": f"{_HERE}.conformance:ugdc",
    "tml_pipeline": f"{_HERE}.conformance:tml_pipeline",
    "zero_dce_sci": f"{_HERE}.conformance:zero_dce_sci",
}
LOADERS = {_TASK: f"{_HERE}.enhance:Enhancer"}
