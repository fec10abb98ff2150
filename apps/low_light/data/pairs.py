"""Pairs of a dark and a well-lit photograph, in the layouts that data sets come in.

LOL v1 (`our485/low`, `our485/high`) and its BasicSR form (`Train/input`, `Train/target`), LOL v2
(`Real_captured/Train/Low`, `.../Normal`, names perhaps with `low`/`normal` before the number),
LSRW (`Nikon/low`, `Nikon/high`, ...), SICE (`1/1.JPG`... with `Label/1.JPG`), or any two folders.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from crossband.apps.low_light.data.photos import Photos, PhotoStore, readable, to_tensor
from crossband.shared.data.images import SUFFIXES, photo_size
from crossband.shared.errors import ConfigError, DataError

LAYOUTS = (("low", "high"), ("low", "normal"), ("input", "target"), ("low", "gt"), ("input", "gt"))
_PREFIX = re.compile(r"^(low|normal|high|input|target|gt)[_-]?(?=\d)", re.IGNORECASE)
_TRAIN = {"train", "training", "training data", "our485"}
_TEST = {"test", "eval", "eval15", "val", "testing", "evaluation", "test data"}


@dataclass(frozen=True)
class Pair:
    """Two files of one scene."""

    low: Path
    high: Path

    @property
    def name(self) -> str:
        """Name of the dark file."""
        return self.low.name


def find_pairs(root: str | Path) -> tuple[list[Pair], list[str]]:
    """Find the pairs of a data set.

    Args:
        root: Folder that holds the two folders, or folders of such.

    Returns:
        Pairs in the order of their names, and notes on files without a partner. No pairs and no
        notes if there is no known layout.

    Raises:
        ConfigError: training and test parts lie below the one folder.
        DataError: the folder does not exist, or pairs of different sizes.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give the folder of a data set.")
    pairs: list[Pair] = []
    notes: list[str] = []
    parts: dict[str, str] = {}
    for folder in [root, *sorted(p for p in root.rglob("*") if p.is_dir())]:
        found = _pairs_here(folder, notes)
        if found:
            words = {word.lower() for word in folder.relative_to(root).parts}
            for part, names in (("training", _TRAIN), ("test", _TEST)):
                if words & names:
                    parts[part] = str(folder)
            pairs += found
    if len(parts) == 2:
        raise ConfigError(
            f"{root} holds training and test parts ({parts['training']}, {parts['test']}): name "
            "one of them."
        )
    check_sizes(pairs)
    return pairs, notes


def match(low: str | Path, high: str | Path) -> tuple[list[Pair], list[str]]:
    """Match the files of two folders by their names, `low`/`normal` before a number left out.

    Raises:
        DataError: a folder that does not exist, or no pair.
    """
    sides = []
    for folder in map(Path, (low, high)):
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder.")
        sides.append({_key(path): path for path in _photos(folder)})
    notes: list[str] = []
    pairs = _join(sides[0], sides[1], f"{low} and {high}", notes)
    if not pairs:
        raise DataError(f"No file in {low} has a partner in {high}: names must be equal.")
    check_sizes(pairs)
    return pairs, notes


def check_sizes(pairs: Sequence[Pair]) -> None:
    """Compare the sizes by the files' headers; files that cannot be read are left to the readers.

    Raises:
        DataError: two photographs of a pair differ.
    """
    for pair in pairs:
        try:
            low, high = photo_size(pair.low), photo_size(pair.high)
        except DataError:
            continue
        if low != high:
            raise DataError(
                f"{pair.low} is {low[0]} x {low[1]}, its partner {pair.high} {high[0]} x "
                f"{high[1]}: they are not one scene, or one was resized."
            )


def readable_pairs(pairs: Sequence[Pair], store: PhotoStore) -> tuple[list[Pair], list[str]]:
    """Return the pairs of which both files can be read, and a sentence for each other file.

    Raises:
        DataError: none can be read.
    """
    files = sorted({path for pair in pairs for path in (pair.low, pair.high)})
    good, problems = readable(files, store)
    kept = set(good)
    whole = [pair for pair in pairs if pair.low in kept and pair.high in kept]
    if not whole:
        raise DataError(f"No pair is left of {len(pairs)}: {problems[0]}")
    return whole, problems


class Pairs(Photos):
    """Crops of pairs: items are `{"image": dark, "target": well lit}`, (3, H, W) in [0, 1].

    Args:
        pairs: Files.
        settings: Of `Photos`, less the paths.
        options: Same.
    """

    def __init__(self, pairs: Sequence[Pair], *settings, **options) -> None:  # noqa: ANN002
        """Keep the pairs."""
        super().__init__([pair.high for pair in pairs], *settings, **options)
        self.pairs = list(pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return the same crop of both photographs."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        pair = self.pairs[index % len(self.pairs)]
        images = [self.store.read(path) for path in (pair.low, pair.high)]
        low, high = self.crop(images, index)
        return {"image": to_tensor(low), "target": to_tensor(high)}


def _pairs_here(folder: Path, notes: list[str]) -> list[Pair]:
    children = {p.name.lower(): p for p in folder.iterdir() if p.is_dir()}
    for low, high in LAYOUTS:
        if low in children and high in children:
            sides = [{_key(p): p for p in _photos(children[name])} for name in (low, high)]
            return _join(sides[0], sides[1], str(folder), notes)
    if "label" in children:
        return _stacks(children["label"], folder, notes)
    return []


def _stacks(labels: Path, folder: Path, notes: list[str]) -> list[Pair]:
    """Pair the darker half of every exposure stack (SICE) with its label."""
    pairs = []
    for label in _photos(labels):
        stack = folder / label.stem
        if not stack.is_dir():
            notes.append(f"{label} has no exposures ({stack})")
            continue
        shots = sorted(_photos(stack), key=lambda p: (len(p.stem), p.stem))
        pairs += [Pair(shot, label) for shot in shots[: len(shots) // 2]]
    return pairs


def _join(low: dict[str, Path], high: dict[str, Path], where: str, notes: list[str]) -> list[Pair]:
    alone = sorted(low.keys() ^ high.keys())
    if alone:
        notes.append(f"{where}: {len(alone)} file(s) without a partner (first: {alone[0]})")
    return [Pair(low[key], high[key]) for key in sorted(low.keys() & high.keys())]


def _key(path: Path) -> str:
    return _PREFIX.sub("", path.stem).lower()


def _photos(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
    )
