"""What LVM-Med learns from: folders of images and volumes of any modality (section 3).

A folder is one modality. Slices of one volume stay together when images are held back.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from crossband.medical.data.colour import read_picture
from crossband.medical.data.dicom_series import (
    DicomFile,
    index_series,
    look_at,
    read_dicom_slice,
)
from crossband.medical.data.radiographs import DICOM_SUFFIXES, has_dicom_magic
from crossband.medical.data.slices import Slice
from crossband.medical.data.volumes import (
    FOREIGN_VOLUMES,
    Axis,
    index_volume,
    is_volume,
    read_slice,
)
from crossband.medical.privacy import Names
from crossband.shared.data.images import FOREIGN_SUFFIXES, SUFFIXES, photo_size
from crossband.shared.data.store import ImageStore
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.files import list_digest

Item = Path | Slice
_DUPLICATE_SIDES = (0.85, 0.95)  # of a duplicate's crop, as part of the image's
# Folders and ends of names that say that a file is a mask of another one.
_MASK_FOLDERS = ("mask", "masks", "label", "labels", "labelstr", "labelsts", "segmentations")
_MASK_ENDS = ("_mask", "_masks", "_seg", "_segmentation", "_label", "_labels")


@dataclass
class Pool:
    """Images to learn from.

    Attributes:
        sources: Of each modality: an image, the slices of a volume or those of a DICOM series.
        skipped: What could not be read, and why; a sentence each.
        notes: What else was left out; a sentence each.
        fingerprint: sha256 of the names of all images within their folders.
    """

    sources: dict[str, list[tuple[Item, ...]]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fingerprint: str = ""

    @property
    def images(self) -> dict[str, list[Item]]:
        """Images of each modality, in order."""
        return {
            name: [item for source in sources for item in source]
            for name, sources in self.sources.items()
        }

    @property
    def counts(self) -> dict[str, int]:
        """Number of images of each modality."""
        return {name: len(items) for name, items in self.images.items()}

    def split(self, fraction: float, seed: int = 0) -> tuple[Pool, Pool]:
        """Hold back part of every modality, volumes as a whole; return the rest and the part.

        At least one source of each modality stays, and of those with two or more one is held back.

        Args:
            fraction: Part of the sources that is held back.
            seed: Of the choice.

        Raises:
            ConfigError: a part out of (0, 1), or a pool of single sources.
        """
        if not 0 < fraction < 1:
            raise ConfigError(f"--data.val_fraction {fraction:g} must be in (0, 1).")
        rest: dict[str, list[tuple[Item, ...]]] = {}
        held: dict[str, list[tuple[Item, ...]]] = {}
        for number, (name, sources) in enumerate(self.sources.items()):
            count = min(len(sources) - 1, max(1, round(fraction * len(sources))))
            order = np.random.default_rng((seed, number)).permutation(len(sources))
            chosen = set(order[:count].tolist())
            rest[name] = [source for i, source in enumerate(sources) if i not in chosen]
            if chosen:
                held[name] = [sources[i] for i in sorted(chosen)]
        if not held:
            raise ConfigError(
                "No modality has two images or volumes, so none can be held back to validate: give "
                "more by --data.root."
            )
        return (
            Pool(rest, self.skipped, self.notes, self.fingerprint),
            Pool(held, self.skipped, self.notes, self.fingerprint),
        )


def find_pool(
    roots: Sequence[str],
    names: Names,
    *,
    axis: Axis = "auto",
    windows: Mapping[str, Sequence[float]] | None = None,
    unpack: str | Path | None = None,
) -> Pool:
    """Find the images and volumes to learn from; hidden files and masks are left out.

    What cannot be read is skipped and listed. Of images the header is read, of volumes everything
    (see `volumes.index_volume`).

    Args:
        roots: Folders, or `name=folder`; a folder's modality is its own name or the one given.
        names: What files may be called.
        axis: Across which NIfTI and npy volumes are sliced; DICOM is taken as acquired.
        windows: Centre and width of the values of volumes, by modality: {"ct": (40, 400)}.
        unpack: Folder to decode NIfTI and npy volumes into; they are pictures of patients.

    Raises:
        ConfigError: no folder, two of one name, a window of a modality that is not there.
        DataError: a folder that does not exist, or nothing in it that can be read.
    """
    pool, found, windows = Pool(), list[str](), dict(windows or {})
    folders = _named(roots)
    if unknown := set(windows) - {name for name, _ in folders}:
        raise ConfigError(
            f"--data.windows is given for {', '.join(sorted(unknown))}: the modalities are "
            f"{', '.join(dict(folders))}."
        )
    for name, root in folders:
        if not root.is_dir():
            raise DataError(f"{root} is not a folder: give folders of images as --data.root.")
        search = _Search(root, names, axis, tuple(windows.get(name, ())), unpack, pool)
        sources = search.run()
        found += [f"{name}/{label}" for label in search.labels]
        pool.sources.setdefault(name, []).extend(sources)
        if not sources:
            why = f"; the first that cannot: {pool.skipped[0]}" if pool.skipped else ""
            raise DataError(f"There is no image or volume in {root} that can be read{why}.")
    pool.fingerprint = list_digest(found)
    return pool


class PictureStore(ImageStore):
    """Reads images and slices and keeps them decoded while they fit a budget."""

    def decode(self, path: Item) -> np.ndarray:  # type: ignore[override]
        """Read an image or a slice, uint8 (H, W) or RGB (H, W, 3)."""
        if not isinstance(path, Slice):
            return read_picture(path)
        return read_slice(path) if is_volume(path.path) else read_dicom_slice(path)


class PoolImages:
    """The images of a pool as a sequence; modalities follow each other.

    Args:
        pool: What there is.
        store: Reads it.
        names: What files may be called in messages.

    Attributes:
        entries: Modality and image of every place.
    """

    def __init__(self, pool: Pool, store: PictureStore, names: Names) -> None:
        """List the images."""
        self.store, self.names = store, names
        self.entries = [(name, item) for name, items in pool.images.items() for item in items]
        self._broken: set[int] = set()

    def __len__(self) -> int:
        """Return the number of places."""
        return len(self.entries)

    @property
    def counts(self) -> dict[str, int]:
        """Number of places of each modality."""
        found: dict[str, int] = {}
        for name, _ in self.entries:
            found[name] = found.get(name, 0) + 1
        return found

    def read(self, index: int) -> np.ndarray:
        """Return an image, uint8 (H, W) or RGB (H, W, 3); not to be changed.

        Raises:
            DataError: it cannot be read.
        """
        item = self.entries[index][1]
        try:
            return self.store.read(item)  # type: ignore[arg-type]
        except DataError as error:
            path = item.path if isinstance(item, Slice) else item
            raise DataError(self.names.error(error, path)) from None

    def read_or_next(self, index: int) -> tuple[int, np.ndarray]:
        """Return an image, or the next that can be read, with its place.

        What cannot be read is said once. Which one takes its place depends on the files alone.

        Raises:
            DataError: none can be read.
        """
        for step in range(len(self)):
            place = (index + step) % len(self)
            if place in self._broken:
                continue
            try:
                return place, self.read(place)
            except DataError as error:
                self._broken.add(place)
                print(f"skipped: {error}", file=sys.stderr, flush=True)
        raise DataError(f"None of the {len(self)} images can be read any more: copy them again.")


class BalancedPool(PoolImages):
    """A pool whose smaller modalities are oversampled to the size of the largest.

    Each image is there once as it is; further places are duplicates, each a random crop of 85 to
    95 % of the sides, resized back. The duplicates are the same in all epochs, as if they were
    files: augmentation comes after them.

    Args:
        pool: What there is.
        store: Reads it.
        names: What files may be called in messages.
        copies: Most times that an image may be there; a modality too small for it stays smaller.
        seed: Of the choice of duplicates and their crops.

    Raises:
        ConfigError: fewer than one copy.
    """

    def __init__(
        self,
        pool: Pool,
        store: PictureStore,
        names: Names,
        *,
        copies: int = 10,
        seed: int = 0,
    ) -> None:
        """List the images and their duplicates."""
        super().__init__(pool, store, names)
        if copies < 1:
            raise ConfigError(f"--data.copies {copies} must be at least 1 (no duplicates).")
        self.seed, self.originals = seed, len(self.entries)
        largest = max(self.counts.values(), default=0)
        for number, (name, items) in enumerate(pool.images.items()):
            missing = min(largest, copies * len(items)) - len(items)
            rounds, rest = divmod(missing, len(items)) if items else (0, 0)
            order = np.random.default_rng((seed, number)).permutation(len(items))[:rest]
            chosen = [*(items * rounds), *(items[i] for i in sorted(order))]
            self.entries += [(name, item) for item in chosen]

    def read(self, index: int) -> np.ndarray:
        """Return an image, or the crop of a duplicate in the image's size.

        Raises:
            DataError: it cannot be read.
        """
        pixels = super().read(index)
        if index < self.originals:
            return pixels
        return _cropped(pixels, np.random.default_rng((self.seed, index)))


def _cropped(pixels: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    height, width = pixels.shape[:2]
    part = draw.uniform(*_DUPLICATE_SIDES)
    h, w = max(1, round(part * height)), max(1, round(part * width))
    top, left = int(draw.integers(height - h + 1)), int(draw.integers(width - w + 1))
    crop = Image.fromarray(np.ascontiguousarray(pixels[top : top + h, left : left + w]))
    return np.asarray(crop.resize((width, height), Image.Resampling.BICUBIC))


class _Search:
    """Sorts the files of one folder; what cannot be read goes on the pool's list."""

    def __init__(
        self,
        root: Path,
        names: Names,
        axis: Axis,
        window: tuple[float, ...],
        unpack: str | Path | None,
        pool: Pool,
    ) -> None:
        self.root, self.names, self.pool = root, names, pool
        self.axis, self.window, self.unpack = axis, window, unpack
        self.labels: list[str] = []  # of the images, for the fingerprint

    def run(self) -> list[tuple[Item, ...]]:
        found: list[tuple[Item, ...]] = []
        series: dict[str, list[DicomFile]] = {}
        masks = foreign = 0
        own = Path(self.unpack).resolve() if self.unpack else None
        for path in _files(self.root, own):
            suffix = path.suffix.lower()
            try:
                if is_mask(path.relative_to(self.root)):
                    masks += 1
                elif is_volume(path):
                    items = index_volume(
                        path, axis=self.axis, window=self.window, unpack=self.unpack
                    )
                    found.append(self._named(path, tuple(items)))
                elif suffix in SUFFIXES:
                    photo_size(path)
                    found.append(self._named(path, (path,)))
                elif suffix in DICOM_SUFFIXES or _may_be_dicom(path):
                    file = look_at(path)
                    if file.radiograph:
                        found.append(self._named(path, (path,)))
                    else:
                        key = file.series if file.frames == 1 else str(path)
                        series.setdefault(key, []).append(file)
                elif suffix in FOREIGN_SUFFIXES + FOREIGN_VOLUMES:
                    foreign += 1
            except DataError as error:
                self._skip(path, error)
        for files in series.values():
            try:
                items = index_series(files, window=self.window, skipped=self._skip)
                found.append(self._named(files[0].path, tuple(items)))
            except DataError as error:
                self._skip(files[0].path, error)
        self._note(masks, "files of masks left out")
        self._note(foreign, "files of kinds that are not read left out: convert to PNG or NIfTI")
        return found

    def _named(self, path: Path, items: tuple[Item, ...]) -> tuple[Item, ...]:
        label = path.relative_to(self.root).as_posix()
        self.labels += [f"{label}:{number}" for number in range(len(items))]
        return items

    def _skip(self, path: Path, error: DataError) -> None:
        self.pool.skipped.append(self.names.error(error, path))

    def _note(self, count: int, what: str) -> None:
        if count:
            self.pool.notes.append(f"{self.root.name}: {count} {what}")


