"""`crossband medical predict` on volumes: masks as NIfTI with the affine of the volume."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossband.medical.config import PredictConfig
from crossband.medical.data.radiographs import is_dicom_file
from crossband.medical.data.scans import open_scan
from crossband.medical.data.volume_sets import is_mask_volume
from crossband.medical.data.volumes import is_volume
from crossband.medical.pictures import save_picture, stem_of
from crossband.medical.privacy import Names
from crossband.medical.segmenter import Segmenter
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.prediction import predict_each
from crossband.shared.reports.figures import overlay

_MM3_PER_ML = 1000.0


def predict_volumes(config: PredictConfig, segmenter: Segmenter, names: Names) -> int | None:
    """Write a mask, and an overlay of the slice with most of it, for every volume.

    Raises:
        ConfigError: --out is a file.
        DataError: no volume among the inputs.
    """
    out = Path(config.out if config.out != PredictConfig.out else "masks")
    reading = segmenter.config["reading"]
    volumes, others = find_volumes(config.inputs, reading.get("sequences") or ())
    if others and not config.quiet and not config.json:
        print(f"passed over {others} file(s) that are masks or no volumes")
    window = config.window or reading["window"]
    taken: dict[str, str] = {}

    def run(item: tuple[Path, ...]) -> dict[str, Any]:
        shown = names.image(item[0])
        try:
            scan = open_scan(item[0], axis=reading["axis"], window=window, sequences=item[1:])
            ids = segmenter.predict_scan(scan, config.batch_size)
        except DataError as error:
            raise DataError(names.error(error, *item)) from None
        stem = stem_of(shown, taken)
        target, covered = out / f"{stem}{scan.suffix}", out / f"{stem}_overlay.jpg"
        scan.save(ids, target)
        index = scan.fullest(ids)
        picture = overlay(scan.picture(index), scan.mask_picture(ids, index), segmenter.palette)
        save_picture(picture, covered)
        return {
            "input": shown,
            "mask": str(target),
            "overlay": str(covered),
            "size": list(ids.shape),
            "spacing_mm": None if scan.spacing is None else list(scan.spacing),
            **_amounts(ids, segmenter.classes, scan.spacing),
        }

    return predict_each(
        volumes,
        run,
        name=lambda item: names.image(item[0]),
        describe=_sentence,
        options=config,
        folder=out,
    )


def find_volumes(
    inputs: Sequence[str], sequences: Sequence[str] = ()
) -> tuple[list[tuple[Path, ...]], int]:
    """Return volumes, each with the files of its further sequences, and how many files were others.

    In folders NIfTI and npy files are taken whose names do not say that they are masks, and
    folders of DICOM files as a series each.

    Args:
        inputs: Files and folders.
        sequences: Parts of file names; a volume is taken by the first, the others lie beside it.

    Raises:
        ConfigError: a single DICOM file.
        DataError: an input that does not exist, no volume, or a sequence that is not there.
    """
    found: dict[Path, None] = {}
    others = 0
    for item in map(Path, inputs):
        if item.is_dir():
            for path in sorted(p for p in item.rglob("*") if p.is_file() and p.name[0] != "."):
                if is_volume(path) and not is_mask_volume(path.relative_to(item)):
                    found[path] = None
                elif not is_volume(path) and is_dicom_file(path):
                    found[path.parent] = None
                else:
                    others += 1
        elif not item.exists():
            raise DataError(f"{item} does not exist: give volumes or their folders.")
        elif is_volume(item):
            found[item] = None
        else:
            raise ConfigError(
                f"{item} is no volume: give .nii, .nii.gz or .npy, or the folder of a DICOM series."
            )
    if sequences:
        first = [path for path in found if has_sequence(path, sequences[0])]
        others += len(found) - len(first)
        items = [(path, *beside(path, sequences)) for path in first]
    else:
        items = [(path,) for path in found]
    if not items:
        of = f" of the sequence {sequences[0]}" if sequences else ""
        raise DataError(
            f"There is no volume{of} in {', '.join(map(str, inputs))}: .nii, .nii.gz and .npy "
            "files and folders of a DICOM series are read."
        )
    return items, others


def has_sequence(path: Path, sequence: str) -> bool:
    """Whether the name of a file holds a sequence as a word of its own."""
    return bool(_pattern(sequence).search(path.name))


def _pattern(sequence: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-z0-9]){re.escape(sequence)}(?![a-z0-9])", re.I)


def beside(path: Path, sequences: Sequence[str]) -> list[Path]:
    """Return the files of the other sequences of a volume.

    Raises:
        DataError: one is not there.
    """
    found = []
    for sequence in sequences[1:]:
        name = _pattern(sequences[0]).sub(lambda _, word=sequence: word, path.name)
        other = path.with_name(name)
        if not other.exists():
            raise DataError(
                f"{path} has no sequence {sequence} beside it ({name}): the network was trained on "
                f"{', '.join(sequences)}."
            )
        found.append(other)
    return found


def _amounts(
    ids: np.ndarray, classes: Sequence[str], spacing: Sequence[float] | None
) -> dict[str, dict[str, float]]:
    """Return millilitres of each class but the background, or voxels where no spacing is known."""
    counts = np.bincount(ids.ravel(), minlength=len(classes))[1:]
    if spacing is None:
        return {"voxels": dict(zip(classes[1:], map(int, counts), strict=True))}
    each = float(np.prod(spacing)) / _MM3_PER_ML
    values = [round(int(count) * each, 3) for count in counts]
    return {"volume_ml": dict(zip(classes[1:], values, strict=True))}


def _sentence(entry: dict[str, Any]) -> str:
    unit = "ml" if "volume_ml" in entry else "voxels"
    amounts = entry.get("volume_ml") or entry.get("voxels") or {}
    shown = ", ".join(f"{name} {value:g} {unit}" for name, value in amounts.items())
    return f"{entry['mask']}: {shown}"
