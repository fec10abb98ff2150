"""The pool of pre-training images: InfMix's layouts, or any folders of images.

InfMix (UNIP, section 4) is infrared images of many data sets, a part of ImageNet and COCO:

    infpre/<dataset>/thermal/*   (a folder rgb/ beside it is not used)
    in1k/<wnid>/*.JPEG
    coco/train2017/*.jpg

Everything becomes grey, as thermal images are: RGB to luminance and back to three channels.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from crossband.infrared.catalog import MEAN, STD
from crossband.infrared.data.frames import Channel, Stretch, read_frame
from crossband.shared.data.images import SUFFIXES, photo_size
from crossband.shared.data.store import ImageStore
from crossband.shared.errors import ConfigError, DataError, did_you_mean
from crossband.shared.training.sampler import item_random

_WNID = re.compile(r"^n\d{8}$")
_MIXED = ("infpre", "in1k", "coco")
_RATIOS = (3 / 4, 4 / 3)  # of the crops' sides, as torchvision's RandomResizedCrop
_BICUBIC = Image.Resampling.BICUBIC


@dataclass
class Pool:
    """Files to learn from.

    Attributes:
        files: Of each data set, in order.
        notes: What was left out, and why.
    """

    files: dict[str, list[Path]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def paths(self) -> list[Path]:
        """All files."""
        return [path for files in self.files.values() for path in files]


def find_pool(
    roots: Sequence[str],
    *,
    datasets: Sequence[str] = (),
    exclude: Sequence[str] = (),
    per_class: int = 0,
    ratio: float = 1.0,
) -> Pool:
    """Find the files to learn from; those whose header cannot be read are left out and noted.

    Args:
        roots: Folders.
        datasets: Names of data sets to take; empty: all.
        exclude: Names or patterns of files to leave out, or .txt files that list them.
        per_class: First files of each ImageNet class; 0: all.
        ratio: Part of each data set: every int(1 / ratio)-th file.

    Raises:
        ConfigError: no folder given, a data set that is not there, or a ratio out of (0, 1].
        DataError: a folder that does not exist, or nothing to read.
    """
    if not roots:
        raise ConfigError("There are no images: give --data.root (folders of images).")
    if not 0 < ratio <= 1 or per_class < 0:
        raise ConfigError(
            f"--data.ratio {ratio:g} must be in (0, 1], --data.per_class {per_class} at least 0."
        )
    found: dict[str, list[Path]] = {}
    for root in map(Path, roots):
        if not root.is_dir():
            raise DataError(f"{root} is not a folder: give folders of images as --data.root.")
        for name, files in _data_sets(root, per_class).items():
            known = set(found.get(name, ()))
            found.setdefault(name, []).extend(path for path in files if path not in known)
    for name in datasets:
        if name not in found:
            hint = did_you_mean(name, found) or f" There are: {', '.join(sorted(found))}."
            raise ConfigError(f"--data.datasets: there is no data set {name!r}.{hint}")
    pool = Pool()
    shut = _Excluded(exclude)
    every = int(1 / ratio)
    for name, files in found.items():
        if datasets and name not in datasets:
            continue
        kept = [path for path in files if not shut(path)]
        if len(kept) < len(files):
            pool.notes.append(f"{name}: {len(files) - len(kept)} files excluded")
        kept = kept[::every]
        pool.files[name] = _readable(kept, pool.notes)
    if not pool.paths:
        why = f" ({pool.notes[0]})" if pool.notes else ""
        raise DataError(
            f"There is no image to read in {', '.join(roots)}{why}: {', '.join(SUFFIXES)} "
            "files are read."
        )
    return pool


class FrameStore(ImageStore):
    """Reads images as grey and keeps them decoded while they fit a budget.

    Args:
        cache_gb: Budget in GB.
        channel: `grey`, or `thermal`: the fourth channel where there are four; `rgb`: (H, W, 3).
        stretch: Of 16-bit files.
    """

    def __init__(
        self, cache_gb: float = 2.0, channel: Channel = "grey", stretch: Stretch | None = None
    ) -> None:
        """Start empty."""
        super().__init__(cache_gb)
        self.channel, self.stretch = channel, stretch or Stretch()
        self._broken: set[Path] = set()

    def try_read(self, path: Path) -> np.ndarray | None:
        """Return the image, or None if it cannot be read, which is said once."""
        if path in self._broken:
            return None
        try:
            return self.read(path)
        except DataError as error:
            self._broken.add(path)
            print(f"skipped: {error}", file=sys.stderr, flush=True)
            return None

    def decode(self, path: Path) -> np.ndarray:
        """Read the file itself, uint8 (H, W), or (H, W, 3) if `channel` is `rgb`."""
        if self.channel == "rgb":
            return read_frame(path, "rgb", self.stretch)
        if self.channel == "thermal" and _bands(path) == 4:
            return read_frame(path, "thermal", self.stretch)
        pixels = read_frame(path, "rgb", self.stretch)
        return np.asarray(Image.fromarray(pixels).convert("L"))


class PoolImages(Dataset[dict[str, Tensor]]):
    """Crops of the pool: items are `{"image": (3, S, S)}`, normalised by InfMix's mean and std.

    With `random` an item is another crop in every epoch, perhaps mirrored: of at least `smallest`
    of the area, resized bicubically. Otherwise it is the largest square in the middle.

    Args:
        paths: Files.
        size: S.
        store: Reads them.
        random: Draw, keyed by (seed, epoch, index).
        seed: Of the draws.
        smallest: Smallest part of an image's area.
        largest: Largest part of it.
        channels: Of the item, 1 or 3 equal ones.

    Raises:
        ConfigError: parts that are not in (0, 1], or the wrong way round.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        size: int,
        store: FrameStore,
        *,
        random: bool,
        seed: int = 0,
        smallest: float = 0.2,
        largest: float = 1.0,
        channels: int = 3,
    ) -> None:
        """Keep the settings."""
        check_parts(smallest, largest)
        self.paths, self.size, self.store = list(paths), size, store
        self.random, self.seed, self.area = random, seed, (smallest, largest)
        self.channels = channels

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one crop; a file that broke is replaced by the next."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        pixels = self._readable(int(index))
        draw = item_random(self.seed, index) if self.random else None
        box, mirrored = choose_box(pixels.shape[:2], self.area, draw)
        image = to_tensor(cut(pixels, box, self.size, mirrored), MEAN[:1], STD[:1])
        return {"image": image.expand(self.channels, -1, -1)}

    def _readable(self, index: int) -> np.ndarray:
        # Which file takes a broken one's place depends on the files alone, not on the run.
        for step in range(len(self)):
            pixels = self.store.try_read(self.paths[(index + step) % len(self)])
            if pixels is not None:
                return pixels
        raise DataError(f"None of the {len(self)} images can be read any more: copy them again.")


