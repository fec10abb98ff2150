"""A trained network that outlines what boxes hold: `crossband.shared.load(path)` gives one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossband.medical.networks import PROMPTED, require_task
from crossband.medical.prompted.frames import framed, framed_boxes, inner_size
from crossband.shared.checkpoints import load_checkpoint, load_state
from crossband.shared.devices import AUTOCAST, select_device
from crossband.shared.errors import DataError
from crossband.shared.promptable import SAM
from crossband.shared.registry import create_model

_TOGETHER = 8  # boxes of an image at a time


class PromptedSegmenter:
    """Gives the mask of what each box holds.

    Args:
        model: The whole network, in evaluation.
        config: What its checkpoint says.
        number: Type of mixed precision, or None.

    Attributes:
        classes: Names by id.
        palette: RGB colours by id, uint8 (K, 3).
        colours: Whether it was trained on images in colours.
    """

    def __init__(
        self, model: SAM, config: dict[str, Any], number: torch.dtype | None = None
    ) -> None:
        """Keep the parts."""
        self.model, self.config, self.number = model, config, number
        self.classes: tuple[str, ...] = tuple(config["classes"])
        self.palette = np.array(config["palette"], np.uint8)
        self.colours = bool(config["reading"]["colours"])

    @classmethod
    def load(
        cls, path: str | Path, *, device: str = "auto", precision: str = "32"
    ) -> PromptedSegmenter:
        """Load a checkpoint of `train --model sam_vit_b_prompted`.

        Raises:
            CheckpointError: missing, foreign, damaged, or of another task.
        """
        checkpoint = load_checkpoint(path)
        require_task(checkpoint.config, path, PROMPTED)
        description = checkpoint.config["model"]
        model = create_model(description["name"], **description["arguments"])
        load_state(model, checkpoint.state_dict, path)
        model = model.eval().requires_grad_(False).to(select_device(device))
        return cls(model, checkpoint.config, AUTOCAST.get(precision))

    @torch.no_grad()
    def encode(self, pixels: np.ndarray) -> Tensor:
        """Return the map (1, C, h, w) of an image, to be given to `logits` for many boxes.

        Args:
            pixels: uint8 (H, W), or RGB (H, W, 3).

        Raises:
            DataError: another kind of array.
        """
        image = framed(pixels, self.model.img_size).to(self.model.pixel_mean.device)
        with self._autocast():
            return self.model.encode(self.model.preprocess(image)[None]).float()

    @torch.no_grad()
    def logits(self, maps: Tensor, size: tuple[int, int], boxes: np.ndarray) -> Tensor:
        """Return logits (N, H, W) of boxes in an image, float32 on the CPU.

        Args:
            maps: Of `encode`.
            size: Height and width of the image.
            boxes: x0, y0, x1, y1, (N, 4), pixels of the image; what sticks out is cut off.

        Raises:
            DataError: a box that is none, or that lies outside of the image.
        """
        given = _checked(boxes, size)
        corners = framed_boxes(given, size, self.model.img_size)
        inner = inner_size(size, self.model.img_size)
        with self._autocast():
            found, _ = self.model.decode(maps, boxes=torch.from_numpy(corners).to(maps.device))
            return self.model.postprocess(found.float(), inner, size)[:, 0].float().cpu()

    def predict(self, pixels: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Return the masks of boxes, bool (N, H, W).

        Args:
            pixels: uint8 (H, W), or RGB (H, W, 3).
            boxes: x0, y0, x1, y1, (N, 4), pixels of the image: the first and the last that belong
                to what is meant.

        Raises:
            DataError: another kind of array, or a box that is none.
        """
        size = pixels.shape[:2]
        boxes, maps = _checked(boxes, size), self.encode(pixels)
        found = np.zeros((len(boxes), *size), bool)
        for start in range(0, len(boxes), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            found[part] = (self.logits(maps, size, boxes[part]) > 0).numpy()
        return found

    def outline(self, pixels: np.ndarray, boxes: np.ndarray, kinds: np.ndarray) -> np.ndarray:
        """Return class ids, uint8 (H, W); a pixel of several masks is of the one with most logit.

        Args:
            pixels: uint8 (H, W), or RGB (H, W, 3).
            boxes: x0, y0, x1, y1, (N, 4), pixels of the image; none: all is background.
            kinds: Class id of each box, (N,).

        Raises:
            DataError: another kind of array, or a box that is none.
        """
        size = pixels.shape[:2]
        ids, most = torch.zeros(size, dtype=torch.uint8), torch.zeros(size)
        if not len(boxes):
            return ids.numpy()
        boxes, maps = _checked(boxes, size), self.encode(pixels)
        for start in range(0, len(boxes), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            logits = self.logits(maps, size, boxes[part])
            for one, kind in zip(logits, kinds[part], strict=True):
                more = one > most
                ids[more], most[more] = int(kind), one[more]
        return ids.numpy()

    def _autocast(self) -> torch.autocast:
        kind = self.model.pixel_mean.device.type
        return torch.autocast(kind, self.number, enabled=self.number is not None)


def _checked(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return boxes as float32 (N, 4) within the image.

    Raises:
        DataError: other shapes, corners in the wrong order, or a box outside.
    """
    boxes = np.asarray(boxes, np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise DataError(f"An array of shape {boxes.shape} holds no boxes: give numbers (N, 4).")
    height, width = size
    x0, y0, x1, y1 = boxes.T
    wrong = (x1 < x0) | (y1 < y0) | (x1 < 0) | (y1 < 0) | (x0 > width - 1) | (y0 > height - 1)
    if wrong.any():
        shown = ", ".join(f"{value:g}" for value in boxes[wrong][0])
        raise DataError(
            f"The box {shown} is none within an image of {width} x {height} pixels: give x0, y0, "
            "x1, y1 with the upper left corner first."
        )
    return np.clip(boxes, 0, np.array([width, height] * 2, np.float32) - 1)
