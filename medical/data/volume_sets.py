"""Volumes with masks in folders, as 3-D segmentation sets lie on disk.

| known by | as in |
|---|---|
| `dataset.json`, `imagesTr/`, `labelsTr/`, `imagesTs/` | Medical Segmentation Decathlon, nnU-Net |
| `images/`, `labels/` (`masks/`, `segmentations/`) of equal stems, `train/images/` ..., `train/` and `train_labels/` | many |
| a folder per study: `X/X_flair.nii.gz`, `X/X_t1ce.nii.gz`, `X/X_seg.nii.gz`, also `X-t2f`, `X-seg` | BraTS |
| `Case00.nii.gz`, `Case00_segmentation.nii.gz` | prostate MRI of several sites |
| `volume-0.nii`, `segmentation-0.nii`; `X/imaging.nii.gz`, `X/segmentation.nii.gz` | LiTS, KiTS |
| `ct_train/ct_train_1001_image.nii.gz`, `ct_train/ct_train_1001_label.nii.gz` | MM-WHS |

Roles and splits are words of the folders' names; what else a folder is called must be the same for
a volume and its mask, and so must the stems without their usual ends.
"""  # noqa: E501

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crossband.medical.config import SourceConfig
from crossband.medical.data.records import Collection, Record, counted
from crossband.medical.data.tables import split_name
from crossband.medical.data.volumes import FOREIGN_VOLUMES, is_volume
from crossband.shared.errors import ConfigError, DataError

_MASK_WORDS = {"mask", "masks", "label", "labels", "segmentation", "segmentations", "gt", "truth"}
_IMAGE_WORDS = {"image", "images", "img", "imgs", "data", "volumes", "scans"}
_DECATHLON = re.compile(r"(images|labels)(tr|ts|val)", re.IGNORECASE)
_DECATHLON_SPLITS = {"tr": None, "ts": "test", "val": "val"}
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_START = r"(?:^|[\s_.-])"  # of the last part of a stem
_MASK_END = re.compile(
    rf"{_START}(?:masks?|segmentation|segm?|labels?|gt|groundtruth)$", re.IGNORECASE
)
_IMAGE_END = re.compile(rf"{_START}(?:images?|imaging|img|volume|scan)$", re.IGNORECASE)
_MASK_FIRST = re.compile(r"^(?:masks?|segmentation|labels?)[\s_.-]", re.IGNORECASE)
_IMAGE_FIRST = re.compile(r"^(?:images?|img|volume|scan)[\s_.-]", re.IGNORECASE)
_NUMBERED = re.compile(r"[_-]\d{4}$")  # nnU-Net's channels
_SEQUENCES = (
    *("flair", "t2flair", "t2-flair", "t2_flair", "t1ce", "t1gd", "t1c", "t1n", "t1w", "t1"),
    *("t2f", "t2w", "t2", "pdw", "pd", "adc", "dwi", "swi", "ct", "pet"),
)
_MOST = 3  # sequences that become channels
_SUFFIX = re.compile(r"\.(?:nii|nii\.gz|npy)$", re.IGNORECASE)

# Split, what else its folders are called, stem without its usual ends.
_Key = tuple[str | None, tuple[str, ...], str]


