"""A trained classifier that reads radiographs: `crossband.shared.load(path)` gives one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crossband.medical.baselines import statistics
from crossband.medical.data.radiographs import require_picture
from crossband.medical.data.transforms import Normalisation, centre_view
from crossband.medical.networks import CLASSIFICATION, Opened, open_network, require_task
from crossband.shared.checkpoints import read_config
from crossband.shared.errors import ConfigError

HALF = 0.5


class Reader:
    """Gives the probability of each finding.

    Args:
        opened: The network and what its checkpoint says.

    Attributes:
        findings: Names of the outputs.
        exclusive: Whether exactly one of them is true (softmax), or any (sigmoid).
        temperature: What logits are divided by, as fitted on validation images.
        thresholds: Probability from which a finding counts as present, by name.
    """

    def __init__(self, opened: Opened) -> None:
        """Keep the parts."""
        self.opened, self.config = opened, opened.config
        config = self.config
        self.findings: tuple[str, ...] = tuple(config["classes"])
        self.exclusive = not config["multilabel"]
        self.size, self.resize = config["input_size"][0], config["reading"]["resize"]
        self.normalisation = Normalisation(
            tuple(config["normalisation"]["mean"]), tuple(config["normalisation"]["std"])
        )
        self.temperature = float(config.get("temperature", 1.0))
        self.thresholds: dict[str, float] = config.get("thresholds", {})
        self.colours: bool = config["reading"].get("colours", False)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", precision: str = "32") -> Reader:
        """Load a checkpoint of `train --task classification`, or its export.

        Raises:
            CheckpointError: missing, foreign, damaged, or of another task.
            ConfigError: a device or a precision that an exported network has not.
        """
        if Path(path).suffix == ".safetensors":
            config = read_config(path)
            if config.get("model", {}).get("name") == statistics.NAME:
                require_task(config, path, CLASSIFICATION)
                return StatisticsReader(statistics.load(path), config)
        opened = open_network(path, device=device, precision=precision)
        require_task(opened.config, path, CLASSIFICATION)
        return cls(opened)

    @property
    def module(self) -> nn.Module:
        """The network with its layers, for heatmaps.

        Raises:
            ConfigError: an exported network, or none at all.
        """
        if self.opened.module is None:
            raise ConfigError(
                "Heatmaps need the layers of a network: give best.safetensors of `train`, not an "
                "export or the linear model on statistics."
            )
        return self.opened.module

    def prepare(self, pixels: np.ndarray) -> Tensor:
        """Return the network's input (3, S, S) of an image.

        Args:
            pixels: uint8 (H, W); of networks that keep colours also RGB (H, W, 3).

        Raises:
            DataError: another kind of array.
        """
        require_picture(pixels, self.colours)
        return self.normalisation(centre_view(pixels, self.size, self.resize))

    def logits(self, images: Tensor) -> np.ndarray:
        """Return logits (B, K) of prepared images (B, 3, S, S), before the temperature."""
        return self.opened(images).numpy()

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return probabilities (N, K) of logits (N, K)."""
        scaled = torch.from_numpy(np.asarray(logits, np.float32)) / self.temperature
        return (scaled.softmax(1) if self.exclusive else scaled.sigmoid()).numpy()

    def predict(self, pixels: np.ndarray) -> dict[str, float]:
        """Return the probability of each finding in an image, as `prepare` takes it.

        Raises:
            DataError: another kind of array.
        """
        found = self.probabilities(self.logits(self.prepare(pixels)[None]))[0]
        return dict(zip(self.findings, found.tolist(), strict=True))

    def present(self, probability: Sequence[float], *, half: bool = False) -> list[bool]:
        """Say of each finding whether it counts as present; of classes the likeliest does."""
        if self.exclusive:
            best = int(np.argmax(probability))
            return [number == best for number in range(len(probability))]
        limits = [HALF if half else self.thresholds.get(name, HALF) for name in self.findings]
        return [p >= limit for p, limit in zip(probability, limits, strict=True)]


class StatisticsReader(Reader):
    """The linear model on image statistics, used in the same way.

    Args:
        model: The model.
        config: Of its checkpoint.
    """

    def __init__(self, model: statistics.StatisticsModel, config: dict[str, Any]) -> None:
        """Keep the parts."""
        super().__init__(Opened(_no_network, config, torch.device("cpu")))
        self.model = model

    def prepare(self, pixels: np.ndarray) -> Tensor:
        """Return the statistics of an image, (F,)."""
        return torch.from_numpy(statistics.features(pixels))

    def logits(self, images: Tensor) -> np.ndarray:
        """Return logits (B, K) of statistics (B, F)."""
        return self.model.of_features(images.numpy())


def _no_network(image: Tensor) -> Tensor:
    raise NotImplementedError
