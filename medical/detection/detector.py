"""A trained detector that reads pictures: `crossband.shared.load(path)` gives one."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from crossband.medical.data.transforms import Normalisation
from crossband.medical.detection.data import Boxes
from crossband.medical.detection.model import build, require_openmmlab
from crossband.medical.networks import DETECTION, Opened, require_task
from crossband.shared.checkpoints import load_checkpoint, load_state, read_config
from crossband.shared.devices import AUTOCAST, select_device
from crossband.shared.errors import DataError


class Found(NamedTuple):
    """One box.

    Attributes:
        name: Of its class.
        score: In 0 to 1.
        box: x0, y0, x1, y1 in pixels of the image.
    """

    name: str
    score: float
    box: tuple[float, float, float, float]


class Detector:
    """Finds boxes.

    Args:
        opened: The network and what its checkpoint says.

    Attributes:
        classes: Names by id.
        size: Pixels of the longer side, to which images are brought.
    """

    def __init__(self, opened: Opened) -> None:
        """Keep the parts."""
        self.opened, self.config = opened, opened.config
        self.classes: tuple[str, ...] = tuple(self.config["classes"])
        self.size: int = self.config["input_size"][0]

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", precision: str = "32") -> Detector:
        """Load a checkpoint of `train --task detection`.

        Raises:
            CheckpointError: missing, foreign, damaged, or of another task.
            MissingExtraError: mmdet is not installed.
        """
        config = read_config(path)
        require_task(config, path, DETECTION)
        require_openmmlab()
        place = select_device(device)
        values = config["normalisation"]
        model = build(config["model"], Normalisation(tuple(values["mean"]), tuple(values["std"])))
        load_state(model, load_checkpoint(path).state_dict, path)
        model = model.to(place).eval().requires_grad_(False)
        return cls(Opened(model, config, place, AUTOCAST.get(precision), model))

    @torch.no_grad()
    def boxes(self, pixels: np.ndarray) -> Boxes:
        """Return the boxes found in an image, the surest first.

        Args:
            pixels: uint8, grey (H, W) or RGB (H, W, 3).

        Raises:
            DataError: another kind of array.
        """
        import mmcv
        from mmdet.structures import DetDataSample
        from mmengine.registry import DefaultScope

        from crossband.medical.detection.openmmlab import in_colours

        grey_or_rgb = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
        if pixels.dtype != np.uint8 or not grey_or_rgb or pixels.size == 0:
            raise DataError(
                f"an array of {pixels.dtype} {pixels.shape} is no picture: give uint8 (H, W) or "
                "(H, W, 3), as crossband.medical.data.colour.read_picture does."
            )
        if pixels.ndim == 3 and not self.config["reading"]["colours"]:
            from crossband.medical.data.radiographs import to_grey

            pixels = to_grey(pixels)[0]
        image, across, down = mmcv.imresize(
            in_colours(pixels), self._resized(pixels.shape[:2]), return_scale=True
        )
        sample = DetDataSample(
            metainfo={
                "img_shape": image.shape[:2],
                "ori_shape": pixels.shape[:2],
                "scale_factor": (across, down),
            }
        )
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        place, number = self.opened.device, self.opened.number
        model = self.opened.module
        with (
            DefaultScope.overwrite_default_scope("mmdet"),
            torch.autocast(place.type, number, enabled=number is not None),
        ):
            batch = model.data_preprocessor({"inputs": [tensor], "data_samples": [sample]}, False)
            found = model.predict(batch["inputs"], batch["data_samples"])[0].pred_instances
        corners, labels, scores = (
            getattr(found, name).float().cpu().numpy() for name in ("bboxes", "labels", "scores")
        )
        order = np.argsort(-scores, kind="stable")
        return Boxes(corners, labels.astype(np.int64), scores).take(order)

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return width and height of an image whose longer side is brought to `size`."""
        import mmcv

        height, width = size
        return mmcv.rescale_size((width, height), (self.size, self.size))

    def predict(self, pixels: np.ndarray, score: float = 0.0) -> list[Found]:
        """Return the boxes found in an image, the surest first.

        Args:
            pixels: uint8, grey (H, W) or RGB (H, W, 3).
            score: Least score of a box.

        Raises:
            DataError: another kind of array.
        """
        found = self.boxes(pixels)
        assert found.scores is not None
        return [
            Found(self.classes[label], value, tuple(box))
            for box, label, value in zip(
                found.corners.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True
            )
            if value >= score
        ]
