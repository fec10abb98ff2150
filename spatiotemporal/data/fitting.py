"""Grids that the patch size does not divide: cropped or padded, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from crossband.shared.errors import ConfigError


@dataclass(frozen=True)
class Fit:
    """How frames of `source` (H, W) become frames of `target` (H, W), centred."""

    source: tuple[int, int]
    target: tuple[int, int]

    @property
    def _cut(self) -> tuple[slice, slice]:
        """Part of the source that is kept."""
        starts = [max(0, (s - t) // 2) for s, t in zip(self.source, self.target, strict=True)]
        return tuple(
            slice(a, a + min(s, t))
            for a, s, t in zip(starts, self.source, self.target, strict=True)
        )

    @property
    def _inner(self) -> tuple[slice, slice]:
        """Part of the target that holds the source."""
        starts = [max(0, (t - s) // 2) for s, t in zip(self.source, self.target, strict=True)]
        return tuple(
            slice(a, a + min(s, t))
            for a, s, t in zip(starts, self.source, self.target, strict=True)
        )

    def apply(self, frames: np.ndarray, *, edge: bool = True) -> np.ndarray:
        """Bring frames (..., H, W) to the target; padding repeats the edge, or is False/0."""
        frames = frames[(..., *self._cut)]
        padding = [(i.start, t - i.stop) for i, t in zip(self._inner, self.target, strict=True)]
        if not any(a or b for a, b in padding):
            return frames
        width = [(0, 0)] * (frames.ndim - 2) + padding
        return np.pad(frames, width, mode="edge") if edge else np.pad(frames, width)

    def invert(self, frames: np.ndarray) -> np.ndarray:
        """Take the padding off frames (..., H, W); what was cropped stays away."""
        return frames[(..., *self._inner)]

    def coordinates(self, values: np.ndarray, axis: int) -> np.ndarray:
        """Return the coordinates of the rows (axis 0) or columns (1) that `invert` gives."""
        return values[self._cut[axis]]


def fit_grid(shape: tuple[int, int], patch_size: int, mode: Literal["error", "crop", "pad"]) -> Fit:
    """Choose the grid that the network sees.

    Raises:
        ConfigError: the patches do not tile the grid and `mode` is `error`, or nothing is left.
    """
    if patch_size < 1:
        raise ConfigError(f"--arguments patch_size={patch_size} must be at least 1.")
    down = tuple(n // patch_size * patch_size for n in shape)
    up = tuple(-(-n // patch_size) * patch_size for n in shape)
    if down == tuple(shape):
        return Fit(tuple(shape), tuple(shape))
    if mode == "error" or (mode == "crop" and 0 in down):
        divisors = [p for p in range(1, 17) if shape[0] % p == 0 and shape[1] % p == 0]
        raise ConfigError(
            f"A grid of {shape[0]} x {shape[1]} cannot be cut into patches of {patch_size}: add "
            f"--data.fit pad ({up[0]} x {up[1]}, the edge repeated and cut off again) or "
            f"--data.fit crop ({down[0]} x {down[1]}), or --arguments patch_size="
            f"{'|'.join(map(str, divisors))}."
        )
    return Fit(tuple(shape), down if mode == "crop" else up)
