"""Figures that reports of several domains show."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curves(
    history: Sequence[dict[str, float]], scores: Sequence[str] = (), unit: str = "loss"
) -> Figure:
    """Draw losses by epoch, and beside them validation scores.

    Args:
        history: Rows with `epoch`, `train_loss`, `val_loss` and the scores.
        scores: Names of scores; none: losses alone.
        unit: Of the losses.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9 if scores else 7, 3))
    panels = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    epochs = [row["epoch"] for row in history]
    for axes, names in zip(panels, (("train_loss", "val_loss"), scores), strict=False):
        for name in names:
            axes.plot(epochs, [row[name] for row in history], marker=".", label=name)
        axes.set_xlabel("epoch")
        axes.legend()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(unit)
    figure.tight_layout()
    return figure


def rows_of_images(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> Figure:
    """Draw rows of grey or RGB images in [0, 1], the columns titled."""
    from matplotlib.figure import Figure

    shape = (len(rows), len(titles))
    figure = Figure(figsize=(2.1 * shape[1], 2.15 * shape[0]))
    grid = figure.subplots(*shape, squeeze=False)
    for axes_row, images in zip(grid, rows, strict=True):
        for axes, image in zip(axes_row, images, strict=True):
            axes.imshow(image, cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    figure.tight_layout(pad=0.4)
    return figure


def confusion(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix (K, K), rows the truth, as shares of each row."""
    from matplotlib.figure import Figure

    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(3.0, 0.45 * len(classes))
    figure = Figure(figsize=(side + 1.5, side))
    axes = figure.subplots()
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for row, column in np.ndindex(*shares.shape):
        value = shares[row, column]
        if value >= 0.005:
            colour = "white" if value > 0.5 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, c=colour)
    return figure


def overlay(pixels: np.ndarray, ids: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Return RGB (H, W, 3): the image, classes other than 0 half covered and outlined.

    Args:
        pixels: uint8, (H, W) or (H, W, 3).
        ids: uint8 (H, W), class ids.
        palette: uint8 (K, 3).
    """
    import cv2

    picture = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    shown = picture.astype(np.float32)
    marked = ids > 0
    shown[marked] = 0.55 * shown[marked] + 0.45 * palette[ids[marked]]
    edge = marked & (cv2.erode(ids, np.ones((3, 3), np.uint8)) != cv2.dilate(ids, np.ones((3, 3))))
    shown[edge] = palette[ids[edge]]
    return shown.round().astype(np.uint8)


def panel(
    pixels: np.ndarray, label: np.ndarray, found: np.ndarray, palette: np.ndarray
) -> np.ndarray:
    """Return RGB: an image, its labels (255 is ignored), and what was found, side by side."""
    truth = label * (label != 255)
    parts = [overlay(pixels, ids, palette) for ids in (np.zeros_like(truth), truth, found)]
    gap = np.full((pixels.shape[0], 4, 3), 255, np.uint8)
    return np.hstack([parts[0], gap, parts[1], gap, parts[2]])


def png(pixels: np.ndarray) -> bytes:
    """Return a grey or RGB picture as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()
