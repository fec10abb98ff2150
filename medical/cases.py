"""What masks are scored and shown on: an image, or a volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossband.medical.data.masks import MaskClasses, read_mask
from crossband.medical.data.records import Record
from crossband.medical.data.volumes import is_volume
from crossband.medical.privacy import Store
from crossband.medical.segmenter import Segmenter


def is_scan(path: Path) -> bool:
    """Whether a path is a volume: NIfTI, npy, or the folder of a DICOM series."""
    return is_volume(path) or path.is_dir()


@dataclass
class ImageCase:
    """An image with its mask.

    Attributes:
        record: The files.
        store: Reads the image.
    """

    record: Record
    store: Store
    spacing: tuple[float, ...] | None = None

    def found(self, segmenter: Segmenter, batch_size: int = 8) -> np.ndarray:
        """Return class ids of the network, uint8 (H, W)."""
        return segmenter.predict(self.store.read(self.record.path))

    def truth(self, classes: MaskClasses) -> np.ndarray:
        """Return class ids of the mask, uint8 (H, W)."""
        return read_mask(self.record, classes)

    def shown(
        self, found: np.ndarray, truth: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the image, its labels and what was found, all of the image's size."""
        pixels = self.store.read(self.record.path)
        return pixels, fitted(truth, pixels.shape[:2]), fitted(found, pixels.shape[:2])


@dataclass
class ScanCase:
    """A volume with its mask.

    Attributes:
        record: The files.
        axis: Across which to slice.
        window: Centre and width of the values.
    """

    record: Record
    axis: Any = "auto"
    window: Sequence[float] = ()

    @cached_property
    def scan(self) -> Any:
        """The volume; read once."""
        from crossband.medical.data.scans import open_scan

        return open_scan(
            self.record.path,
            axis=self.axis,
            window=self.window,
            sequences=self.record.sequences,
        )

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Distance of voxels along each axis, in mm, where the file tells."""
        return self.scan.spacing

    def found(self, segmenter: Segmenter, batch_size: int = 8) -> np.ndarray:
        """Return class ids of the network, uint8 of the file's shape."""
        return segmenter.predict_scan(self.scan, batch_size)

    def truth(self, classes: MaskClasses) -> np.ndarray:
        """Return class ids of the mask, uint8 of the file's shape."""
        assert self.record.mask is not None
        found = self.scan.truth(self.record.mask, classes)
        for path in self.record.more_masks:
            found = np.maximum(found, self.scan.truth(path, classes))
        return found

    def shown(
        self, found: np.ndarray, truth: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the slice with most labels: as it is looked at, its labels, what was found."""
        index = self.scan.fullest(truth)
        ids = [self.scan.mask_picture(volume, index) for volume in (truth, found)]
        return (self.scan.picture(index), *ids)


def fitted(ids: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Bring class ids to a shape (H, W)."""
    if ids.shape == shape:
        return ids
    size = (shape[1], shape[0])
    return np.asarray(Image.fromarray(ids).resize(size, Image.Resampling.NEAREST))
