"""Who trains and who tests: splits by patients, never by images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from crossband.medical.config import SourceConfig
from crossband.medical.data.layouts import find
from crossband.medical.data.records import Collection, Record, counted
from crossband.shared.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")


@dataclass
class Gathered:
    """The images of all roots, by split.

    Attributes:
        findings: Names of the labels; empty where there are none, or not the same ones.
        exclusive: Whether every image has exactly one of them.
        train: Images to learn from.
        val: Images to choose by.
        test: Images to tell the result on.
        notes: What was left out or drawn, a sentence each, without patient identifiers.
        collections: The data sets, with the splits that were drawn.
    """

    findings: tuple[str, ...]
    exclusive: bool
    train: list[Record] = field(default_factory=list)
    val: list[Record] = field(default_factory=list)
    test: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    collections: list[Collection] = field(default_factory=list)


def gather(config: SourceConfig, *, labelled: bool = True) -> Gathered:
    """Find the data sets and give every image a split.

    A set without splits is cut by patients; one that has train but no val gives patients of train
    to val; `--data.folds` cuts all but test into folds.

    Args:
        config: Options.
        labelled: Whether labels count; if not, findings may differ between the roots.

    Raises:
        ConfigError: fractions or folds that cannot be.
        DataError: a patient in two splits, or roots of different findings; see also `find`.
    """
    if config.val_fraction < 0 or config.test_fraction < 0:
        raise ConfigError("--data.val_fraction and --data.test_fraction must be at least 0.")
    if config.val_fraction + config.test_fraction >= 1:
        raise ConfigError(
            f"--data.val_fraction {config.val_fraction:g} and --data.test_fraction "
            f"{config.test_fraction:g} leave nothing to train on: their sum must be below 1."
        )
    collections = find(config)
    require_disjoint(collections)
    for collection in collections:
        complete(collection, config)
    findings, exclusive = _common(collections, labelled)
    gathered = Gathered(findings, exclusive, collections=collections)
    for collection in collections:
        before = f"{collection.root.name}: " if len(collections) > 1 else ""
        gathered.notes += [before + note for note in collection.notes]
        if not findings:
            collection.records = [replace(record, labels=()) for record in collection.records]
        if len(collections) > 1:  # the same number is another patient in another set
            collection.records = [_of(record, collection) for record in collection.records]
        for split in SPLITS:
            getattr(gathered, split).extend(collection.split(split))
    return gathered


def _of(record: Record, collection: Collection) -> Record:
    if record.patient is None:
        return record
    return replace(record, patient=f"{collection.root.name}: {record.patient}")


def patients_split(records: Sequence[Record], seed: int, val: float, test: float) -> list[Record]:
    """Give every image a split by a digest of its patient, so that it stays as a set grows.

    Each split that is wanted gets at least one patient, as far as there are three.

    Args:
        records: Images.
        seed: Other seeds, other splits.
        val: Part of the patients to validate.
        test: Part of the patients to test.
    """
    shares = {key: _share(seed, key) for key in map(patient_key, records)}
    ordered = sorted(shares, key=lambda key: (shares[key], key))
    enough = len(ordered) >= 3
    testing = max(sum(share < test for share in shares.values()), int(test > 0 and enough))
    held = max(
        sum(share < test + val for share in shares.values()),
        testing + int(val > 0 and enough),
    )
    place = {key: number for number, key in enumerate(ordered)}

    def split(record: Record) -> str:
        number = place[patient_key(record)]
        return "test" if number < testing else "val" if number < held else "train"

    return [replace(record, split=split(record)) for record in records]


def folds(records: Sequence[Record], count: int, fold: int, seed: int = 0) -> list[Record]:
    """Return the images with the split `val` for the patients of one fold, else `train`.

    Folds differ by at most one patient in size.

    Raises:
        ConfigError: fewer than two folds, a fold that is not there, or fewer patients than folds.
    """
    patients = sorted({patient_key(r) for r in records}, key=lambda key: (_share(seed, key), key))
    if count < 2 or not 0 <= fold < count or len(patients) < count:
        raise ConfigError(
            f"--data.fold {fold} of --data.folds {count} cannot be with {len(patients)} patients: "
            "give 2 folds or more, one per patient at most, and a fold from 0."
        )
    chosen = set(patients[fold::count])
    return [replace(r, split="val" if patient_key(r) in chosen else "train") for r in records]


def leaks(records: Sequence[Record]) -> list[str]:
    """Return the patients that are in more than one split, in order."""
    splits: dict[str, set[str]] = {}
    for record in records:
        if record.patient is not None and record.split is not None:
            splits.setdefault(record.patient, set()).add(record.split)
    return sorted(patient for patient, found in splits.items() if len(found) > 1)


def require_disjoint(collections: Sequence[Collection]) -> None:
    """Refuse data sets that have a patient in two splits.

    Raises:
        DataError: there is one.
    """
    for collection in collections:
        found = set(leaks(collection.records))
        if not found:
            continue
        images = Counter(r.split for r in collection.records if r.patient in found)
        shown = ", ".join(
            f"{counted(images[split], 'image')} in {split}" for split in SPLITS if images[split]
        )
        remedy = (
            "give --data.columns split= to have it split by patients"
            if collection.layout == "csv"
            else "take their images out of all lists but one"
        )
        raise DataError(
            f"{collection.root}: more than one split holds images of "
            f"{counted(len(found), 'patient')} ({shown}), which "
            f"makes results look better than they are: correct the split, or {remedy}."
        )


def patient_key(record: Record) -> str:
    """Return what must not be divided: the patient, or the image where nobody is known."""
    return f"image:{record.name}" if record.patient is None else f"patient:{record.patient}"


def complete(collection: Collection, config: SourceConfig) -> None:
    """Draw the splits that a data set does not have, in place, with a note."""
    records, seed = collection.records, config.seed
    there = {record.split for record in records}
    nobody = sum(record.patient is None for record in records)
    drawn = ""
    if there == {None}:
        collection.drawn = SPLITS
        records = patients_split(records, seed, config.val_fraction, config.test_fraction)
        drawn = f"no split given; drawn by patients (seed {seed})"
    if config.folds:
        kept = [record for record in records if record.split == "test"]
        rest = [record for record in records if record.split != "test"]
        records = [*folds(rest, config.folds, config.fold, seed), *kept]
        drawn = f"fold {config.fold} of {config.folds} validates; drawn by patients (seed {seed})"
    elif there >= {"train"} and "val" not in there and config.val_fraction:
        kept = [record for record in records if record.split != "train"]
        rest = [record for record in records if record.split == "train"]
        records = [*patients_split(rest, seed, config.val_fraction, 0.0), *kept]
        drawn = f"no val given; drawn from train by patients (seed {seed})"
    if drawn:
        collection.drawn = collection.drawn or ("train", "val")
        counts = Counter(record.split for record in records)
        collection.notes.append(
            f"{drawn}: {', '.join(f'{counts[s]} {s}' for s in SPLITS if counts[s])}"
        )
        if nobody:
            collection.notes.append(
                f"{counted(nobody, 'image')} of unknown patients split one by one"
            )
    collection.records = records


def _share(seed: int, key: str) -> float:
    """Return a number in [0, 1) that belongs to a patient."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _common(collections: Sequence[Collection], labelled: bool) -> tuple[tuple[str, ...], bool]:
    """Return the findings of all data sets and whether they exclude each other."""
    first = collections[0]
    for other in collections[1:]:
        if (other.findings, other.exclusive) == (first.findings, first.exclusive):
            continue
        if not labelled:
            return (), False
        both = [name for name in first.findings if name in other.findings]
        remedy = f"take those that both have: --data.labels {' '.join(map(repr, both))}"
        raise DataError(
            f"{first.root} and {other.root} have different findings: "
            f"{remedy if both else 'train on one of them'}."
        )
    return first.findings, first.exclusive
