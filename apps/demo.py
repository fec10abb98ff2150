"""`crossband demo`: the main jobs on embedded data, ending in one HTML report."""

from __future__ import annotations

import csv
import importlib.util
import json
import time
from collections.abc import Sequence
from pathlib import Path

from crossband.apps.config import DemoConfig
from crossband.apps.main import main
from crossband.shared.environment import machine
from crossband.shared.errors import CrossbandError
from crossband.shared.reports.html import Report


def run(config: DemoConfig) -> None:
    """Run the jobs as a user would, by the command line, and collect what they made."""
    out = Path(config.out)
    report = Report(
        "crossband demo",
        f"Every step below is a command; nothing was downloaded. Machine: {machine()}.",
    )
    report.text(
        "crossband is not a medical device; its demo radiographs are drawn, and its demo forecasts "
        "are of simulated weather."
    )
    _forecast(out / "spatiotemporal", report, config.minutes)
    _brighten(out / "low-light", report, config.minutes)
    _segment(out / "infrared", report, config.minutes)
    _read_radiographs(out / "medical", report, config.minutes)
    path = report.write(out / "report.html")
    print(f"\ndemo report: {path}")


def _forecast(out: Path, report: Report, minutes: float) -> None:
    """Simulated weather: make, check, train, forecast, export."""
    data, run_folder = str(out / "weather"), out / f"run-{time.strftime('%Y%m%d-%H%M%S')}"
    weights = str(run_folder / "best.safetensors")
    report.heading("Spatiotemporal: PredFormer forecasts simulated weather")
    domain = "spatiotemporal"
    steps = [
        [domain, "data", "make", "--out", data, "--hours", "720"],
        [domain, "data", "check", "--data.root", data, "--out", str(out / "fields.png")],
        [
            *(domain, "train", "--recipe", "tiny", "--data.root", data),
            *("--trainer.max_epochs", "100", "--trainer.max_minutes", str(minutes)),
            *("--out", str(run_folder)),
        ],
        [
            *(domain, "predict", data, "--combine", "--weights", weights),
            *("--out", str(out / "forecast.nc"), "--plot", str(out / "forecast.gif")),
        ],
        [domain, "export", "--weights", weights, "--format", "onnx"],
    ]
    for step in steps:
        report.note(_run(step))
    results = json.loads((run_folder / "metrics.json").read_text(encoding="utf-8"))
    for variable in results["scores"]["network"]:
        rows = [
            {"model": model, **{f"+{lead} h": value for lead, value in _by_lead(scores[variable])}}
            for model, scores in results["scores"].items()
        ]
        report.table(rows, f"{variable}: RMSE by lead. " + results["protocol"]["explanation"])
    report.picture((out / "forecast.gif").read_bytes(), "gif", "The forecast as an animation.")
    report.picture((out / "fields.png").read_bytes(), "png", "The data, from `data check`.")
    report.text(f"The full report of the training run: {run_folder / 'report.html'}")


def _brighten(out: Path, report: Report, minutes: float) -> None:
    """Photographs that scikit-image brings: dim them, learn to brighten, score, predict."""
    pairs, run_folder = out / "pairs", out / f"run-{time.strftime('%Y%m%d-%H%M%S')}"
    weights = str(run_folder / "best.safetensors")
    report.heading("Low light: TML learns to brighten from well-lit photographs")
    domain = "low-light"
    steps = [
        [domain, "data", "make", "--out", str(pairs), "--camera", "phone"],
        [
            *(domain, "train", "--recipe", "tiny", "--data.root", str(pairs / "high")),
            *("--data.val", str(pairs / "high/chelsea.png")),
            *("--trainer.max_minutes", str(minutes / 2), "--out", str(run_folder)),
        ],
        [
            *(domain, "predict", str(pairs / "low"), "--weights", weights),
            *("--out", str(out / "bright"), "--compare"),
        ],
        [
            *(domain, "evaluate", "--weights", weights, "--data.low", str(pairs / "low")),
            *("--data.high", str(pairs / "high"), "--rivals", "input", "auto_gamma", "clahe"),
        ],
    ]
    for step in steps:
        report.note(_run(step))
    found = json.loads((run_folder / "evaluation/metrics.json").read_text(encoding="utf-8"))
    unseen = next(row for row in found["images"] if "chelsea" in row["image"])
    rows = [{"method": name, **unseen[name]} for name in unseen if name != "image"]
    report.table(rows, "The one photograph that was not trained on, dimmed by another camera.")
    report.picture((out / "bright/compare/chelsea.png.jpg").read_bytes(), "jpeg", "The same.")


