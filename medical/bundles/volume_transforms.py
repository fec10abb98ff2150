"""How bundles of networks for slices read volumes, and put what was found back onto their voxels.

Named by `crossband.medical.bundles.transforms`, which is where a configuration finds them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from crossband.medical.cases import fitted
from crossband.medical.data.masks import MaskClasses
from crossband.medical.data.scans import Scan, open_scan, to_plane
from crossband.medical.data.transforms import Normalisation, at_least, stretched_view
from crossband.medical.data.volume_sets import is_mask_volume
from crossband.medical.data.volumes import is_volume
from crossband.medical.privacy import Names
from crossband.medical.volume_prediction import beside, find_volumes, has_sequence
from crossband.shared.errors import DataError

_LOG = logging.getLogger("crossband")


class LoadVolumed(MapTransform):
    """Reads volumes as stacks of slices, each prepared as the library does.

    The metadata hold `filename_or_obj`, a name that may be shown, and `affine` of the voxels.

    Args:
        keys: Of the paths (NIfTI, npy, or the folder of a DICOM series); they become float32
            (3, S, S, N).
        size: S, in pixels.
        mean: Per channel, of values 0 to 1.
        std: Per channel.
        window: Centre and width of the values; default: nearly all.
        axis: Across which to slice.
        sequences: Parts of file names; the others lie beside the first.
        keep_ids: Call volumes by their paths.
        whole: Leave slices as they are, but filled up to at least (S, S), for sliding windows.
        several: Refuse volumes whose last axis is one voxel long: MONAI's writer fails on them.
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        window: Sequence[float] = (),
        axis: str = "auto",
        sequences: Sequence[str] = (),
        keep_ids: bool = False,
        whole: bool = False,
        several: bool = False,
    ) -> None:
        """Keep the settings."""
        super().__init__(keys)
        self.whole, self.several = whole, several
        self.size, self.normalise = size, Normalisation(tuple(mean), tuple(std))
        self.window, self.axis, self.sequences = tuple(window or ()), axis, tuple(sequences)
        self.names = Names(keep_ids)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Replace paths by volumes.

        Raises:
            DataError: a file that cannot be read; it is called by a name that may be shown.
        """
        found = dict(data)
        for key in self.key_iterator(data):
            path = Path(data[key])
            scan = self.scan(path)
            view = at_least if self.whole else stretched_view
            views = [view(scan.picture(index), self.size) for index in range(len(scan))]
            stack = torch.stack([self.normalise(view) for view in views], -1)
            affine = np.eye(4) if scan.affine is None else scan.affine
            meta = {"filename_or_obj": self.name(path), "affine": torch.tensor(affine)}
            found[key] = MetaTensor(stack, meta=meta | _geometry(scan))
        return found

    def reads(self, path: Path) -> bool:
        """Whether a file is of a kind that is read here; of several sequences the first."""
        if not is_volume(path) or is_mask_volume(Path(path.parent.name, path.name)):
            return False
        return not self.sequences or has_sequence(path, self.sequences[0])

    def name(self, path: str | Path) -> str:
        """Return what a volume is called."""
        return self.names.image(path)

    def scan(self, path: Path) -> Scan:
        """Read a volume.

        Raises:
            DataError: it cannot be read, or is refused; it is called by a name that may be shown.
        """
        others = beside(path, self.sequences) if self.sequences else []
        try:
            scan = open_scan(
                path,
                axis=self.axis,  # type: ignore[arg-type]
                window=self.window,
                sequences=others,
            )
        except DataError as error:
            raise DataError(self.names.error(error, path, *others)) from None
        if self.several and scan.shape[-1] == 1:
            raise DataError(
                f"{self.name(path)} is a single slice, which MONAI does not write: "
                "`crossband medical predict` takes it."
            )
        return scan


class LoadVolumeMaskd(LoadVolumed):
    """Reads masks of volumes as stacks of slices, stretched as their volumes are.

    Args:
        keys: Of the paths; they become int64 (1, S, S, N).
        size: S, in pixels.
        classes: Names of the classes.
        values: Of each class in the files; empty: 0, 1, 2, ...
        image: Key of the path of the volume; kept under it by giving this transform first.
        window: As `LoadVolumed`.
        axis: As `LoadVolumed`.
        keep_ids: As `LoadVolumed`.
        whole: As `LoadVolumed`.
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        size: int,
        classes: Sequence[str],
        values: Sequence[int] = (),
        image: str = "image",
        window: Sequence[float] = (),
        axis: str = "auto",
        keep_ids: bool = False,
        whole: bool = False,
    ) -> None:
        """Keep the settings."""
        super().__init__(keys, size, (0.0,) * 3, (1.0,) * 3, window, axis, (), keep_ids, whole)
        self.classes, self.image = MaskClasses(tuple(classes), tuple(values)), image

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Replace paths by masks.

        Raises:
            DataError: a file that cannot be read; it is called by a name that may be shown.
        """
        found, shape = dict(data), (self.size, self.size)
        scan = self.scan(Path(data[self.image]))
        for key in self.key_iterator(data):
            try:
                truth = scan.truth(data[key], self.classes)
            except DataError as error:
                raise DataError(self.names.error(error, data[key])) from None
            slices = (scan.mask_picture(truth, index) for index in range(len(scan)))
            stack = [
                at_least(ids, self.size) if self.whole else fitted(ids, shape) for ids in slices
            ]
            found[key] = torch.from_numpy(np.stack(stack, -1)).long()[None]
        return found


class RestoreVolumed(MapTransform):
    """Brings logits (K, S, S, N) to the voxels of the file, (K, X, Y, Z), by the image's metadata.

    Args:
        keys: Of the logits.
        image: Key of the volume.
        crop: Cut off what the slices were filled up by, before they are resized.
    """

    def __init__(self, keys: str | Sequence[str], image: str = "image", crop: bool = False) -> None:
        """Keep the settings."""
        super().__init__(keys)
        self.image, self.crop = image, crop

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Resize and turn back every slice."""
        meta = dict(data[self.image].meta)
        found = dict(data)
        for key in self.key_iterator(data):
            logits = torch.as_tensor(data[key]).float()
            if self.crop:
                height, width = (int(side) for side in meta["picture_shape"])
                logits = logits[:, :height, :width]
            planes = [_to_plane(logits[..., index], meta) for index in range(logits.shape[-1])]
            stack = torch.stack(planes, 1 + int(meta["across"]))
            kept = {name: meta[name] for name in ("filename_or_obj", "affine")}
            found[key] = MetaTensor(stack, meta=kept)
        return found