def check_parts(smallest: float, largest: float) -> None:
    """Raise a ConfigError for parts of an area that cannot be."""
    if not 0 < smallest <= largest <= 1:
        raise ConfigError(
            f"--data.smallest {smallest:g} and --data.largest {largest:g} must be in (0, 1], "
            "and the one not above the other."
        )


def choose_box(
    size: tuple[int, int], parts: tuple[float, float], draw: np.random.Generator | None
) -> tuple[tuple[int, int, int, int], bool]:
    """Return a rectangle (left, top, right, bottom) of an image, and whether to mirror it.

    Area and shape are drawn as by torchvision's `RandomResizedCrop`, ten times at most.

    Args:
        size: Height and width.
        parts: Smallest and largest part of the area.
        draw: None: the largest square in the middle.
    """
    height, width = size
    if draw is None:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return (left, top, left + side, top + side), False
    mirrored = bool(draw.random() < 0.5)
    for _ in range(10):
        area = height * width * draw.uniform(*parts)
        ratio = math.exp(draw.uniform(*map(math.log, _RATIOS)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = (int(draw.integers(0, n + 1)) for n in (height - h, width - w))
            return (left, top, left + w, top + h), mirrored
    low, high = _RATIOS  # too long or too high an image: the middle, as far as the shapes allow
    w, h = min(width, round(height * high)), min(height, round(width / low))
    top, left = (height - h) // 2, (width - w) // 2
    return (left, top, left + w, top + h), mirrored


def cut(
    pixels: np.ndarray, box: tuple[int, int, int, int], size: int, mirrored: bool
) -> np.ndarray:
    """Cut a rectangle and bring it to `size` x `size`, bicubically and with antialiasing."""
    left, top, right, bottom = box
    crop = Image.fromarray(np.ascontiguousarray(pixels[top:bottom, left:right]))
    resized = np.asarray(crop.resize((size, size), _BICUBIC))
    return resized[:, ::-1] if mirrored else resized


def to_tensor(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return uint8 (H, W) or (H, W, C) as float32 (1 or C, H, W), `(x / 255 - mean) / std`.

    Args:
        pixels: The image.
        mean: Of each channel, or one for all.
        std: Likewise.
    """
    values = torch.from_numpy(np.array(pixels, np.float32))
    values = values[None] if values.dim() == 2 else values.permute(2, 0, 1)
    centre, spread = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (mean, std))
    return (values / 255 - centre) / spread


def images_in(folder: Path) -> list[Path]:
    """Return the images right in a folder; names that are all numbers are sorted as such."""
    files = [path for path in folder.iterdir() if _is_image(path)]
    if all(path.stem.isdecimal() for path in files):
        return sorted(files, key=lambda path: (int(path.stem), path.name))
    return sorted(files)


def _data_sets(root: Path, per_class: int) -> dict[str, list[Path]]:
    """Return the files of every data set of a folder, by what its subfolders are called."""
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    names = {path.name for path in folders}
    if names & set(_MIXED):
        found: dict[str, list[Path]] = {}
        for name in _MIXED:
            if name in names:
                found |= _data_sets(root / name, per_class)
        return found
    if "thermal" in names:  # infpre/<dataset>
        return {root.name: images_in(root / "thermal")}
    if thermal := [path for path in folders if (path / "thermal").is_dir()]:
        return {path.name: images_in(path / "thermal") for path in thermal}
    if "train2017" in names:
        return {"coco": images_in(root / "train2017")}
    if classes := [path for path in folders if _WNID.match(path.name)]:
        kept = [images_in(path)[: per_class or None] for path in classes]
        return {"in1k": [path for files in kept for path in files]}
    if "train" in names and any(_WNID.match(p.name) for p in (root / "train").iterdir()):
        return _data_sets(root / "train", per_class)
    return {root.name: _below(root)}


def _below(folder: Path) -> list[Path]:
    files = images_in(folder)
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            files += _below(path)
    return files


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _readable(paths: Iterable[Path], notes: list[str]) -> list[Path]:
    """Return the files whose header can be read; note the others."""
    good = []
    for path in paths:
        try:
            with Image.open(path):  # 40 us a file, which counts in a pool of a million
                good.append(path)
        except Exception:  # 16-bit colour TIFF and what is damaged: let the full reader decide
            try:
                photo_size(path)
                good.append(path)
            except DataError as error:
                notes.append(f"left out: {error}")
    return good


def _bands(path: Path) -> int:
    try:
        with Image.open(path) as image:
            return len(image.getbands())
    except OSError:  # 16-bit colour TIFF and what is damaged: the reader says more
        return 0


class _Excluded:
    """Says whether a file is excluded by name, stem, end of its path, or a pattern of these."""

    def __init__(self, items: Sequence[str]) -> None:
        names: list[str] = []
        for item in items:
            if item.endswith(".txt"):
                try:
                    lines = Path(item).read_text(encoding="utf-8").splitlines()
                except OSError as error:
                    raise ConfigError(f"--data.exclude {item}: {error.strerror}.") from error
                names += [line.strip() for line in lines if line.strip()]
            else:
                names.append(item)
        self.patterns = [name for name in names if set(name) & set("*?[")]
        self.exact = set(names) - set(self.patterns)

    def __call__(self, path: Path) -> bool:
        if not self.exact and not self.patterns:
            return False
        full = path.as_posix()
        ends = {path.stem, *("/".join(path.parts[-n:]) for n in range(1, len(path.parts) + 1))}
        if ends & self.exact or full in self.exact:
            return True
        return any(
            fnmatchcase(path.name, p) or fnmatchcase(full, f"*/{p.lstrip('/')}")
            for p in self.patterns
        )
