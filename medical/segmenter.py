"""A trained network that outlines organs: `crossband.shared.load(path)` gives one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from crossband.medical.data.masks import MaskClasses
from crossband.medical.data.radiographs import require_picture
from crossband.medical.data.transforms import Normalisation, at_least, stretched_view
from crossband.medical.networks import SEGMENTATION, Opened, open_network, require_task
from crossband.shared.layers.resize import resize

OVERLAP = 0.5  # of sliding windows, as parts of their sides


class Slices(Protocol):
    """A volume as pictures: `crossband.medical.data.scans.Scan`."""

    across: int

    def __len__(self) -> int:
        """Return the number of slices."""

    def picture(self, index: int) -> np.ndarray:
        """Return a slice as it is looked at, uint8 (H, W), or (H, W, 3)."""

    def to_plane(self, logits: Tensor) -> Tensor:
        """Bring logits (K, H, W) of a picture to the file's grid, (K, rows, columns)."""


class Segmenter:
    """Gives a class for every pixel.

    Args:
        opened: The network and what its checkpoint says.

    Attributes:
        classes: Names by id.
        mask_classes: The same with the values that stand for them in masks.
        palette: RGB colours by id, uint8 (K, 3).
        colours: Whether images keep their colours.
        sliding: Whether images are cut into windows, not stretched.
    """

    def __init__(self, opened: Opened) -> None:
        """Keep the parts."""
        self.opened, self.config = opened, opened.config
        self.classes: tuple[str, ...] = tuple(self.config["classes"])
        values = self.config.get("mask_values") or ()
        self.mask_classes = MaskClasses(self.classes, tuple(values))
        self.palette = np.array(self.config["palette"], np.uint8)
        self.size = self.config["input_size"][0]
        self.normalisation = Normalisation(
            tuple(self.config["normalisation"]["mean"]), tuple(self.config["normalisation"]["std"])
        )
        reading = self.config["reading"]
        self.colours, self.sliding = reading.get("colours", False), reading.get("sliding", False)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", precision: str = "32") -> Segmenter:
        """Load a checkpoint of `train --task segmentation`, or its export.

        Raises:
            CheckpointError: missing, foreign, damaged, or of another task.
            ConfigError: a device or a precision that an exported network has not.
        """
        opened = open_network(path, device=device, precision=precision)
        require_task(opened.config, path, SEGMENTATION)
        return cls(opened)

    def logits(self, pixels: np.ndarray) -> Tensor:
        """Return logits (K, H, W) of an image at its own size.

        Args:
            pixels: uint8 (H, W); of networks that keep colours also RGB (H, W, 3).

        Raises:
            DataError: another kind of array.
        """
        return self.batch_logits([pixels])[0]

    def batch_logits(self, pictures: Sequence[np.ndarray]) -> list[Tensor]:
        """Return logits of several images, each at its own size."""
        return [
            resize(one[None], pixels.shape[:2])[0]
            for one, pixels in zip(self._network_logits(pictures), pictures, strict=True)
        ]

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Return class ids, uint8 (H, W), of an image, as `logits` takes it.

        Raises:
            DataError: another kind of array.
        """
        return self.logits(pixels).argmax(0).to(torch.uint8).numpy()

    def predict_scan(self, scan: Slices, batch_size: int = 8) -> np.ndarray:
        """Return class ids of a volume, uint8 of its file's shape, slice by slice.

        Args:
            scan: The volume.
            batch_size: Slices at a time.
        """
        planes: list[np.ndarray] = []
        for start in range(0, len(scan), batch_size):
            places = range(start, min(start + batch_size, len(scan)))
            for logits in self._network_logits([scan.picture(index) for index in places]):
                planes.append(scan.to_plane(logits).argmax(0).to(torch.uint8).numpy())
        return np.stack(planes, axis=scan.across)

    def _network_logits(self, pictures: Sequence[np.ndarray]) -> Sequence[Tensor]:
        """Return logits of whole images, of the network's size, or by windows of the images'."""
        for pixels in pictures:
            require_picture(pixels, self.colours)
        if self.sliding:
            return [self._by_windows(pixels) for pixels in pictures]
        views = [self.normalisation(stretched_view(pixels, self.size)) for pixels in pictures]
        return list(self.opened(torch.stack(views)))

    def _by_windows(self, pixels: np.ndarray) -> Tensor:
        """Return logits by MONAI's sliding windows, those in their middle counting most."""
        from monai.inferers import sliding_window_inference

        height, width = pixels.shape[:2]
        image = self.normalisation(at_least(pixels, self.size))[None]
        window: Any = (self.size, self.size)
        found = sliding_window_inference(
            image, window, 4, self.opened, overlap=OVERLAP, mode="gaussian"
        )
        return found[0, :, :height, :width]
