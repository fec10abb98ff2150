"""Reports of findings: tables, calibration, subgroups, what was read right and wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crossband.medical.config import EvaluateConfig, TrainConfig
from crossband.medical.jobs import NOT_A_DEVICE
from crossband.medical.privacy import Names, Store
from crossband.medical.reader import Reader
from crossband.medical.scoring import EXPLANATION, Readings, finding_rows, text
from crossband.shared.cli.output import format_table
from crossband.shared.errors import ConfigError
from crossband.shared.metrics.calibration import reliability
from crossband.shared.reports.figures import confusion, curves, png
from crossband.shared.reports.html import Report
from crossband.shared.training.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CURVES = 14  # findings that get a curve of their own


def scores_text(scores: dict[str, Any]) -> str:
    """Return the scores as a table for a terminal."""
    rows = finding_rows(scores)
    lines = [format_table(list(rows[0]), [tuple(row.values()) for row in rows])]
    lines.append(f"mean AUROC {text(scores['mean_auroc'])}")
    if "accuracy" in scores:
        lines.append(f"accuracy {text(scores['accuracy'])}")
    return "\n".join(lines)


def protocol_text(protocol: dict[str, Any]) -> str:
    """Return a protocol as one line."""
    return "; ".join(f"{name}: {value}" for name, value in protocol.items() if name != "sha256")


def training_report(
    config: TrainConfig,
    folder: RunFolder,
    reader: Reader,
    readings: Readings,
    results: dict[str, Any],
) -> None:
    """Write report.html of a training run."""
    report = Report(f"Training: {config.model}", protocol_text(results["protocol"]))
    report.note(NOT_A_DEVICE)
    kind = "Test" if config.select_on == "test" else "Validation"
    report.heading(f"{kind} images, best weights")
    if config.select_on == "test":
        report.text(
            "The weights were chosen on these TEST images, as the paper does: the scores are "
            "better than on images that had no say."
        )
    add_scores(report, results[config.select_on])
    add_calibration(report, reader, readings)
    if results["history"]:
        report.heading("Curves")
        names = [n for n in ("val_auroc", "val_accuracy") if n in results["history"][0]]
        report.figure(
            curves(results["history"], names), f"best epoch {results['best'].get('epoch')}"
        )
    report.write(folder.report)


def evaluation_report(
    config: EvaluateConfig,
    reader: Reader,
    readings: Readings,
    results: dict[str, Any],
    store: Store,
    path: Path,
) -> None:
    """Write report.html of an evaluation."""
    report = Report("Evaluation: findings of images", protocol_text(results["protocol"]))
    report.note(NOT_A_DEVICE)
    add_scores(report, results)
    if len(reader.findings) <= _CURVES:
        report.figure(_roc(reader, readings), "ROC curves.")
    add_calibration(report, reader, readings)
    if results["subgroups"]:
        report.heading("Subgroups")
        columns = list(dict.fromkeys(name for row in results["subgroups"] for name in row))
        rows = [
            {
                name: text(row[name]) if isinstance(row.get(name), dict) else row.get(name, "-")
                for name in columns
            }
            for row in results["subgroups"]
        ]
        report.table(rows, "AUROC with intervals of 95 % over patients; - where too few are known.")
    if results["left_out"]:
        report.heading("Left out")
        for problem in results["left_out"]:
            report.text(problem)
    if config.heatmaps and reader.opened.module is not None:
        _add_heatmaps(report, config, reader, readings, store)
    report.write(path)


def add_scores(report: Report, scores: dict[str, Any]) -> None:
    """Add tables of scores."""
    line = f"Mean AUROC {text(scores['mean_auroc'])}"
    if "accuracy" in scores:
        line += f", accuracy {text(scores['accuracy'])}"
    report.text(line)
    report.table(finding_rows(scores), EXPLANATION)
    if "confusion" in scores:
        names = [row["finding"] for row in scores["findings"]]
        report.figure(confusion(np.array(scores["confusion"]), names), "rows: true class")


def add_calibration(report: Report, reader: Reader, readings: Readings) -> None:
    """Add the reliability plot."""
    report.heading("Calibration")
    report.figure(
        _reliability(reader, readings),
        f"Share of images with a finding by predicted probability, all findings together; "
        f"temperature {reader.temperature:.3f}. On the diagonal probabilities mean what they say.",
    )


def _reliability(reader: Reader, readings: Readings) -> Figure:
    from matplotlib.figure import Figure

    labels = readings.labels
    figure = Figure(figsize=(4.6, 4.2))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#8c959f", lw=1)
    kept, temperature = reader.temperature, reader.temperature
    for name, value in (("before temperature", 1.0), ("after", temperature)):
        reader.temperature = value
        chance = reader.probabilities(readings.logits)
        rows = [r for r in reliability(chance.ravel(), labels.ravel(), 10) if r.count]
        axes.plot([r.probability for r in rows], [r.positive for r in rows], marker="o", label=name)
    reader.temperature = kept
    axes.set(xlabel="predicted probability", ylabel="share present", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    figure.tight_layout()
    return figure


def _roc(reader: Reader, readings: Readings) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4))
    axes = figure.subplots()
    labels = readings.labels
    for k, name in enumerate(reader.findings):
        known = ~np.isnan(labels[:, k])
        truth, chance = labels[known, k] == 1, readings.logits[known, k]
        if truth.any() and not truth.all():
            order = np.argsort(-chance, kind="stable")
            hit, false = np.cumsum(truth[order]), np.cumsum(~truth[order])
            axes.plot(
                [0, *(false / false[-1])], [0, *(hit / hit[-1])], label=name, drawstyle="steps-post"
            )
    axes.plot([0, 1], [0, 1], color="#8c959f", lw=1)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity")
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    return figure


def _add_heatmaps(
    report: Report, config: EvaluateConfig, reader: Reader, readings: Readings, store: Store
) -> None:
    """Show where the surest right and wrong readings were seen."""
    from crossband.medical.heatmaps import heatmap
    from crossband.shared.heatmaps import overlay

    names = Names(config.keep_ids)
    chance, labels = reader.probabilities(readings.logits), readings.labels
    report.heading("Where it was seen")
    report.note(
        "Gradient heatmaps of the surest right readings, then of the surest wrong ones. They show "
        "what moved the network, not where a disease is."
    )
    half = -(-config.heatmaps // 2)
    for right in (True, False):
        for number, k in _surest(chance, labels, right, half):
            record = readings.records[number]
            pixels = store.read(record.path)
            try:
                heat = heatmap(reader, pixels, k, "gradient")
            except ConfigError as error:  # a network that has none still has scores
                report.text(f"No heatmaps: {error}")
                return
            found = reader.findings[k]
            verdict = "labelled so" if right else "not labelled so"
            caption = f"{names.image(record.path, record.name)}: {found} {chance[number, k]:.2f}"
            plain = np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else pixels
            shown = np.hstack([plain, overlay(pixels, heat)])
            report.picture(png(_small(shown)), "png", f"{caption}, {verdict}")


def _surest(
    chance: np.ndarray, labels: np.ndarray, right: bool, count: int
) -> Sequence[tuple[int, int]]:
    """Return image and finding of the highest probabilities that the labels agree with, or not."""
    masked = np.where(labels == (1.0 if right else 0.0), chance, -1.0)
    taken: list[tuple[int, int]] = []
    for flat in np.argsort(-masked, axis=None, kind="stable"):
        image, finding = divmod(int(flat), chance.shape[1])
        if masked[image, finding] < 0 or len(taken) == count:
            break
        if all(image != other for other, _ in taken):
            taken.append((image, finding))
    return taken


def _small(pixels: np.ndarray, side: int = 320) -> np.ndarray:
    from PIL import Image

    factor = min(1.0, side / pixels.shape[0])
    size = round(pixels.shape[1] * factor), round(pixels.shape[0] * factor)
    return np.asarray(Image.fromarray(pixels).resize(size))