def _named(roots: Sequence[str]) -> list[tuple[str, Path]]:
    """Return names and folders; a name may be given to several folders on purpose only."""
    if not roots:
        raise ConfigError("There are no images: give --data.root (folders of images and volumes).")
    found: list[tuple[str, Path]] = []
    own: set[str] = set()
    for root in roots:
        name, given, folder = root.partition("=")
        if given and name and not Path(root).exists():
            found.append((name, Path(folder)))
            continue
        name = Path(root).resolve().name
        if name in own:
            raise ConfigError(
                f"Two folders are called {name}: name their modalities, as --data.root xray={root}."
            )
        own.add(name)
        found.append((name, Path(root)))
    return found


def _files(root: Path, own: Path | None) -> Iterator[Path]:
    """Yield the files of all levels in order, but for hidden ones and what we unpacked."""
    for path in sorted(root.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if path.resolve() != own:
                yield from _files(path, own)
        elif path.is_file():
            yield path


def is_mask(relative: Path) -> bool:
    """Whether the names of a file and of its folders say that it is the mask of another one."""
    folders = {part.lower() for part in relative.parts[:-1]}
    stem = relative.name.lower().partition(".")[0]
    return (
        bool(folders & set(_MASK_FOLDERS))
        or any(folder.endswith("_masks") for folder in folders)
        or stem.endswith(_MASK_ENDS)
    )


def _may_be_dicom(path: Path) -> bool:
    """Archives name DICOM files without a suffix, or by numbers and dots."""
    suffix = path.suffix.lower()
    return (not suffix or suffix[1:].isdigit()) and has_dicom_magic(path)
