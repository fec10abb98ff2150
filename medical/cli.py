"""The verbs of `crossband medical`."""

from __future__ import annotations

from collections.abc import Sequence

from crossband.shared.cli.domain import Domain, Verb
from crossband.shared.cli.main import run_domain

_HERE = "crossband.medical"

DOMAIN = Domain(
    name="medical",
    summary="read chest X-rays: findings and masks; pre-train networks for it",
    verbs={
        "data make": Verb(
            config=f"{_HERE}.config:MakeConfig",
            run=f"{_HERE}.data.synthetic:run",
            summary="write chest phantoms with findings, as NIH has its files or as DICOM",
            examples=("crossband medical data make --out phantoms/ --count 120",),
        ),
        "data check": Verb(
            config=f"{_HERE}.config:CheckConfig",
            run=f"{_HERE}.data.check:run",
            summary="look at data before training: patients, leaks, prevalence, broken files",
            examples=("crossband medical data check --data.root nih/",),
        ),
        "data contamination": Verb(
            config=f"{_HERE}.config:ContaminationConfig",
            run=f"{_HERE}.data.contamination:run",
            summary="compare test data with what a network was pre-trained on; 1 if some was seen",
            examples=(
                "crossband medical data contamination files_split/Kvasir.json "
                "--against lvm-med-training-data/",
                "crossband medical data contamination my_test/ --against kvasir/images/ "
                "--out pairs.csv",
            ),
            positional="tested",
        ),
        "pretrain": Verb(
            config=f"{_HERE}.pretraining.config:PretrainConfig",
            run=f"{_HERE}.pretraining.training:pretrain",
            summary="pre-train a network without labels: masked images, or matching of views",
            examples=(
                "crossband medical pretrain --recipe xray --data.root nih/ --data.root chexpert/",
                "crossband medical pretrain --method cnn-mae --model densenet121 --data.root nih/",
                "crossband medical pretrain --recipe lvm_med_r50 --data.root ct/ --data.root xray/",
            ),
            recipes=(f"{_HERE}.pretraining", f"{_HERE}.lvm_med"),
        ),
        "train": Verb(
            config=f"{_HERE}.config:TrainConfig",
            run=f"{_HERE}.training:train",
            summary="train a network for findings or masks: the whole of it, or a few parameters",
            examples=(
                "crossband medical train --recipe nih --weights mae.safetensors --data.root nih/",
                "crossband medical train --recipe lungs --weights small.safetensors "
                "--data.root cxr/",
            ),
            recipes=(f"{_HERE}.chest_mae", f"{_HERE}.lvm_med.downstream"),
        ),
        "evaluate": Verb(
            config=f"{_HERE}.config:EvaluateConfig",
            run=f"{_HERE}.evaluation:evaluate",
            summary="score: AUROC and AUPRC with intervals, calibration, subgroups; Dice of masks",
            examples=("crossband medical evaluate --weights best.safetensors --data.root nih/",),
        ),
        "predict": Verb(
            config=f"{_HERE}.config:PredictConfig",
            run=f"{_HERE}.predict:predict",
            summary="read studies: a csv of findings and heatmaps, or masks",
            examples=(
                "crossband medical predict studies/ --weights best.safetensors --out findings.csv "
                "--heatmaps",
            ),
            positional="inputs",
        ),
        "export": Verb(
            config=f"{_HERE}.config:ExportConfig",
            run=f"{_HERE}.export:export",
            summary="write ONNX, .pt2 or a MONAI bundle, checked against PyTorch",
            examples=(
                "crossband medical export --weights best.safetensors --format monai-bundle "
                "--out chest_bundle/",
            ),
        ),
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `crossband-medical`."""
    return run_domain(DOMAIN, argv)
