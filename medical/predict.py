"""`crossband medical predict`: a csv of findings and heatmaps, masks and overlays, or boxes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossband.medical.config import PredictConfig
from crossband.medical.data.radiographs import Radiograph, is_radiograph_file, read_radiograph
from crossband.medical.heatmaps import heatmap
from crossband.medical.jobs import NOT_A_DEVICE
from crossband.medical.networks import (
    CLASSIFICATION,
    DETECTION,
    PROMPTED,
    SEGMENTATION,
    open_network,
    require_task,
)
from crossband.medical.pictures import (
    mask_sentence,
    safe,
    save_picture,
    stem_of,
    write_mask,
)
from crossband.medical.privacy import Names
from crossband.medical.reader import Reader
from crossband.medical.segmenter import Segmenter
from crossband.shared.checkpoints import read_config
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.export import is_exported
from crossband.shared.files import write_text
from crossband.shared.heatmaps import overlay as heat_overlay
from crossband.shared.prediction import predict_each


def predict(config: PredictConfig) -> int | None:
    """Run `crossband medical predict`."""
    if not config.inputs:
        raise ConfigError("predict needs inputs: images, DICOM files, volumes, or their folders.")
    facts = _facts(config.weights)
    task, names = facts["task"], Names(config.keep_ids)
    if config.heatmaps and task != CLASSIFICATION:
        raise ConfigError("--heatmaps are of findings: these weights give masks or boxes.")
    if config.boxes and task != PROMPTED:
        raise ConfigError("--boxes is for prompted segmentation: these weights need none.")
    if task == DETECTION:
        from crossband.medical.detection import prediction

        code = prediction.predict(config)
    elif task == SEGMENTATION and facts["reading"].get("volumes"):
        from crossband.medical.volume_prediction import predict_volumes

        code = predict_volumes(config, _segmenter(config), names)
    else:
        code = _images(config, task, names)
    if not config.quiet and not config.json:
        print(NOT_A_DEVICE)
    return code


def _images(config: PredictConfig, task: str, names: Names) -> int | None:
    paths, others = find_studies(config.inputs)
    if others and not config.quiet and not config.json:
        print(f"passed over {others} file(s) that are no images")
    if task == CLASSIFICATION:
        return _findings(config, paths, names)
    if task == PROMPTED:
        from crossband.medical.prompted import prediction

        return prediction.predict(config, paths, names)
    return _masks(config, paths, names)


def find_studies(inputs: Sequence[str]) -> tuple[list[Path], int]:
    """Return the radiographs among files and in folders, and how many other files there were.

    Raises:
        DataError: an input that does not exist, or no radiograph.
    """
    found: dict[Path, None] = {}
    others = 0
    for item in map(Path, inputs):
        if item.is_dir():
            for path in sorted(p for p in item.rglob("*") if p.is_file() and p.name[0] != "."):
                if is_radiograph_file(path):
                    found[path] = None
                else:
                    others += 1
        elif item.exists():
            found[item] = None
        else:
            raise DataError(f"{item} does not exist: give images, DICOM files or their folders.")
    if not found:
        raise DataError(
            f"There is no radiograph in {', '.join(map(str, inputs))}: PNG, JPEG, TIFF, BMP, WebP "
            "and DICOM files are read."
        )
    return list(found), others


def _facts(weights: str) -> dict[str, Any]:
    """Return what a checkpoint, or what was exported of it, says of itself."""
    config = open_network(weights).config if is_exported(weights) else read_config(weights)
    require_task(config, weights, CLASSIFICATION, SEGMENTATION, PROMPTED, DETECTION)
    return config


def _findings(config: PredictConfig, paths: list[Path], names: Names) -> int | None:
    out = Path(config.out)
    if out.suffix.lower() != ".csv":
        raise ConfigError(f"--out {config.out}: findings are written to a file ending in .csv.")
    reader = Reader.load(config.weights, device=config.device, precision=config.precision)
    pictures = out.with_name(f"{out.stem}_heatmaps")
    if config.heatmaps:
        _ = reader.module  # an export has none, which is better known now
    window = config.window or reader.config["reading"]["window"]
    rows: list[dict[str, Any]] = []
    taken: dict[str, str] = {}

    def run(path: Path) -> dict[str, Any]:
        image, shown = _read(path, window, names, reader.colours)
        chance = reader.probabilities(reader.logits(reader.prepare(image.pixels)[None]))[0]
        present = reader.present(chance.tolist(), half=config.threshold == "half")
        entry: dict[str, Any] = {
            "input": shown,
            "size": list(image.pixels.shape[:2]),
            "findings": {
                name: round(float(p), 6) for name, p in zip(reader.findings, chance, strict=True)
            },
            "present": [n for n, one in zip(reader.findings, present, strict=True) if one],
            "notes": list(image.notes),
        }
        if config.heatmaps:
            stem = pictures / stem_of(shown, taken)
            entry["heatmaps"] = _heatmaps(config, reader, image, chance, present, stem)
        rows.append(entry)
        return entry

    try:
        return predict_each(
            paths,
            run,
            name=names.image,
            describe=_sentence,
            options=config,
            folder=out.parent,
        )
    finally:
        if rows:
            write_text(out, _table(reader, rows))


def _table(reader: Reader, rows: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["image", *reader.findings, "present", "notes"])
    for row in rows:
        values = [f"{row['findings'][name]:.6f}" for name in reader.findings]
        writer.writerow([row["input"], *values, "|".join(row["present"]), " ".join(row["notes"])])
    return buffer.getvalue()


def _heatmaps(
    config: PredictConfig,
    reader: Reader,
    image: Radiograph,
    chance: np.ndarray,
    present: list[bool],
    stem: Path,
) -> dict[str, str]:
    """Write an overlay for each finding that counts as present, or for the likeliest."""
    numbers = [k for k, one in enumerate(present) if one] or [int(np.argmax(chance))]
    if config.heatmap_method == "rollout":
        numbers = numbers[:1]  # the same for all findings
    written = {}
    for k in numbers:
        heat = heatmap(reader, image.pixels, k, config.heatmap_method)
        word = "attention" if config.heatmap_method == "rollout" else reader.findings[k]
        path = stem.with_name(f"{stem.name}_{safe(word)}.jpg")
        save_picture(heat_overlay(image.pixels, heat), path)
        written[word] = str(path)
    return written


def _masks(config: PredictConfig, paths: list[Path], names: Names) -> int | None:
    out = Path(config.out if config.out != PredictConfig.out else "masks")
    if out.suffix.lower() == ".csv":
        raise ConfigError(f"--out {config.out}: masks are written to a folder.")
    segmenter = _segmenter(config)
    window = config.window or segmenter.config["reading"]["window"]
    taken: dict[str, str] = {}

    def run(path: Path) -> dict[str, Any]:
        image, shown = _read(path, window, names, segmenter.colours)
        ids, stem = segmenter.predict(image.pixels), stem_of(shown, taken)
        written = write_mask(out, stem, image, ids, segmenter.classes, segmenter.palette)
        return {"input": shown, **written}

    return predict_each(
        paths, run, name=names.image, describe=mask_sentence, options=config, folder=out
    )


def _segmenter(config: PredictConfig) -> Segmenter:
    return Segmenter.load(config.weights, device=config.device, precision=config.precision)


def _read(
    path: Path, window: Sequence[float], names: Names, colours: bool
) -> tuple[Radiograph, str]:
    try:
        return read_radiograph(path, window, colours=colours), names.image(path)
    except DataError as error:
        raise DataError(names.error(error, path)) from None


def _sentence(entry: dict[str, Any]) -> str:
    ranked = sorted(entry["findings"].items(), key=lambda pair: -pair[1])[:3]
    best = ", ".join(f"{name} {value:.2f}" for name, value in ranked)
    notes = f" ({' '.join(entry['notes'])})" if entry["notes"] else ""
    return f"{entry['input']}: {best}{notes}"
