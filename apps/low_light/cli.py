"""The verbs of `crossband low-light`."""

from __future__ import annotations

from collections.abc import Sequence

from crossband.shared.cli.domain import Domain, Verb
from crossband.shared.cli.main import run_domain

_HERE = "crossband.apps.low_light"

DOMAIN = Domain(
    name="low-light",
    summary="brighten photographs taken in the dark",
    verbs={
        "data make": Verb(
            config=f"{_HERE}.config:MakeConfig",
            run=f"{_HERE}.data.synthetic:run",
            summary="write pairs: photographs, and what a camera makes of them in the dark",
            examples=(
                "crossband low-light data make --out pairs/",
                "crossband low-light data make --root photos/ --camera phone --out pairs/",
            ),
        ),
        "data check": Verb(
            config=f"{_HERE}.config:CheckConfig",
            run=f"{_HERE}.data.check:run",
            summary="look at data before training: layout, sizes, darkness, broken files, doubles",
            examples=("crossband low-light data check lol/our485 --against lol/eval15",),
            positional="root",
        ),
        "train": Verb(
            config=f"{_HERE}.config:TrainConfig",
            run=f"{_HERE}.training:train",
            summary="train troublemaker, predictor and enhancer, and write a report",
            examples=(
                "crossband low-light train --recipe lol --data.paired lol/our485 "
                "--data.root photos/",
                "crossband low-light train --recipe photos --data.root photos/ --out runs/night",
            ),
            recipes=_HERE,
        ),
        "evaluate": Verb(
            config=f"{_HERE}.config:EvaluateConfig",
            run=f"{_HERE}.evaluation:evaluate",
            summary="score on pairs (PSNR, SSIM, LPIPS) or dark photographs alone (NIQE)",
            examples=(
                "crossband low-light evaluate --weights tml.safetensors --data.root lol/eval15",
                "crossband low-light evaluate --model clahe --data.root night/ --rivals gamma",
            ),
        ),
        "predict": Verb(
            config=f"{_HERE}.config:PredictConfig",
            run=f"{_HERE}.enhance:predict",
            summary="brighten photographs of any size; names, sizes and EXIF are kept",
            examples=(
                "crossband low-light predict night/ --weights tml.safetensors --out bright/ "
                "--compare",
            ),
            positional="inputs",
        ),
        "pack": Verb(
            config=f"{_HERE}.config:PackConfig",
            run=f"{_HERE}.official:pack",
            summary="join the authors' two files of weights into one checkpoint",
            examples=(
                "crossband low-light pack Pred.pth.tar Enhance.pth.tar --out tml.safetensors",
            ),
            positional=("predictor", "enhancer"),
        ),
        "export": Verb(
            config=f"{_HERE}.config:ExportConfig",
            run=f"{_HERE}.export:export",
            summary="write ONNX or .pt2, checked against PyTorch; predict takes it too",
            examples=("crossband low-light export --weights tml.safetensors --format onnx",),
        ),
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `crossband-low-light`."""
    return run_domain(DOMAIN, argv)