@dataclass
class _Study:
    """Volumes of one grid.

    Attributes:
        images: Files by sequence; "" where the name tells none.
        masks: Files.
    """

    images: dict[str, list[Path]] = field(default_factory=dict)
    masks: list[Path] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of volumes without the mask."""
        return sum(len(paths) for paths in self.images.values())


def detect(root: Path) -> bool:
    """Whether a folder holds a volume with a mask, or volumes and `dataset.json`."""
    names = tuple(_volumes(root))
    if not names:
        return False
    if (root / "dataset.json").is_file():
        return True
    return any(study.images and study.masks for study in _studies(root, names, ()).values())


def read(root: Path, config: SourceConfig) -> Collection:
    """Take the volumes of a folder with their masks.

    A study is a patient, since names do not tell more. Volumes without a mask are left out, but for
    those of the test part.

    Args:
        root: The folder.
        config: Of it, `sequences` choose the channels, in their order; default: the first.

    Raises:
        ConfigError: more than three sequences, or one twice.
        DataError: no volume, `dataset.json` is damaged, or no study has the sequences.
    """
    wanted = [name.lower() for name in config.sequences]
    if len(wanted) > _MOST or len(set(wanted)) < len(wanted):
        raise ConfigError(
            f"--data.sequences {' '.join(config.sequences)}: name up to {_MOST}, each once."
        )
    about = _description(root)
    ending = str(about.get("file_ending") or ".nii.gz").lower()
    if not is_volume(Path("volume" + ending)):
        raise DataError(f"{root / 'dataset.json'} is of {ending} files: convert them to .nii.gz.")
    paths = tuple(_volumes(root))
    notes: list[str] = []
    channels = _channels(about)
    studies = _studies(root, paths, wanted, numbered=bool(about))
    if not any(name.isdigit() for study in studies.values() for name in study.images):
        channels = {}
    wanted = [channels.get(name, name) for name in wanted]
    wanted = wanted or _first_sequence(studies, channels, notes)
    records = _records(root, studies, wanted, notes)
    if not records:
        why = f" ({'; '.join(notes)})" if notes else ""
        raise DataError(
            f"{root} holds no volume with a mask{why}: .nii, .nii.gz and .npy are read, in folders "
            "as images/ and labels/, or with ends as _seg."
        )
    foreign = sum(name.lower().endswith(FOREIGN_VOLUMES) for _, name in _files(root))
    if foreign:
        notes.append(f"{counted(foreign, 'file')} of kinds that are not read: convert to .nii.gz")
    classes = _classes(about, root, notes)
    return Collection(root, "volumes", (), False, records, notes, classes=classes)


def _files(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield folders and names of files, all levels, in order; hidden ones are left out."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder), name


def _volumes(root: Path) -> Iterator[Path]:
    return (folder / name for folder, name in _files(root) if is_volume(Path(name)))


def _studies(
    root: Path, paths: Sequence[Path], sequences: Sequence[str], numbered: bool = False
) -> dict[_Key, _Study]:
    """Sort files by studies.

    Args:
        root: The folder.
        paths: Volumes and masks in it.
        sequences: Further ends of names that tell a sequence.
        numbered: Whether names of images may end in a channel: `_0000`. They do not where masks
            have the same names.
    """
    stems = {path: _SUFFIX.sub("", path.name) for path in paths}
    folders = {path: path.relative_to(root).parts[:-1] for path in paths}
    masks = {path for path in paths if is_mask_volume(path.relative_to(root))}
    labelled = {stems[path] for path in masks}
    numbered = numbered and not any(stems[path] in labelled for path in paths if path not in masks)
    names = sorted({*_SEQUENCES, *sequences}, key=len, reverse=True)
    sequence_end = re.compile(rf"{_START}({'|'.join(map(re.escape, names))})$", re.IGNORECASE)
    studies: dict[_Key, _Study] = {}
    for path in paths:
        if path in masks:
            base = _MASK_FIRST.sub("", _MASK_END.sub("", stems[path]))
        else:
            base = _IMAGE_FIRST.sub("", stems[path])
        base, sequence = _IMAGE_END.sub("", base), ""
        if numbered and path not in masks and (end := _NUMBERED.search(base)):
            base, sequence = base[: end.start()], end[0][1:]
        elif not numbered and (end := sequence_end.search(base)):
            base, sequence = base[: end.start()], end[1].lower()
        split, rest = _place(folders[path], base)
        study = studies.setdefault((split, rest, base), _Study())
        if path in masks:
            study.masks.append(path)
        else:
            study.images.setdefault(sequence, []).append(path)
    return studies


def is_mask_volume(relative: Path) -> bool:
    """Whether the names of a volume and of its folders say that it is the mask of another one."""
    stem, folders = _SUFFIX.sub("", relative.name), relative.parts[:-1]
    return (
        any(_role(folder)[1] == "mask" for folder in folders)
        or bool(_MASK_END.search(stem))
        or bool(_MASK_FIRST.search(stem))
    )


def _place(folders: Sequence[str], base: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the split and what else folders are called; one of a single study tells no split."""
    split, rest = None, []
    for number, folder in enumerate(folders):
        of_study = number == len(folders) - 1 and base.lower() in ("", folder.lower())
        found, role, other = _role(folder)
        if of_study and role is None:
            rest.append(folder)
            continue
        split = found or split
        if other:
            rest.append(other)
    return split, tuple(rest)


def _role(folder: str) -> tuple[str | None, str | None, str]:
    """Return split, role (`image`, `mask` or None) and the other words of a folder's name.

    The split of `imagesTr` is `Tr`: it says nothing where there is no other.
    """
    if found := _DECATHLON.fullmatch(folder):
        role = "image" if found[1].lower() == "images" else "mask"
        return _DECATHLON_SPLITS[found[2].lower()], role, ""
    split, role, other = None, None, []
    for word in _WORDS.findall(folder):
        small = word.lower()
        if small in _MASK_WORDS:
            role = "mask"
        elif small in _IMAGE_WORDS:
            role = role or "image"
        elif known := _split(small):
            split = known
        else:
            other.append(word)
    # A name without such words stays as it is.
    return split, role, "_".join(other) if split or role else folder


