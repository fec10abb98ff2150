"""The report of a training run: curves, scores on the validation photographs, pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossband.apps.low_light.baselines import create_rival
from crossband.apps.low_light.config import SizeConfig, TrainConfig
from crossband.apps.low_light.enhance import Enhancer
from crossband.apps.low_light.scoring import EXPLANATION, Scorer, Scores
from crossband.apps.low_light.sheets import sheet
from crossband.shared.cli.output import format_table, print_json
from crossband.shared.reports.html import Report
from crossband.shared.training.run_folder import RunFolder

_SHEETS = 6


def write_report(
    config: TrainConfig,
    folder: RunFolder,
    images: Mapping[str, tuple[Tensor, Tensor]],
    stages: list[str],
    description: dict[str, Any],
) -> None:
    """Score the run's checkpoint on the validation photographs; write metrics.json, report.html.

    Args:
        config: Options of the run.
        folder: Of the run; its checkpoint is there.
        images: Dark and well-lit (3, H, W) in [0, 1] by name; empty if there is nothing to score.
        stages: That were trained.
        description: Of the checkpoint.
    """
    protocol = {k: v for k, v in description["protocol"].items() if k != "fingerprints"}
    report = Report("TML: training", _protocol_text(protocol))
    rows: list[dict[str, Any]] = []
    if images:
        rows, sheets = _score(config, folder, images)
        report.heading("Validation photographs, darkened")
        report.table(rows, "; ".join(EXPLANATION[name] for name in ("psnr", "ssim")))
        for name, picture in sheets.items():
            report.picture(picture, "jpeg", name)
    for stage in stages:
        book = json.loads(folder.stage(stage).results.read_text(encoding="utf-8"))
        report.heading(f"Stage {stage}")
        report.figure(_curve(book["history"]), f"best epoch {book['best']['epoch']}")
    outcome = {"protocol": protocol, "stages": description["stages"], "scores": rows}
    folder.write_results(outcome)
    report.write(folder.report)
    if config.json:
        print_json({"weights": str(folder.best), **outcome})
        return
    if rows:
        print()
        print(format_table(list(rows[0]), [tuple(row.values()) for row in rows]))
        print(_protocol_text(protocol))
    print(f"weights: {folder.best}\nreport: {folder.report}")


def _score(
    config: TrainConfig, folder: RunFolder, images: Mapping[str, tuple[Tensor, Tensor]]
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    own = Enhancer.load(folder.best, device=config.device)
    own.name = "this run"
    rivals = [create_rival(name) for name in ("input", "auto_gamma", "clahe")]
    methods = [own, *(Enhancer(r.name, r.run, None, 1, r.reach, {}) for r in rivals)]
    scorer = Scorer(["psnr", "ssim"])
    results = {method.name: Scores(method.name) for method in methods}
    sheets: dict[str, bytes] = {}
    for name, (dark, bright) in images.items():
        low, high = _pixels(dark), _pixels(bright)
        shown = {}
        for method in methods:
            shown[method.name] = method.predict(low, SizeConfig())
            results[method.name].rows.append(scorer.score(shown[method.name], high))
        if len(sheets) < _SHEETS:
            sheets[name] = sheet({**shown, "truth": high})
    columns = scorer.columns
    return [
        {"method": s.method, **{name: s.mean(name) for name in columns}} for s in results.values()
    ], sheets


def _pixels(image: Tensor) -> np.ndarray:
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _curve(history: list[dict[str, float]]) -> Any:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3))
    epochs = [row["epoch"] for row in history]
    for name in ("train_loss", "val_loss"):
        axes.plot(epochs, [row[name] for row in history], marker=".", label=name)
    axes.set(xlabel="epoch", ylabel="smooth L1")
    axes.legend()
    return figure


def _protocol_text(protocol: dict[str, Any]) -> str:
    photos, pairs = protocol["photographs"], protocol["pairs"]
    return (
        f"{photos['train']} photographs and {pairs['train']} pairs to train on; scored on "
        f"{photos['val']} other photographs, whose middle {protocol['size'][0]} x "
        f"{protocol['size'][1]} crop was darkened by: {protocol['dimming']}. Seed "
        f"{protocol['seed']}. {protocol['machine']}."
    )
