"""`crossband medical evaluate`: scores with intervals and their protocol."""

from __future__ import annotations

import csv
import io
from dataclasses import fields
from pathlib import Path
from typing import Any

from crossband.medical import report, segmentation
from crossband.medical.config import EvaluateConfig, SourceConfig
from crossband.medical.data.radiographs import RadiographStore
from crossband.medical.data.records import Record
from crossband.medical.data.splits import Gathered, gather
from crossband.medical.jobs import DRAWN_BY, NOT_A_DEVICE, data_set_name
from crossband.medical.networks import DETECTION, PROMPTED, SEGMENTATION
from crossband.medical.privacy import NamedStore, Names
from crossband.medical.reader import Reader
from crossband.medical.scoring import EXPLANATION, Readings, read_all, score, subgroups
from crossband.medical.segmenter import Segmenter
from crossband.shared.checkpoints import read_config
from crossband.shared.cli.output import print_json
from crossband.shared.environment import machine
from crossband.shared.errors import EXIT_PARTIAL, ConfigError, DataError
from crossband.shared.export import is_exported
from crossband.shared.files import json_text, list_digest, write_text
from crossband.shared.inference import load


def evaluate(config: EvaluateConfig) -> int | None:
    """Run `crossband medical evaluate`."""
    if config.batch_size < 1 or config.bootstrap < 0:
        raise ConfigError(
            f"--batch_size {config.batch_size} --bootstrap {config.bootstrap}: give 1 or more, and "
            "0 or more."
        )
    if _task(config.weights) == DETECTION:
        from crossband.medical.detection import evaluation as detection

        return detection.evaluate(config)
    model = load(config.weights, device=config.device, precision=config.precision)
    findings = isinstance(model, Reader)
    if not findings and model.config.get("task") not in (SEGMENTATION, PROMPTED):
        raise ConfigError(
            f"{config.weights} is of another domain: give best.safetensors of "
            "`crossband medical train`."
        )
    if not findings:  # volumes are shown as they were learnt
        reading = model.config["reading"]
        config.data.sequences = config.data.sequences or list(reading.get("sequences") or ())
    if not findings and not config.data.classes:  # a set that tells none means those of the network
        config.data.classes = list(model.classes)
    source = SourceConfig(**{f.name: getattr(config.data, f.name) for f in fields(SourceConfig)})
    if findings and not source.labels and source.target is None:
        source.labels = list(model.findings) if model.config["multilabel"] else []
    gathered = gather(source, labelled=findings)
    split = config.data.split
    _same_draw(model, gathered, config)
    records = [r for c in gathered.collections for r in c.split(split)]
    if not records:
        raise DataError(
            f"{', '.join(config.data.root)}: no image in the split {split!r}; name another by "
            "--data.split."
        )
    if not config.quiet and not config.json:
        for note in gathered.notes[:8]:
            print(f"note: {note}")
    name = "evaluation" if split == "test" else f"evaluation-{split}"
    out = Path(config.out or Path(config.weights).parent / name)
    if isinstance(model, Segmenter):
        return segmentation.evaluate(config, model, records, protocol(config, model, records), out)
    if not isinstance(model, Reader):
        from crossband.medical.prompted import evaluation as prompted

        return prompted.evaluate(config, model, records, protocol(config, model, records), out)
    _same_findings(model, gathered, config)
    names = Names(config.keep_ids)
    raw = RadiographStore(0.0, _window(config, model), config.data.shrink, model.colours)
    store = NamedStore(raw, names)
    readings = read_all(
        model,
        records,
        store,
        names,
        batch_size=config.batch_size,
        progress=not config.quiet and not config.json,
    )
    results: dict[str, Any] = {
        "protocol": protocol(config, model, readings.records) | {"explanation": EXPLANATION},
        **score(model, readings, resamples=config.bootstrap, seed=config.seed),
        "temperature": model.temperature,
        "subgroups": subgroups(
            model, readings, resamples=min(200, config.bootstrap), seed=config.seed
        ),
        "left_out": readings.problems,
    }
    write_text(out / "metrics.json", json_text(results) + "\n")
    write_text(out / "predictions.csv", _table(model, readings, names))
    report.evaluation_report(config, model, readings, results, store, out / "report.html")
    if config.json:
        print_json(results)
    else:
        for problem in readings.problems:
            print(f"left out: {problem}")
        print(report.scores_text(results))
        if not config.quiet:
            print(NOT_A_DEVICE)
        print(f"report: {out / 'report.html'}")
    return EXIT_PARTIAL if readings.problems else None