def list_volumes(
    folder: str,
    keep_ids: bool = False,
    window: Sequence[float] = (),
    axis: str = "auto",
    sequences: Sequence[str] = (),
) -> list[dict[str, str]]:
    """Return `{"image": path}` of every volume in a folder, all levels, that can be read.

    The others are named in the log.

    Raises:
        DataError: none can be read.
    """
    loader = LoadVolumed(
        "image", 8, (0.0,) * 3, (1.0,) * 3, window, axis, sequences, keep_ids, several=True
    )
    found = []
    for path, *_ in find_volumes([folder], sequences)[0]:
        try:
            loader.scan(path)
        except DataError as error:
            _LOG.warning("left out: %s", error)
            continue
        found.append({"image": str(path)})
    if not found:
        raise DataError(f"There is no volume in {folder} that can be read: give another one.")
    return found


def _geometry(scan: Scan) -> dict[str, Any]:
    """Return what brings slices back, as plain numbers that MONAI can collate."""
    return {
        "across": scan.across,
        "picture_shape": list(scan.picture_shape),
        "turned_shape": list(scan.turned_shape),
        "transposed": scan.look.transposed,
        "flips": [bool(flip) for flip in scan.look.flips],
    }


def _to_plane(logits: torch.Tensor, meta: Mapping[str, Any]) -> torch.Tensor:
    rows, columns = (int(side) for side in meta["turned_shape"])
    flips = [bool(flip) for flip in meta["flips"]]
    return to_plane(logits, (rows, columns), bool(meta["transposed"]), flips)
