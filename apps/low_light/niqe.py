"""NIQE (Mittal et al. 2013): how far an image is from natural ones, without a reference.

Two implementations are in use, and they differ by up to 1.0 on the same image, so the variant
is named with every number: `basicsr` (luma of YCbCr, half size by averaging, as BasicSR's users
report) and `matlab` (grey, half size by MATLAB's antialiased bicubic, the original).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.ndimage import convolve
from scipy.special import gamma

from crossband.shared.errors import DataError

Variant = Literal["basicsr", "matlab"]
BLOCK = 96
_SIGMA = 7 / 6  # of the 7 x 7 window


@dataclass(frozen=True)
class NaturalModel:
    """Gaussian model of the features of pristine photographs.

    Attributes:
        mean: (36,).
        covariance: (36, 36).
    """

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def load(cls, path: str | Path) -> NaturalModel:
        """Read BasicSR's `niqe_pris_params.npz`.

        Raises:
            DataError: missing, damaged, or another file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                mean, covariance = file["mu_pris_param"], file["cov_pris_param"]
        except Exception as error:  # zipfile and numpy raise many kinds
            raise DataError(
                f"{path} cannot be read as NIQE's model of natural images "
                f"({type(error).__name__}): give BasicSR's niqe_pris_params.npz."
            ) from error
        if mean.size != 36 or covariance.shape != (36, 36):
            raise DataError(f"{path} is not NIQE's model: it needs 36 means and 36 x 36 variances.")
        return cls(mean.reshape(36).astype(float), covariance.astype(float))


def niqe(image: np.ndarray, model: NaturalModel, variant: Variant = "basicsr") -> float:
    """Score an image; lower is more natural.

    Args:
        image: RGB uint8 (H, W, 3), at least 96 x 192 or 192 x 96.
        model: Of pristine photographs.
        variant: Which implementation to equal.

    Raises:
        DataError: too small an image for two blocks of 96, or one without any texture.
    """
    height, width = image.shape[:2]
    rows, columns = height // BLOCK, width // BLOCK
    if rows * columns < 2:
        raise DataError(
            f"NIQE needs two blocks of {BLOCK} x {BLOCK}, the image is {height} x {width}."
        )
    plane = luma(image) if variant == "basicsr" else grey(image)
    plane = plane[: rows * BLOCK, : columns * BLOCK]
    parts = []
    for side in (BLOCK, BLOCK // 2):
        blocks = _blocks(_local_contrast(plane), side)
        parts.append(np.array([_features(block) for block in blocks]))
        if side == BLOCK:
            plane = _mean_of_four(plane) if variant == "basicsr" else _half_bicubic(plane)
    features = np.concatenate(parts, axis=1)
    complete = features[~np.isnan(features).any(axis=1)]
    if len(complete) < 2:
        raise DataError("NIQE cannot score an image that is flat almost everywhere.")
    gap = model.mean - np.nanmean(features, axis=0)
    spread = (model.covariance + np.cov(complete, rowvar=False)) / 2
    return float(np.sqrt(gap @ np.linalg.pinv(spread) @ gap))


def luma(image: np.ndarray) -> np.ndarray:
    """Return Y of ITU-R 601 in [16, 235], not rounded, float32, from RGB uint8."""
    unit = image.astype(np.float32) / np.float32(255)
    y = (unit @ np.array([65.481, 128.553, 24.966]) + 16.0) / 255.0
    return y.astype(np.float32) * np.float32(255)


def grey(image: np.ndarray) -> np.ndarray:
    """Return MATLAB's rgb2gray in [0, 255], rounded, from RGB uint8."""
    return np.round(image.astype(np.float64) @ np.array([0.298936, 0.587043, 0.114021]))


def _local_contrast(plane: np.ndarray) -> np.ndarray:
    """Subtract the local mean and divide by the local deviation plus one.

    Stays in the plane's precision: in flat regions the sign of rounding errors decides, so only
    the same arithmetic gives the published numbers (float32 for `basicsr`).
    """
    mean = convolve(plane, _window(), mode="nearest")
    square = convolve(np.square(plane), _window(), mode="nearest")
    return (plane - mean) / (np.sqrt(np.abs(square - np.square(mean))) + 1)


@cache
def _window() -> np.ndarray:
    steps = np.arange(-3, 4)
    line = np.exp(-(steps**2) / (2 * _SIGMA**2))
    window = np.outer(line, line)
    return window / window.sum()


def _blocks(plane: np.ndarray, side: int) -> np.ndarray:
    rows, columns = plane.shape[0] // side, plane.shape[1] // side
    blocks = plane.reshape(rows, side, columns, side)
    return blocks.transpose(0, 2, 1, 3).reshape(-1, side, side)


def _features(block: np.ndarray) -> list[float]:
    """Return 18 features: shape and spread of the values and of their products with neighbours."""
    alpha, left, right = _asymmetric_gaussian(block)
    found = [alpha, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        alpha, left, right = _asymmetric_gaussian(block * np.roll(block, shift, axis=(0, 1)))
        mean = (right - left) * gamma(2 / alpha) / gamma(1 / alpha)
        found += [alpha, mean, left, right]
    return found


@cache
def _shape_table() -> tuple[np.ndarray, np.ndarray]:
    shapes = np.arange(0.2, 10.001, 0.001)
    return shapes, gamma(2 / shapes) ** 2 / (gamma(1 / shapes) * gamma(3 / shapes))


def _asymmetric_gaussian(values: np.ndarray) -> tuple[float, float, float]:
    """Fit an asymmetric generalised Gaussian by moments: shape, left and right scale.

    Values without negatives or positives have no such fit; the scales are then NaN.
    """
    square = values**2
    left, right = (_root_mean(square[side]) for side in (values < 0, values > 0))
    shapes, table = _shape_table()
    if np.isnan(left) or np.isnan(right):  # the original's arg min of NaN is the first shape
        scale = _scale(shapes[0])
        return float(shapes[0]), left * scale, right * scale
    ratio = left / right
    flatness = np.mean(np.abs(values)) ** 2 / np.mean(square)
    wanted = flatness * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    place = int(np.searchsorted(table, wanted))  # the table rises with the shape
    near = [i for i in (place - 1, place) if 0 <= i < len(table)]
    alpha = float(shapes[min(near, key=lambda i: (table[i] - wanted) ** 2)])
    scale = _scale(alpha)
    return alpha, left * scale, right * scale


def _root_mean(squares: np.ndarray) -> float:
    return float(np.sqrt(squares.mean())) if squares.size else np.nan


def _scale(alpha: float) -> float:
    return float(np.sqrt(gamma(1 / alpha) / gamma(3 / alpha)))


def _mean_of_four(plane: np.ndarray) -> np.ndarray:
    """Halve, as OpenCV's bilinear resize does for even sizes."""
    return (plane[::2, ::2] + plane[1::2, ::2] + plane[::2, 1::2] + plane[1::2, 1::2]) / 4


def _half_bicubic(plane: np.ndarray) -> np.ndarray:
    """Halve as MATLAB's imresize: cubic kernel stretched by two, edges mirrored."""
    offsets = np.arange(-3.5, 4) / 2  # of the eight inputs around an output, in output pixels
    x = np.abs(offsets)
    kernel = np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        padded = np.pad(plane, [(3, 3) if a == axis else (0, 0) for a in (0, 1)], mode="symmetric")
        count = plane.shape[axis] // 2
        taps = [np.take(padded, range(k, k + 2 * count, 2), axis) for k in range(8)]
        plane = sum(weight * tap for weight, tap in zip(kernel, taps, strict=True))
    return plane
