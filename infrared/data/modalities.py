"""Aligned images of several kinds, one folder for each kind: rgb/ and thermal/ with equal names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from crossband.infrared.data.frames import Stretch
from crossband.infrared.data.pool import (
    FrameStore,
    check_parts,
    choose_box,
    cut,
    images_in,
    to_tensor,
)
from crossband.shared.data.images import photo_size
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.registry import IMAGENET_MEAN, IMAGENET_STD
from crossband.shared.training.sampler import item_random

COLOUR = "rgb"  # the modality that has three channels


@dataclass
class Scenes:
    """Scenes seen by several sensors.

    Attributes:
        files: Of each scene: modality -> file.
        counts: Folder's name -> number of its scenes.
        notes: What was left out, and why.
    """

    files: list[dict[str, Path]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find_scenes(roots: Sequence[str], folders: Mapping[str, str]) -> Scenes:
    """Match the files of the modalities' folders by their names without suffix.

    Args:
        roots: Folders that hold the modalities' folders.
        folders: Modality -> folder below each root.

    Raises:
        ConfigError: no root, or fewer than two modalities.
        DataError: a folder that does not exist, or no scene that all modalities have.
    """
    if not roots or len(folders) < 2:
        raise ConfigError(
            "Several kinds of images are wanted: give --data.root and --data.modalities, such as "
            "rgb=vi thermal=ir (modality=folder)."
        )
    scenes = Scenes()
    for root in map(Path, roots):
        found: dict[str, dict[str, Path]] = {}
        for name, folder in folders.items():
            if not (root / folder).is_dir():
                raise DataError(
                    f"{root / folder} is not a folder: it should hold the {name} images."
                )
            found[name] = {path.stem: path for path in images_in(root / folder)}
        stems = set.intersection(*(set(files) for files in found.values()))
        if alone := set.union(*(set(files) for files in found.values())) - stems:
            scenes.notes.append(f"{root}: {len(alone)} files without a partner left out")
        before = len(scenes.files)
        for stem in sorted(stems):
            files = {name: found[name][stem] for name in folders}
            try:
                sizes = {photo_size(path) for path in files.values()}
            except DataError as error:
                scenes.notes.append(f"left out: {error}")
                continue
            if len(sizes) > 1:
                scenes.notes.append(f"left out: {root.name} {stem}, whose images differ in size")
                continue
            scenes.files.append(files)
        scenes.counts[root.name] = len(scenes.files) - before
    if not scenes.files:
        why = f" ({scenes.notes[0]})" if scenes.notes else ""
        raise DataError(f"No scene has images of all of {', '.join(folders)}{why}.")
    return scenes


def scene_stores(
    names: Iterable[str], cache_gb: float = 2.0, stretch: Stretch | None = None
) -> dict[str, FrameStore]:
    """Return what reads each modality: colours for `rgb`, grey for all others."""
    names = list(names)
    return {
        name: FrameStore(cache_gb / len(names), "rgb" if name == COLOUR else "grey", stretch)
        for name in names
    }


class SceneImages(Dataset[dict[str, Tensor]]):
    """The same crop of all modalities: items are `{modality: (C, S, S)}`.

    Colours are normalised by ImageNet's mean and std, other modalities are in [0, 1] and left to
    the task, which standardises each sample.

    Args:
        files: Scenes.
        size: S.
        stores: Reads them, one for each modality (`scene_stores`).
        random: Draw crops, keyed by (seed, epoch, index).
        seed: Of the draws.
        smallest: Smallest part of an image's area.
        largest: Largest part of it.

    Raises:
        ConfigError: parts that are not in (0, 1], or the wrong way round.
    """

    def __init__(
        self,
        files: Sequence[Mapping[str, Path]],
        size: int,
        stores: Mapping[str, FrameStore],
        *,
        random: bool,
        seed: int = 0,
        smallest: float = 0.2,
        largest: float = 1.0,
    ) -> None:
        """Keep the settings."""
        check_parts(smallest, largest)
        self.files, self.size, self.stores = list(files), size, stores
        self.random, self.seed, self.area = random, seed, (smallest, largest)

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one scene; one whose files broke is replaced by the next."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        pixels = self._readable(int(index))
        draw = item_random(self.seed, index) if self.random else None
        shape = next(iter(pixels.values())).shape[:2]
        box, mirrored = choose_box(shape, self.area, draw)
        items = {}
        for name, image in pixels.items():
            mean, std = (IMAGENET_MEAN, IMAGENET_STD) if name == COLOUR else ((0.0,), (1.0,))
            items[name] = to_tensor(cut(image, box, self.size, mirrored), mean, std)
        return items

    def _readable(self, index: int) -> dict[str, np.ndarray]:
        for step in range(len(self)):
            files = self.files[(index + step) % len(self)]
            pixels = {name: self.stores[name].try_read(path) for name, path in files.items()}
            found = {name: image for name, image in pixels.items() if image is not None}
            if len(found) == len(files):
                return found
        raise DataError(f"None of the {len(self)} scenes can be read any more: copy them again.")
