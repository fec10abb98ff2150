"""The verbs of `crossband infrared`."""

from __future__ import annotations

from collections.abc import Sequence

from crossband.shared.cli.domain import Domain, Verb
from crossband.shared.cli.main import run_domain

_HERE = "crossband.infrared"

DOMAIN = Domain(
    name="infrared",
    summary="segment thermal and infrared images; pre-train networks for it",
    verbs={
        "data make": Verb(
            config=f"{_HERE}.config:MakeConfig",
            run=f"{_HERE}.data.synthetic:run",
            summary="write thermal scenes rendered by temperature, with their masks",
            examples=("crossband infrared data make --out scenes/ --count 60",),
        ),
        "data check": Verb(
            config=f"{_HERE}.config:CheckConfig",
            run=f"{_HERE}.data.check:run",
            summary="look at data before training: pairs, sizes, classes, statistics, broken files",
            examples=("crossband infrared data check --data.root sirst_v2/",),
        ),
        "analyse": Verb(
            config=f"{_HERE}.unip.config:AnalyseConfig",
            run=f"{_HERE}.unip.analyse:run",
            summary="measure a ViT's attention layer by layer (NMI, distance, pattern, CKA)",
            examples=("crossband infrared analyse --weights mae_large.pth --data.root frames/",),
        ),
        "pretrain": Verb(
            config=f"{_HERE}.pretraining.config:PretrainConfig",
            run=f"{_HERE}.pretraining.training:pretrain",
            summary="pre-train without labels: UNIP's distillation, MAE, G2SD, MultiMAE, ...",
            examples=(
                "crossband infrared pretrain --recipe tiny_mae --data.root frames/ --out runs/mae",
                "crossband infrared pretrain --method unip --teacher mae_l.pth --data.root frames/",
            ),
            recipes=f"{_HERE}.pretraining",
        ),
        "train": Verb(
            config=f"{_HERE}.config:TrainConfig",
            run=f"{_HERE}.training:train",
            summary="train a segmentation network: UNIP with LL-FPN, a linear probe, or a rival",
            examples=(
                "crossband infrared train --recipe sirst --weights unip_s.pth --data.root sirst/",
                "crossband infrared train --recipe sirst_unet --data.root sirst/",
            ),
            recipes=f"{_HERE}.unip",
        ),
        "evaluate": Verb(
            config=f"{_HERE}.config:EvaluateConfig",
            run=f"{_HERE}.evaluation:evaluate",
            summary="score on labelled images: IoU, accuracy, F-score; Pd and Fa of small targets",
            examples=(
                "crossband infrared evaluate --weights best.safetensors --data.root sirst_v2/",
            ),
        ),
        "predict": Verb(
            config=f"{_HERE}.config:PredictConfig",
            run=f"{_HERE}.segment:predict",
            summary="segment images, folders, videos or pages of a TIFF: masks and overlays",
            examples=(
                "crossband infrared predict frames/ --weights best.safetensors --out masks/",
            ),
            positional="inputs",
        ),
        "compress": Verb(
            config=f"{_HERE}.pretraining.config:CompressConfig",
            run=f"{_HERE}.pretraining.compression:compress",
            summary="replace a pre-trained ViT's linear layers by low-rank ones (PELA)",
            examples=(
                "crossband infrared compress --weights unip_s.pth --data.root frames/ "
                "--out half.safetensors",
            ),
        ),
        "export": Verb(
            config=f"{_HERE}.config:ExportConfig",
            run=f"{_HERE}.export:export",
            summary="write ONNX or .pt2, checked against PyTorch; predict takes it too",
            examples=("crossband infrared export --weights best.safetensors --format onnx",),
        ),
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `crossband-infrared`."""
    return run_domain(DOMAIN, argv)
