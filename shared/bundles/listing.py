"""The data that a bundle is fine-tuned on: dataset.json, folders of pairs, or a table of labels."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossband.shared.bundles.folder import Bundle, read_config
from crossband.shared.bundles.images import find_images
from crossband.shared.errors import DataError, did_you_mean

TABLE = "labels.csv"
_IMAGE = ("image", "image index", "path", "file", "filename")
_PATIENT = ("patient", "patient_id", "patient id")
_VALUES = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "": float("nan")}

Listing = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Labels:
    """What labels of a classification bundle are.

    Attributes:
        classes: Names, in the order of the outputs.
        exclusive: A label is a class id, else a list of 0, 1 and NaN (not known).
    """

    classes: tuple[str, ...]
    exclusive: bool

    @classmethod
    def of(cls, bundle: Bundle) -> Labels | None:
        """Read them from a bundle; None if it does not classify."""
        formats = bundle.metadata.get("network_data_format", {})
        pred = formats.get("outputs", {}).get("pred", {})
        if pred.get("type") != "probabilities" and pred.get("format") != "classes":
            return None
        loss = bundle.configs[bundle.config_file("train").name].get("loss")
        target = str(loss.get("_target_")) if isinstance(loss, dict) else str(loss)
        classes = tuple(map(str, pred.get("channel_def", {}).values()))
        return cls(classes, "CrossEntropy" in target)


def dataset_json(
    data: Path, val_fraction: float, seed: int, labels: Labels | None = None
) -> Listing:
    """Return the list of a data set.

    Args:
        data: Folder with dataset.json (Decathlon form), or with images/ and labels/ of equal names,
            or, to classify, with labels.csv: a column `image` (a path in the folder or in images/),
            one per class of 0, 1 and blank (not known), and perhaps `patient`.
        val_fraction: Part that is held back to validate: images, or patients where they are told.
        seed: Of that choice.
        labels: Of a bundle that classifies.

    Raises:
        DataError: none of them is there, too few images, or labels that do not fit.
    """
    if (data / "dataset.json").is_file():
        listing = read_config(data / "dataset.json")
        for part in ("training", "validation"):
            if not isinstance(listing.get(part), list) or not listing[part]:
                raise DataError(f"{data / 'dataset.json'} has no list {part!r}: name its images.")
        if labels:
            for item in (*listing["training"], *listing["validation"]):
                _check_label(item, labels, data / "dataset.json")
    elif labels:
        if not (data / TABLE).is_file():
            raise DataError(
                f"{data} holds neither dataset.json nor {TABLE}: write one, with a column image "
                f"and columns {', '.join(labels.classes[:3])}, ... of 0 and 1."
            )
        listing = _from_table(data / TABLE, labels, val_fraction, seed)
    else:
        listing = _from_pairs(data, val_fraction, seed)
    if labels:
        _check_both_values(listing["validation"], labels, data)
    return listing


def listing_text(listing: Listing) -> str:
    """Return dataset.json; labels that are not known are NaN, which Python's reader takes."""
    return json.dumps(listing, indent=1, ensure_ascii=False) + "\n"


def _from_pairs(data: Path, val_fraction: float, seed: int) -> Listing:
    if not (data / "images").is_dir() or not (data / "labels").is_dir():
        raise DataError(f"{data} holds neither dataset.json nor images/ and labels/.")
    labels = {path.stem: path for path in find_images([data / "labels"])}
    pairs = [
        {"image": str(path.resolve()), "label": str(labels[path.stem].resolve())}
        for path in find_images([data / "images"])
        if path.stem in labels
    ]
    return _split(pairs, list(range(len(pairs))), val_fraction, seed, data)


def _from_table(table: Path, labels: Labels, val_fraction: float, seed: int) -> Listing:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as a table: {error}.") from error
    names = {str(name).strip().lower(): name for name in reader.fieldnames or ()}
    image = next((names[name] for name in _IMAGE if name in names), None)
    if image is None:
        raise DataError(f"{table} has no column image: add one with the name of each file.")
    for wanted in labels.classes:
        if wanted.lower() not in names:
            hint = did_you_mean(wanted.lower(), names)
            raise DataError(
                f"{table} has no column {wanted!r}, which the bundle finds: add it, blank where "
                f"it is not known.{hint}"
            )
    columns = [names[wanted.lower()] for wanted in labels.classes]
    patient = next((names[name] for name in _PATIENT if name in names), None)
    items, groups = [], []
    for number, row in enumerate(rows, start=2):
        path = _existing(table.parent, str(row[image] or ""), f"{table}, line {number}")
        label = _label([str(row[c] or "").strip() for c in columns], labels, table, number)
        items.append({"image": str(path.resolve()), "label": label})
        groups.append(row[patient] if patient and row[patient] else number)
    return _split(items, groups, val_fraction, seed, table)


def _label(values: Sequence[str], labels: Labels, table: Path, line: int) -> Any:
    wrong = next((value for value in values if value not in _VALUES), None)
    if wrong is not None:
        raise DataError(f"{table}, line {line} has the label {wrong!r}: give 0, 1 or nothing.")
    found = [_VALUES[value] for value in values]
    if not labels.exclusive:
        return found
    if found.count(1.0) != 1:
        raise DataError(
            f"{table}, line {line} has {found.count(1.0)} of the classes, which exclude each "
            "other: give 1 to one of them."
        )
    return found.index(1.0)


def _existing(folder: Path, name: str, where: str) -> Path:
    for path in (folder / name, folder / "images" / name):
        if name and path.is_file():
            return path
    raise DataError(f"{where} names an image that is neither in {folder} nor in its images/.")


def _split(
    items: list[dict[str, Any]], groups: Sequence[Any], val_fraction: float, seed: int, data: Path
) -> Listing:
    """Hold back whole groups."""
    order = list(dict.fromkeys(groups))
    held = max(1, round(val_fraction * len(order)))
    if len(order) <= held:
        raise DataError(
            f"{data} holds {len(items)} image(s) with labels, of {len(order)} patient(s) or "
            "images: too few to train and validate on."
        )
    random.Random(seed).shuffle(order)
    validation = set(order[:held])
    parts: Listing = {"training": [], "validation": []}
    for item, group in zip(items, groups, strict=True):
        parts["validation" if group in validation else "training"].append(item)
    random.Random(seed).shuffle(parts["training"])
    return parts


def _check_label(item: dict[str, Any], labels: Labels, source: Path) -> None:
    label, count = item.get("label"), len(labels.classes)
    if labels.exclusive:
        fits = isinstance(label, int) and 0 <= label < count
        wanted = f"a class id from 0 to {count - 1}"
    else:
        fits = isinstance(label, list) and len(label) == count
        fits = fits and all(x in (0, 1) or x != x for x in label)
        wanted = f"{count} numbers of 0 and 1, for {', '.join(labels.classes[:3])}, ..."
    if not fits:
        raise DataError(f"{source} has the label {str(label)[:60]}: give {wanted}.")


def _check_both_values(validation: list[dict[str, Any]], labels: Labels, data: Path) -> None:
    """Refuse images by which no network could be chosen."""
    given = [item["label"] for item in validation]
    if labels.exclusive:
        scored = len(set(given)) > 1
    else:
        columns = zip(*given, strict=True)
        scored = any({0, 1} <= set(column) for column in columns)
    if not scored:
        raise DataError(
            f"{data}: among the {len(given)} images to validate on no class is both present and "
            "absent, so the best network cannot be chosen: add images, or hold back more of them "
            "(--val_fraction)."
        )
