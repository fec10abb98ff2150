"""A trained network that outlines organs: `crossband.shared.load(path)` gives one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from crossband.medical.data.transforms import Normalisation, stretched_view
from crossband.medical.networks import SEGMENTATION, Opened, open_network, require_task
from crossband.shared.errors import DataError
from crossband.shared.layers.resize import resize


class Segmenter:
    """Gives a class for every pixel.

    Args:
        opened: The network and what its checkpoint says.

    Attributes:
        classes: Names by id.
        palette: RGB colours by id, uint8 (K, 3).
    """

    def __init__(self, opened: Opened) -> None:
        """Keep the parts."""
        self.opened, self.config = opened, opened.config
        self.classes: tuple[str, ...] = tuple(self.config["classes"])
        self.palette = np.array(self.config["palette"], np.uint8)
        self.size = self.config["input_size"][0]
        self.normalisation = Normalisation(
            tuple(self.config["normalisation"]["mean"]), tuple(self.config["normalisation"]["std"])
        )

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

    def logits(self, pixels: np.ndarray) -> torch.Tensor:
        """Return logits (K, H, W) of an image, uint8 (H, W), at its own size.

        Raises:
            DataError: another kind of array.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.size == 0:
            raise DataError(
                f"an array of {pixels.dtype} {pixels.shape} is no radiograph: give uint8 (H, W), "
                "as crossband.medical.data.radiographs.read_radiograph does."
            )
        image = self.normalisation(stretched_view(pixels, self.size))
        return resize(self.opened(image[None]), pixels.shape)[0]

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Return class ids, uint8 (H, W), of an image, uint8 (H, W).

        Raises:
            DataError: another kind of array.
        """
        return self.logits(pixels).argmax(0).to(torch.uint8).numpy()
