"""`crossband low-light evaluate`: scores beside rivals, with their protocol."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from crossband.apps.low_light.config import EvaluateConfig, MethodConfig
from crossband.apps.low_light.data.pairs import Pair, find_pairs, match
from crossband.apps.low_light.data.photos import alike, fingerprint
from crossband.apps.low_light.enhance import Enhancer
from crossband.apps.low_light.metrics import Lpips
from crossband.apps.low_light.niqe import NaturalModel
from crossband.apps.low_light.scoring import EXPLANATION, Scorer, Scores, find_niqe_model
from crossband.apps.low_light.sheets import sheet
from crossband.shared.cli.output import format_table, print_json
from crossband.shared.data.images import find_photos, read_photo
from crossband.shared.environment import machine
from crossband.shared.errors import EXIT_PARTIAL, ConfigError, CrossbandError, DataError
from crossband.shared.reports.html import Report
from crossband.shared.training.run_folder import RunFolder

NIQE_VARIABLE = "CROSSBAND_NIQE_PARAMS"


@dataclass(frozen=True)
class Scene:
    """A dark photograph, perhaps with its well-lit partner."""

    low: Path
    high: Path | None

    @property
    def name(self) -> str:
        """Folder and file name."""
        return f"{self.low.parent.name}/{self.low.name}"


def evaluate(config: EvaluateConfig) -> int | None:
    """Score the method and its rivals; write metrics.json and report.html."""
    scenes, notes = find_scenes(config)
    scorer, more = make_scorer(config, paired=scenes[0].high is not None)
    notes += more
    methods = [Enhancer.of(config), *(_rival(text, config) for text in config.rivals)]
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise ConfigError(f"Two methods have one name ({', '.join(names)}): leave one out.")
    trained_on = methods[0].config.get("protocol", {}).get("fingerprints", [])
    results = {name: Scores(name) for name in names}
    known: list[str] = []
    kept: list[Scene] = []
    sheets: list[tuple[str, bytes]] = []
    for scene in scenes:
        try:
            low, high = _read(scene, config)
        except DataError as error:
            notes.append(f"left out: {error}")
            place = sys.stderr if config.json else sys.stdout
            print(f"left out {scene.low}: {error}", file=place, flush=True)
            continue
        mark = fingerprint(low if high is None else high)
        if any(alike(mark, other) for other in trained_on):
            known.append(scene.name)
        shown = {"input": low}
        for method in methods:
            start = time.perf_counter()
            image = method.predict(low, replace(config.size))
            scores = results[method.name]
            scores.seconds += time.perf_counter() - start
            scores.megapixels += low.shape[0] * low.shape[1] / 1e6
            scores.rows.append(scorer.score(image, high))
            shown[method.name] = image
        if high is not None:
            shown["truth"] = high
        kept.append(scene)
        if len(sheets) < config.sheets:
            sheets.append((scene.name, sheet(shown)))
        if not config.quiet and not config.json:
            print(f"[{len(kept)}/{len(scenes)}] {scene.name}", flush=True)
    if not kept:
        raise CrossbandError(f"None of the {len(scenes)} photographs could be read; see above.")
    if known:
        notes.append(
            f"{len(known)} of the {len(kept)} scenes look like scenes that the network was trained "
            f"on (first: {known[0]}): these scores say little."
        )
    for name in scorer.columns:
        scored = [row[name] is not None for row in results[names[0]].rows]
        if not all(scored):
            notes.append(
                f"{name}: only {sum(scored)} of the {len(kept)} images have it; the others are too "
                "small or flat."
            )
    _write(config, scorer, results, kept, notes, sheets)
    return EXIT_PARTIAL if len(kept) < len(scenes) else None


def find_scenes(config: EvaluateConfig) -> tuple[list[Scene], list[str]]:
    """Find what to score on.

    Raises:
        ConfigError: nothing named, or half of a pair of folders.
        DataError: nothing found.
    """
    data = config.data
    if (data.low is None) != (data.high is None):
        raise ConfigError("--data.low and --data.high belong together: give both.")
    pairs: list[Pair] = []
    notes: list[str] = []
    alone: list[Scene] = []
    if data.low and data.high:
        pairs, notes = match(data.low, data.high)
    elif not data.root:
        raise ConfigError("--data.root is missing: give a data set of pairs or dark photographs.")
    for root in data.root:
        found, more = find_pairs(root) if Path(root).is_dir() else ([], [])
        pairs += found
        notes += more
        if not found:
            alone += [Scene(path, None) for path, _ in find_photos([root])[0]]
    if pairs and alone:
        raise ConfigError(
            "--data.root names pairs and photographs without partners: score them one by one."
        )
    return alone or [Scene(pair.low, pair.high) for pair in pairs], notes


def make_scorer(config: EvaluateConfig, *, paired: bool) -> tuple[Scorer, list[str]]:
    """Choose the scores and load what they need.

    Returns:
        The scorer, and notes on scores that cannot be had.

    Raises:
        ConfigError: a score was asked for that cannot be had.
    """
    asked = list(dict.fromkeys(config.metrics))
    needs_truth = [name for name in ("psnr", "ssim", "lpips") if name in asked]
    if needs_truth and not paired:
        raise ConfigError(
            f"--metrics {' '.join(needs_truth)}: these photographs have no well-lit partners; "
            "score them by niqe."
        )
    if config.gt_mean and not paired:
        raise ConfigError("--gt_mean needs well-lit partners, which are not there.")
    notes: list[str] = []
    places = [*config.data.root, *filter(None, (config.data.low,))]
    path = None
    if "niqe" in asked or not asked:
        path = find_niqe_model(config.niqe_params, os.environ.get(NIQE_VARIABLE), places)
    if path is None and (not asked or "niqe" in asked):
        reason = (
            "niqe is unavailable: it needs the parameters of natural images, niqe_pris_params.npz "
            f"(BasicSR ships it): give --niqe_params FILE, set ${NIQE_VARIABLE}, or put it beside "
            "the data."
        )
        if "niqe" in asked:
            raise ConfigError(reason)
        notes.append(reason)
    if "lpips" in asked and config.lpips_weights is None:
        raise ConfigError(
            "lpips is unavailable: it needs torchvision's AlexNet file (alexnet-owt-*.pth): give "
            "--lpips_weights FILE."
        )
    metrics = asked
    if not asked:
        metrics = (["psnr", "ssim"] if paired else []) + (["niqe"] if path else [])
        metrics += ["lpips"] if paired and config.lpips_weights else []
    if not metrics:
        raise ConfigError(notes[0])
    scorer = Scorer(
        metrics,
        NaturalModel.load(path) if path and "niqe" in metrics else None,
        config.niqe_variant,
        Lpips(config.lpips_weights) if "lpips" in metrics and config.lpips_weights else None,
        config.gt_mean,
    )
    return scorer, notes


def _rival(text: str, config: EvaluateConfig) -> Enhancer:
    """Load `name` or `name=FILE`; `tml=FILE` is another checkpoint of ours."""
    name, _, weights = text.partition("=")
    if name == "input":
        return Enhancer("input", lambda image: image, None, 1, None, {})
    options = MethodConfig(
        model=name,  # type: ignore[arg-type]
        weights=weights or None,
        device=config.device,
        precision=config.precision,
    )
    return Enhancer.of(options)


def _read(scene: Scene, config: EvaluateConfig) -> tuple[np.ndarray, np.ndarray | None]:
    """Return RGB uint8 of the dark photograph and of its partner."""
    images = []
    for path in filter(None, (scene.low, scene.high)):
        photo = read_photo(path, config.size.max_megapixels)
        eight = photo.pixels if photo.white == 255 else (photo.pixels // 257).astype(np.uint8)
        images.append(eight)
    return images[0], images[1] if len(images) > 1 else None


def _write(
    config: EvaluateConfig,
    scorer: Scorer,
    results: dict[str, Scores],
    scenes: list[Scene],
    notes: list[str],
    sheets: list[tuple[str, bytes]],
) -> None:
    columns = scorer.columns
    rows = [scores.summary(columns) for scores in results.values()]
    protocol = {
        "data": [*config.data.root, *filter(None, (config.data.low, config.data.high))],
        "images": len(scenes),
        "metrics": {name: EXPLANATION[name] for name in columns},
        "gt_mean": config.gt_mean,
        "size": asdict(config.size),
        "scored_at": "the size of the file; results are brought back to it",
        "machine": machine(),
        "notes": notes,
    }
    details = [
        {"image": scene.name, **{m: scores.rows[i] for m, scores in results.items()}}
        for i, scene in enumerate(scenes)
    ]
    weights = Path(config.weights).parent if config.weights and config.model == "tml" else Path()
    folder = RunFolder(config.out or weights / "evaluation")
    outcome = {"protocol": protocol, "scores": rows, "images": details}
    folder.write_results(outcome)
    report = Report("Low-light evaluation", _protocol_text(protocol))
    report.table(rows)
    for note in notes:
        report.text(note)
    for name, picture in sheets:
        report.picture(picture, "jpeg", name)
    report.heading("Image by image")
    for name in columns:
        report.table(
            [{"image": d["image"], **{m: d[m][name] for m in results}} for d in details],
            EXPLANATION[name],
        )
    report.write(folder.report)
    if config.json:
        print_json(outcome)
        return
    print(format_table(list(rows[0]), [tuple(row.values()) for row in rows]))
    print(_protocol_text(protocol))
    for note in notes:
        print(f"note: {note}")
    print(f"report: {folder.report}")


def _protocol_text(protocol: dict[str, Any]) -> str:
    brightness = (
        "results were first given the truth's mean brightness (GT-mean)"
        if protocol["gt_mean"]
        else "no GT-mean"
    )
    metrics = "; ".join(protocol["metrics"].values())
    return f"{protocol['images']} images, means over images; {brightness}; {metrics}."
