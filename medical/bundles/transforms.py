"""How bundles of medical networks read radiographs, in the form of MONAI's dictionary transforms.

The same functions as `crossband medical predict` and `train` take, so that a bundle gives what the
library gives. A stranger's configuration may build what is here with any arguments
(`crossband.shared.bundles.safety`): nothing takes code or writes files.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from PIL import Image
from torch import nn

from crossband.medical.bundles.volume_transforms import (
    LoadVolumed,
    LoadVolumeMaskd,
    RestoreVolumed,
    list_volumes,
)
from crossband.medical.data.masks import MaskClasses, read_mask
from crossband.medical.data.radiographs import Radiograph, is_radiograph_file, read_radiograph
from crossband.medical.data.records import Record
from crossband.medical.data.transforms import (
    Normalisation,
    at_least,
    centre_view,
    random_tone,
    random_view,
    random_warp,
    stretched_view,
)
from crossband.medical.privacy import Names
from crossband.shared.errors import DataError
from crossband.shared.layers.resize import resize as resized

__all__ = [
    "LoadMaskd",
    "LoadRadiographd",
    "LoadVolumeMaskd",
    "LoadVolumed",
    "RandLoadRadiographd",
    "RandWarpd",
    "RestoreSized",
    "RestoreVolumed",
    "create_tuned",
    "list_radiographs",
    "list_volumes",
]

_LOG = logging.getLogger("crossband")


class LoadRadiographd(MapTransform):
    """Reads radiographs, PNG to DICOM, and prepares them as the library evaluates.

    The metadata hold `filename_or_obj`, a name that may be shown (`crossband.medical.privacy`), and
    `spatial_shape`, (H, W) of the file; nothing of a DICOM header.

    Args:
        keys: Of the paths; they become float32 (3, S, S).
        size: S, in pixels.
        mean: Per channel, of values 0 to 1.
        std: Per channel.
        resize: Shorter side before the middle is cut out; 0: 256/224 of the size.
        stretch: Bring the whole image to (S, S) instead.
        window: DICOM: centre and width of the grey values; default: the file's own.
        keep_ids: Call images by their paths.
        colours: Keep colours.
        whole: Leave the image as it is, but filled up to at least (S, S), for sliding windows.
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        resize: int = 0,
        stretch: bool = False,
        window: Sequence[float] = (),
        keep_ids: bool = False,
        colours: bool = False,
        whole: bool = False,
    ) -> None:
        """Keep the settings."""
        super().__init__(keys)
        self.size, self.resize, self.stretch, self.whole = size, resize, stretch, whole
        self.colours = colours
        self.normalise = Normalisation(tuple(mean), tuple(std))
        self.window, self.names = tuple(window or ()), Names(keep_ids)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Replace paths by images.

        Raises:
            DataError: a file that cannot be read.
        """
        return dict(data) | {key: self._load(Path(data[key])) for key in self.key_iterator(data)}

    def reads(self, path: Path) -> bool:
        """Whether a file is of a kind that is read here."""
        return is_radiograph_file(path)

    def name(self, path: str | Path) -> str:
        """Return what an image is called."""
        return self.names.image(path)

    def view(self, pixels: np.ndarray) -> np.ndarray:
        """Return uint8 (S, S[, 3]) of uint8 (H, W[, 3])."""
        if self.whole:
            return at_least(pixels, self.size)
        if self.stretch:
            return stretched_view(pixels, self.size)
        return centre_view(pixels, self.size, self.resize)

    def _load(self, path: Path) -> MetaTensor:
        found = _read(path, self.window, self.names, self.colours)
        meta = {
            "filename_or_obj": self.name(path),
            "spatial_shape": list(found.pixels.shape[:2]),
            "notes": list(found.notes),
        }
        return MetaTensor(self.normalise(self.view(found.pixels)), meta=meta)


class RandLoadRadiographd(LoadRadiographd, Randomizable):
    """Reads radiographs and takes a random part of each, perhaps mirrored, to train on.

    Args:
        keys: Of the paths.
        size: Side of the view, in pixels.
        mean: Per channel, of values 0 to 1.
        std: Per channel.
        smallest: Smallest part of an image's area.
        flip: Probability of a mirror image.
        window: As `LoadRadiographd`.
        keep_ids: As `LoadRadiographd`.
        colours: As `LoadRadiographd`.
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        smallest: float = 0.5,
        flip: float = 0.5,
        window: Sequence[float] = (),
        keep_ids: bool = False,
        colours: bool = False,
    ) -> None:
        """Keep the settings."""
        super().__init__(keys, size, mean, std, window=window, keep_ids=keep_ids, colours=colours)
        self.smallest, self.flip = smallest, flip

    def view(self, pixels: np.ndarray) -> np.ndarray:
        """Return uint8 (S, S[, 3]) of uint8 (H, W[, 3]), another one each time."""
        draw = _generator(self.R)
        return np.asarray(random_view(pixels, self.size, (self.smallest, 1.0), self.flip, draw))


