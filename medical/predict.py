"""`crossband medical predict`: a csv of findings and heatmaps, or masks and overlays."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossband.medical.config import PredictConfig
from crossband.medical.data.radiographs import Radiograph, is_radiograph_file, read_radiograph
from crossband.medical.heatmaps import heatmap
from crossband.medical.jobs import NOT_A_DEVICE
from crossband.medical.networks import (
    CLASSIFICATION,
    SEGMENTATION,
    open_network,
    require_task,
)
from crossband.medical.privacy import Names
from crossband.medical.reader import Reader
from crossband.medical.segmenter import Segmenter
from crossband.shared.checkpoints import read_config
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.export import is_exported
from crossband.shared.files import atomic_path, write_text
from crossband.shared.heatmaps import overlay as heat_overlay
from crossband.shared.prediction import predict_each
from crossband.shared.reports.figures import overlay

_LONGEST = 160  # characters of a file's stem


def predict(config: PredictConfig) -> int | None:
    """Run `crossband medical predict`."""
    if not config.inputs:
        raise ConfigError("predict needs inputs: images, DICOM files, or folders of them.")
    paths, others = find_studies(config.inputs)
    names = Names(config.keep_ids)
    if others and not config.quiet and not config.json:
        print(f"passed over {others} file(s) that are no radiographs")
    if _task(config.weights) == CLASSIFICATION:
        code = _findings(config, paths, names)
    else:
        code = _masks(config, paths, names)
    if not config.quiet and not config.json:
        print(NOT_A_DEVICE)
    return code


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


def _task(weights: str) -> str:
    config = open_network(weights).config if is_exported(weights) else read_config(weights)
    return require_task(config, weights, CLASSIFICATION, SEGMENTATION)


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
        image, shown = _read(path, window, names)
        chance = reader.probabilities(reader.logits(reader.prepare(image.pixels)[None]))[0]
        present = reader.present(chance.tolist(), half=config.threshold == "half")
        entry: dict[str, Any] = {
            "input": shown,
            "size": list(image.pixels.shape),
            "findings": {
                name: round(float(p), 6) for name, p in zip(reader.findings, chance, strict=True)
            },
            "present": [n for n, one in zip(reader.findings, present, strict=True) if one],
            "notes": list(image.notes),
        }
        if config.heatmaps:
            stem = pictures / _stem(shown, taken)
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
        path = stem.with_name(f"{stem.name}_{_safe(word)}.jpg")
        _save(heat_overlay(image.pixels, heat), path)
        written[word] = str(path)
    return written


def _masks(config: PredictConfig, paths: list[Path], names: Names) -> int | None:
    out = Path(config.out if config.out != PredictConfig.out else "masks")
    if out.suffix.lower() == ".csv":
        raise ConfigError(f"--out {config.out}: masks are written to a folder.")
    if config.heatmaps:
        raise ConfigError("--heatmaps are of findings: these weights give masks.")
    segmenter = Segmenter.load(config.weights, device=config.device, precision=config.precision)
    window = config.window or segmenter.config["reading"]["window"]
    taken: dict[str, str] = {}

    def run(path: Path) -> dict[str, Any]:
        image, shown = _read(path, window, names)
        ids = segmenter.predict(image.pixels)
        stem = _stem(shown, taken)
        target, covered = out / f"{stem}.png", out / f"{stem}_overlay.jpg"
        _save(ids, target)
        _save(overlay(image.pixels, ids, segmenter.palette), covered)
        counts = np.bincount(ids.ravel(), minlength=len(segmenter.classes))
        return {
            "input": shown,
            "mask": str(target),
            "overlay": str(covered),
            "size": list(ids.shape),
            "area": {
                name: round(int(n) / ids.size, 6)
                for name, n in zip(segmenter.classes, counts, strict=True)
            },
            "notes": list(image.notes),
        }

    return predict_each(
        paths, run, name=names.image, describe=_mask_sentence, options=config, folder=out
    )


def _read(path: Path, window: Sequence[float], names: Names) -> tuple[Radiograph, str]:
    try:
        return read_radiograph(path, window), names.image(path)
    except DataError as error:
        raise DataError(names.error(error, path)) from None


def _stem(shown: str, taken: dict[str, str]) -> str:
    """Return the stem of an image's results; another image (1.png, 1.dcm) gets another one."""
    first = _safe(re.sub(r"\.(png|jpe?g|dcm|tiff?|bmp|webp)$", "", shown, flags=re.I))
    stem, number = first[-_LONGEST:], 1
    while taken.setdefault(stem, shown) != shown:
        number += 1
        stem = f"{first[-_LONGEST:]}-{number}"
    return stem


def _safe(name: str) -> str:
    """Return a name that is one file's: what stood in folders keeps their names."""
    return re.sub(r"[^\w.+-]+", "_", name)


def _sentence(entry: dict[str, Any]) -> str:
    ranked = sorted(entry["findings"].items(), key=lambda pair: -pair[1])[:3]
    best = ", ".join(f"{name} {value:.2f}" for name, value in ranked)
    notes = f" ({' '.join(entry['notes'])})" if entry["notes"] else ""
    return f"{entry['input']}: {best}{notes}"


def _mask_sentence(entry: dict[str, Any]) -> str:
    shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in entry["area"].items())
    notes = f" ({' '.join(entry['notes'])})" if entry["notes"] else ""
    return f"{entry['mask']}: {shares}{notes}"


def _save(pixels: np.ndarray, path: Path) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary)