def _segment(out: Path, report: Report, minutes: float) -> None:
    """Rendered thermal scenes: train, score, predict; pre-train without masks and look inside."""
    started = time.strftime("%Y%m%d-%H%M%S")
    scenes, run_folder, teacher = out / "scenes", out / f"run-{started}", out / f"mae-{started}"
    weights, images = str(run_folder / "best.safetensors"), scenes / "images"
    unseen = ("scene_0051", "scene_0055", "scene_0059")  # of the split test
    report.heading("Infrared: UNIP's network segments rendered thermal scenes")
    domain = "infrared"
    steps = [
        [domain, "data", "make", "--out", str(scenes), "--count", "60"],
        [domain, "data", "check", "--data.root", str(scenes), "--out", str(out / "scenes.png")],
        [
            *(domain, "train", "--recipe", "tiny", "--data.root", str(scenes)),
            *("--trainer.max_minutes", str(minutes), "--out", str(run_folder)),
        ],
        [domain, "evaluate", "--weights", weights, "--data.root", str(scenes)],
        [
            *(domain, "predict", *(str(images / f"{name}.png") for name in unseen)),
            *("--weights", weights, "--out", str(out / "masks")),
        ],
        [
            *(domain, "pretrain", "--recipe", "tiny_mae", "--data.root", str(images)),
            *("--out", str(teacher)),
        ],
        [
            *(domain, "analyse", "--weights", str(teacher / "best.safetensors")),
            *("--data.root", str(images), "--size", "64", "--pictures", "1"),
            *("--out", str(out / "analysis")),
        ],
    ]
    for step in steps:
        report.note(_run(step))
    found = json.loads((run_folder / "evaluation/metrics.json").read_text(encoding="utf-8"))
    rows = [
        {
            "class": name,
            **{
                key: None if value is None else round(100 * value, 1)
                for key, value in scores.items()
            },
        }
        for name, scores in found["classes"].items()
    ]
    report.table(rows, f"On {found['protocol']['images']} scenes of the split test, in percent.")
    for name in unseen:
        picture = (out / f"masks/{name}_overlay.jpg").read_bytes()
        report.picture(picture, "jpeg", f"{name}, which was not trained on, and what was found.")
    report.picture((out / "scenes.png").read_bytes(), "png", "The data, from `data check`.")
    layers = json.loads((out / "analysis/metrics.json").read_text(encoding="utf-8"))["layers"]
    report.table(layers, "The attention of a network that learnt without masks, layer by layer.")
    report.text(f"With pictures: {teacher / 'report.html'}, {out / 'analysis/report.html'}")


def _read_radiographs(out: Path, report: Report, minutes: float) -> None:
    """Drawn chests: pre-train without labels, train, score, predict, and travel as a bundle."""
    started = time.strftime("%Y%m%d-%H%M%S")
    chests, bundle = out / "chests", out / f"bundle-{started}"
    encoder, run_folder = out / f"mae-{started}", out / f"run-{started}"
    weights = str(run_folder / "best.safetensors")
    report.heading("Medical: a masked autoencoder learns to read drawn chest X-rays")
    if importlib.util.find_spec("monai") is None:
        report.text("Left out, as MONAI is not installed: pip install 'crossband[medical]'.")
        return
    domain = "medical"
    made = [
        *(domain, "data", "make", "--out", str(chests), "--layout", "csv"),
        *("--count", "240", "--size", "128"),
    ]
    report.note(_run(made))
    unseen = _unseen(chests)
    steps = [
        [domain, "data", "check", "--data.root", str(chests), "--out", str(out / "chests.png")],
        [
            *(domain, "pretrain", "--recipe", "tiny", "--data.root", str(chests)),
            *("--trainer.max_epochs", "6", "--trainer.max_minutes", str(minutes)),
            *("--out", str(encoder)),
        ],
        [
            *(domain, "train", "--recipe", "tiny", "--data.root", str(chests)),
            *("--weights", str(encoder / "best.safetensors"), "--data.target", "view"),
            *("--trainer.max_minutes", str(minutes), "--out", str(run_folder)),
        ],
        [
            *(domain, "evaluate", "--weights", weights, "--data.root", str(chests)),
            *("--data.target", "view"),
        ],
        [
            *(domain, "predict", *unseen, "--weights", weights, "--heatmaps"),
            *("--out", str(out / "findings.csv")),
        ],
        [domain, "export", "--weights", weights, "--format", "monai-bundle", "--out", str(bundle)],
        ["bundle", "check", str(bundle)],
    ]
    for step in steps:
        report.note(_run(step))
    found = json.loads((run_folder / "evaluation/metrics.json").read_text(encoding="utf-8"))
    rows = [
        {
            "view": row["finding"],
            "images": row["positives"],
            **{name.upper(): _with_interval(row[name]) for name in ("auroc", "auprc")},
        }
        for row in found["findings"]
    ]
    report.table(
        rows, f"On {found['protocol']['images']} images. {found['protocol']['explanation']}"
    )
    for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines():
        for view, path in json.loads(line)["heatmaps"].items():
            shown = f"An image that was not trained on, read as {view}, and where that was seen."
            report.picture(Path(path).read_bytes(), "jpeg", shown)
    report.picture((out / "chests.png").read_bytes(), "png", "The data, from `data check`.")
    report.text(f"The view is learnt in seconds; findings take longer. The bundle: {bundle}")


def _unseen(chests: Path) -> list[str]:
    """Return three images of the split test."""
    with (chests / "labels.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    return [str(chests / row["image"]) for row in rows[:3]]


def _with_interval(area: dict[str, float]) -> str:
    return f"{area['value']:.3f} [{area['low']:.3f}, {area['high']:.3f}]"


def _by_lead(scores: dict) -> list[tuple[int, float]]:
    return list(enumerate(scores["rmse"]["value"], start=1))


def _run(words: Sequence[str]) -> str:
    """Run one command and return it with its time."""
    command = "crossband " + " ".join(words)
    print(f"\n$ {command}", flush=True)
    start = time.monotonic()
    code = main(words)
    if code:
        raise CrossbandError(f"the demo stopped: `{command}` ended with exit code {code}.")
    return f"$ {command}   ({time.monotonic() - start:.1f} s)"