def protocol(
    config: EvaluateConfig, model: Reader | Segmenter, records: list[Record]
) -> dict[str, Any]:
    """Return what the scores were taken on, and how."""
    patients = {record.patient for record in records}
    trained = model.config.get("protocol", {})
    found = {
        "data": ", ".join(config.data.root),
        "split": config.data.split,
        "images": len(records),
        "patients": None if None in patients else len(patients),
        "sha256": list_digest([record.name for record in records]),
        "weights": config.weights,
        "weights_chosen_on": trained.get("weights_chosen_on", "unknown"),
        "uncertain": config.data.uncertain,
        "resamples": config.bootstrap,
        "machine": machine(),
    }
    return found


def _task(weights: str) -> str | None:
    return None if is_exported(weights) else read_config(weights).get("task")


def _window(config: EvaluateConfig, model: Reader | Segmenter) -> list[float]:
    return config.data.window or model.config["reading"]["window"]


def _same_draw(model: Reader | Segmenter, gathered: Gathered, config: EvaluateConfig) -> None:
    """Refuse to draw the splits of the training data anew in another way.

    Raises:
        ConfigError: they would be, so that images that were learned from could be scored.
    """
    trained = model.config.get("protocol", {})
    split, drawn_by = config.data.split, trained.get("drawn_by", {})
    again = any(
        split in c.drawn and data_set_name(c) in trained.get("data_sets", ())
        for c in gathered.collections
    )
    # What is drawn to test on does not depend on the others.
    names = DRAWN_BY[:3] if split == "test" else DRAWN_BY
    other = [n for n in names if n in drawn_by and getattr(config.data, n) != drawn_by[n]]
    if again and other:
        remedy = " ".join(f"--data.{name} {drawn_by[name]}" for name in other)
        raise ConfigError(
            f"The split {split!r} is drawn from the data that {config.weights} was trained on, in "
            f"another way than then, and may hold what it learned from: give {remedy}."
        )


def _same_findings(reader: Reader, gathered: Gathered, config: EvaluateConfig) -> None:
    """Refuse labels of other findings.

    Raises:
        DataError: their names or their kind differ.
    """
    if tuple(gathered.findings) != reader.findings:
        raise DataError(
            f"{config.weights} reads {', '.join(reader.findings)}, the data has "
            f"{', '.join(gathered.findings) or 'no labels'}: name those of the network by "
            "--data.labels, or its classes by --data.target."
        )
    if gathered.exclusive == reader.config["multilabel"]:
        kind = "findings that may occur together" if gathered.exclusive else "classes"
        raise DataError(
            f"{config.weights} was trained on {kind}, and the data is of the other kind: train on "
            "this data first."
        )


def _table(reader: Reader, readings: Readings, names: Names) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    chance, labels = reader.probabilities(readings.logits), readings.labels
    head = [f"{word} {name}" for name in reader.findings for word in ("label", "probability")]
    writer.writerow(["image", "patient", *head])
    for record, p, y in zip(readings.records, chance, labels, strict=True):
        patient = "" if record.patient is None else names.patient(record.patient)
        values = [
            word
            for label, one in zip(y, p, strict=True)
            for word in ("" if label != label else f"{label:g}", f"{one:.6f}")
        ]
        writer.writerow([names.image(record.path, record.name), patient, *values])
    return buffer.getvalue()