class LoadMaskd(MapTransform):
    """Reads masks and stretches them to a square.

    Args:
        keys: Of the paths; they become int64 (1, S, S).
        size: S, in pixels.
        classes: Number of classes; of two, everything but 0 is 1.
        values: Of each class in the files; empty: 0, 1, 2, ...
        whole: Leave the mask as it is, but filled up to at least (S, S).
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        size: int,
        classes: int = 2,
        values: Sequence[int] = (),
        whole: bool = False,
    ) -> None:
        """Keep the settings."""
        super().__init__(keys)
        self.size, self.whole = size, whole
        self.classes = MaskClasses(tuple(map(str, range(classes))), tuple(values))

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Replace paths by masks.

        Raises:
            DataError: a file that cannot be read; it is called by a name that may be shown.
        """
        found = dict(data)
        for key in self.key_iterator(data):
            path = Path(data[key])
            try:
                ids = read_mask(Record(path, path.name, mask=path), self.classes)
            except DataError as error:
                raise DataError(Names(False).error(error, path)) from None
            if self.whole:
                ids = at_least(ids, self.size)
            else:
                mask = Image.fromarray(ids)
                ids = np.array(mask.resize((self.size, self.size), Image.Resampling.NEAREST))
            found[key] = torch.from_numpy(ids.copy()).long()[None]
        return found


class RandWarpd(MapTransform, Randomizable):
    """Turns, zooms and shifts a prepared image and its mask alike, and changes its tone.

    Args:
        keys: Of the image, float32 (3, S, S), and the mask, (1, S, S).
        mean: That the image was normalised with.
        std: That the image was normalised with.
        flip: Mirror half of them.
        colours: The channels are colours, not three times one grey value.
    """

    def __init__(
        self,
        keys: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        flip: bool = False,
        colours: bool = False,
    ) -> None:
        """Keep the settings."""
        super().__init__(keys)
        self.normalise, self.flip = Normalisation(tuple(mean), tuple(std)), flip
        self.colours = colours

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Change both."""
        key, label = self.keys
        image, draw = data[key], _generator(self.R)
        mean, std = (
            torch.tensor(v)[:, None, None] for v in (self.normalise.mean, self.normalise.std)
        )
        unit = np.asarray(torch.as_tensor(image) * std + mean)
        unit = unit.transpose(1, 2, 0) if self.colours else unit[0]
        pixels = np.ascontiguousarray(np.rint(unit * 255).clip(0, 255).astype(np.uint8))
        mask = np.asarray(data[label][0]).astype(np.uint8)
        pixels, mask = random_warp(pixels, mask, 0.5 * self.flip, draw)
        changed = self.normalise(random_tone(pixels, draw))
        found = MetaTensor(changed, meta=dict(image.meta))
        return dict(data) | {key: found, label: torch.from_numpy(mask).long()[None]}


class RestoreSized(MapTransform):
    """Brings logits (K, S, S) to the size of the file, by the metadata of the image.

    Args:
        keys: Of the logits.
        image: Key of the image.
        crop: Cut off what the image was filled up by, instead of resizing.
    """

    def __init__(self, keys: str | Sequence[str], image: str = "image", crop: bool = False) -> None:
        """Keep the settings."""
        super().__init__(keys)
        self.image, self.crop = image, crop

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Resize; the metadata of the image go with it."""
        meta = dict(data[self.image].meta)
        height, width = (int(side) for side in meta["spatial_shape"])
        found = dict(data)
        for key in self.key_iterator(data):
            logits = torch.as_tensor(data[key]).float()[None]
            cut = logits[..., :height, :width] if self.crop else resized(logits, (height, width))
            found[key] = MetaTensor(cut[0], meta=meta)
        return found


def list_radiographs(
    folder: str, keep_ids: bool = False, window: Sequence[float] = (), colours: bool = False
) -> list[dict[str, str]]:
    """Return `{"image": path}` of every radiograph in a folder, all levels, that can be read.

    The others are named in the log, as are views that are not frontal.

    Raises:
        DataError: none can be read.
    """
    names, found = Names(keep_ids), []
    root = Path(folder)
    paths = (p for p in root.rglob("*") if not _hidden(p.relative_to(root)) and p.is_file())
    for path in sorted(path for path in paths if is_radiograph_file(path)):
        try:
            notes = _read(path, window, names, colours).notes
        except DataError as error:
            _LOG.warning("left out: %s", error)
            continue
        found.append({"image": str(path)})
        for note in notes:
            _LOG.warning("%s: %s", names.image(path), note)
    if not found:
        raise DataError(f"There is no radiograph in {folder} that can be read: give another one.")
    return found


def create_tuned(
    name: str, tuning: Mapping[str, Any], head: Sequence[int] = (), **arguments: Any
) -> nn.Module:
    """Build a network of the registry with an MLP to classify, and what a tuning added to it.

    Args:
        name: Of the registry.
        tuning: As a checkpoint of `crossband medical train` stores it; empty for none.
        head: Hidden widths of the MLP; empty for none.
        arguments: Of the network.
    """
    from crossband.medical.networks import build, tune

    model = build({"name": name, "arguments": arguments, "head": list(head)})
    tune(model, {"tuning": dict(tuning)})
    return model


def _read(path: Path, window: Sequence[float], names: Names, colours: bool) -> Radiograph:
    """Read a radiograph; errors call it by the name that may be shown."""
    try:
        return read_radiograph(path, tuple(window or ()), colours=colours)
    except DataError as error:
        # Without the cause, whose traceback would show the path.
        raise DataError(names.error(error, path)) from None


def _generator(state: np.random.RandomState) -> np.random.Generator:
    return np.random.default_rng(state.randint(2**32, dtype=np.uint32))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