def _split(word: str) -> str | None:
    try:
        return split_name(word, "")
    except DataError:
        return None


def _first_sequence(
    studies: Mapping[_Key, _Study], channels: Mapping[str, str], notes: list[str]
) -> list[str]:
    """Return the sequence to take where none is named: the first of those most studies have.

    Nothing is returned where no study has more than one.
    """
    if all(study.count <= 1 for study in studies.values()):
        return []
    counts = Counter(name for study in studies.values() for name in study.images)
    first, *others = sorted(counts, key=lambda name: (-counts[name], name))
    if others:
        titles = {number: name for name, number in channels.items()}
        shown = [titles.get(name, name) or "those without a name" for name in (first, *others)]
        notes.append(
            f"of each study the sequence {shown[0]} taken, and {', '.join(shown[1:])} passed over: "
            "--data.sequences takes up to three"
        )
    return [first]


def _records(
    root: Path, studies: Mapping[_Key, _Study], wanted: Sequence[str], notes: list[str]
) -> list[Record]:
    left: Counter[tuple[str, str]] = Counter()
    records: list[Record] = []
    for (split, rest, base), study in studies.items():
        if not study.images:
            left["mask", "without a volume"] += len(study.masks)
            continue
        paths = _chosen(study, wanted)
        if paths is None:
            left["volume", f"without one of the sequences {', '.join(wanted)}"] += 1
        elif any(len(path) > 1 for path in paths):
            left["volume", "with two files of one name"] += 1
        elif len(study.masks) > 1:
            left["volume", "with several masks"] += 1
        elif not study.masks and split != "test":
            left["volume", "without a mask"] += 1
        else:
            same = bool(rest) and base.lower() in ("", rest[-1].lower())
            parts = [*rest] if same else [*rest, base]
            (first,), *others = paths
            records.append(
                Record(
                    first,
                    first.relative_to(root).as_posix(),
                    patient="/".join([split, *parts] if split else parts),
                    split=split,
                    mask=study.masks[0] if study.masks else None,
                    sequences=tuple(path[0] for path in others),
                )
            )
    notes += [f"{counted(count, what)} left out, {why}" for (what, why), count in left.items()]
    bare = sum(record.mask is None for record in records)
    if bare:
        notes.append(f"{counted(bare, 'volume')} of the test part without a mask: not for scores")
    if len({record.split for record in records}) > 1:  # those without a split train
        records = [replace(record, split=record.split or "train") for record in records]
    return sorted(records, key=lambda record: record.name)


def _chosen(study: _Study, wanted: Sequence[str]) -> list[list[Path]] | None:
    """Return the files of each sequence, or None if one is missing."""
    if not wanted:
        return list(study.images.values())
    found = []
    for name in wanted:
        word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", re.IGNORECASE)
        paths = study.images.get(name) or [
            path
            for several in study.images.values()
            for path in several
            if name and word.search(_SUFFIX.sub("", path.name))
        ]
        if not paths:
            return None
        found.append(paths)
    return found


def _description(root: Path) -> dict[str, Any]:
    """Return `dataset.json`, or nothing if there is none."""
    path = root / "dataset.json"
    if not path.is_file():
        return {}
    try:
        about = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is no json file ({type(error).__name__}): copy it again."
        ) from error
    if not isinstance(about, dict):
        raise DataError(f"{path} does not describe a data set: copy it again, or take it away.")
    return about


def _channels(about: Mapping[str, Any]) -> dict[str, str]:
    """Return the ends of file names by what `dataset.json` calls the channels: flair: 0000."""
    named = about.get("channel_names") or about.get("modality")
    if not isinstance(named, dict):
        return {}
    return {
        str(name).lower(): f"{int(number):04d}"
        for number, name in named.items()
        if str(number).isdigit()
    }


def _classes(about: Mapping[str, Any], root: Path, notes: list[str]) -> tuple[str, ...]:
    """Return the names of the values 0, 1, 2, ... by `dataset.json`."""
    labels = about.get("labels")
    if not isinstance(labels, dict) or not labels:
        return ()
    try:
        by_value = {int(value): str(name) for value, name in labels.items()}
    except (TypeError, ValueError):
        try:
            by_value = {int(value): str(name) for name, value in labels.items()}
        except (TypeError, ValueError):  # regions of several values
            by_value = {}
    names = tuple(by_value[value] for value in sorted(by_value))
    if sorted(by_value) != list(range(len(labels))) or len(set(names)) < max(2, len(names)):
        notes.append(
            "dataset.json does not name the values 0, 1, 2, ... of its masks: name their classes "
            "by --data.classes and --data.mask_values"
        )
        return ()
    return names
