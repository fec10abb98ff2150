"""The verbs of `crossband spatiotemporal`."""

from __future__ import annotations

from collections.abc import Sequence

from crossband.shared.cli.domain import Domain, Verb
from crossband.shared.cli.main import run_domain

_HERE = "crossband.spatiotemporal"

DOMAIN = Domain(
    name="spatiotemporal",
    summary="forecast gridded fields: weather, traffic, video",
    verbs={
        "data make": Verb(
            config=f"{_HERE}.config:MakeConfig",
            run=f"{_HERE}.data.synthetic:run",
            summary="write a small simulated weather data set, to try everything without data",
            examples=("crossband spatiotemporal data make --out toy/ --hours 720",),
        ),
        "data check": Verb(
            config=f"{_HERE}.config:CheckConfig",
            run=f"{_HERE}.data.check:run",
            summary="look at a data set before training: files, times, gaps, values, splits",
            examples=(
                "crossband spatiotemporal data check --data.root era5/ --data.variables t2m",
            ),
        ),
        "train": Verb(
            config=f"{_HERE}.config:TrainConfig",
            run=f"{_HERE}.training:train",
            summary="train a network to forecast, score it, and write a report",
            examples=(
                "crossband spatiotemporal train --recipe weather --data.root era5/ "
                "--data.variables t2m",
                "crossband spatiotemporal train --resume runs/predformer-20190301-120000",
            ),
            recipes=f"{_HERE}.predformer",
        ),
        "evaluate": Verb(
            config=f"{_HERE}.config:EvaluateConfig",
            run=f"{_HERE}.evaluation:evaluate",
            summary="score forecasts by lead time beside persistence, climatology and ridge",
            examples=(
                "crossband spatiotemporal evaluate --weights runs/x/best.safetensors "
                "--data.root era5/",
            ),
        ),
        "predict": Verb(
            config=f"{_HERE}.config:PredictConfig",
            run=f"{_HERE}.forecast:predict",
            summary="forecast from the last frames of files, to NetCDF",
            examples=(
                "crossband spatiotemporal predict 2019-03.nc --weights best.safetensors "
                "--out f.nc --plot f.gif",
            ),
            positional="inputs",
        ),
        "export": Verb(
            config=f"{_HERE}.config:ExportConfig",
            run=f"{_HERE}.export:export",
            summary="write ONNX or .pt2, checked against PyTorch; predict takes it too",
            examples=(
                "crossband spatiotemporal export --weights runs/x/best.safetensors --format onnx",
            ),
        ),
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `crossband-spatiotemporal`."""
    return run_domain(DOMAIN, argv)
