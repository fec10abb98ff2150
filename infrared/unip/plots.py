"""Pictures of pre-training and of attention, for the reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from crossband.infrared.catalog import MEAN, STD
from crossband.infrared.unip.analysis import LayerFacts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {"local": "#4c78a8", "hybrid": "#54a24b", "global": "#e45756"}


def nmi_curve(values: Sequence[float], target: float, chosen: int) -> Figure:
    """Draw the NMI of the layers, the hybrid value and the layer that comes nearest."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3))
    _nmi_line(axes, values, target, chosen)
    return figure


def layer_curves(
    layers: Sequence[LayerFacts], patterns: Sequence[str], target: float, chosen: int
) -> Figure:
    """Draw NMI, attention distance and patterns over the layers."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    figure, (strip, top, bottom) = plt.subplots(
        3, 1, figsize=(7.5, 6.5), sharex=True, height_ratios=(0.25, 1, 1)
    )
    numbers = [layer.number for layer in layers]
    for number, name in zip(numbers, patterns, strict=True):
        strip.axvspan(number - 0.5, number + 0.5, color=_COLOURS[name], lw=0)
    strip.set(yticks=[], title="pattern")
    handles = [Patch(color=colour, label=name) for name, colour in _COLOURS.items()]
    strip.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    _nmi_line(top, [layer.nmi for layer in layers], target, chosen)
    top.set(xlabel="")
    bottom.plot(numbers, [layer.distance for layer in layers], marker="o", color="#4c78a8")
    bottom.set(xlabel="layer", ylabel="attention distance, px", ylim=(0, None), xticks=numbers)
    bottom.tick_params(axis="x", labelsize=8)
    return figure


def fourier_curves(layers: Sequence[LayerFacts]) -> Figure:
    """Draw log amplitudes of the features over frequency, early layers dark."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3))
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.95, len(layers)))
    for layer, colour in zip(layers, colours, strict=True):
        frequency = np.linspace(0, 1, len(layer.amplitude))
        axes.plot(frequency, layer.amplitude, color=colour)
    shades = plt.cm.ScalarMappable(plt.Normalize(1, len(layers)), "viridis")
    figure.colorbar(shades, ax=axes, label="layer")
    axes.set(xlabel="frequency (1: patch to patch)", ylabel="log amplitude, relative")
    return figure


def similarity(matrix: Tensor) -> Figure:
    """Draw a matrix of CKA between layers."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4.6, 3.8))
    last = len(matrix) + 0.5
    shown = axes.imshow(
        matrix.numpy(), vmin=0, vmax=1, origin="lower", extent=(0.5, last, 0.5, last)
    )
    figure.colorbar(shown, ax=axes, label="linear CKA")
    axes.set(xlabel="layer", ylabel="layer")
    return figure


def query_attention(
    frame: np.ndarray,
    maps: Mapping[str, Tensor],
    queries: Sequence[tuple[int, int]],
    patch_size: float,
) -> Figure:
    """Draw where queries look: a row for each query, a column for each layer.

    Args:
        frame: (H, W) in [0, 1].
        maps: Name of a layer -> attention (queries, rows, columns), mean over heads.
        queries: Row and column of each query's patch.
        patch_size: Pixels.
    """
    import matplotlib.pyplot as plt

    shape = (len(queries), len(maps) + 1)
    figure, grid = plt.subplots(*shape, figsize=(1.7 * shape[1], 1.75 * shape[0]), squeeze=False)
    height, width = frame.shape
    for row, (down, right) in enumerate(queries):
        centre = ((right + 0.5) * patch_size, (down + 0.5) * patch_size)
        for column, axes in enumerate(grid[row]):
            axes.imshow(frame, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
            axes.plot(*centre, "x", color="#ffd400", markersize=7, markeredgewidth=2)
            axes.set(xticks=[], yticks=[])
            if column:
                name, values = list(maps.items())[column - 1]
                axes.imshow(
                    values[row].numpy(), cmap="inferno", alpha=0.7, extent=(0, width, height, 0)
                )
                axes.plot(*centre, "x", color="#ffd400", markersize=7, markeredgewidth=2)
                if row == 0:
                    axes.set_title(name, fontsize=8)
    figure.tight_layout(pad=0.4)
    return figure


def grey(image: Tensor) -> np.ndarray:
    """Return a normalised image (C, H, W) as (H, W) in [0, 1]."""
    return (image.float().mean(0).cpu() * STD[0] + MEAN[0]).clamp(0, 1).numpy()


def _nmi_line(axes: Axes, values: Sequence[float], target: float, chosen: int) -> None:
    numbers = list(range(1, len(values) + 1))
    axes.plot(numbers, values, marker="o", color="#4c78a8")
    axes.axhline(target, color="#54a24b", ls="--", lw=1, label=f"hybrid, {target:g}")
    axes.plot(chosen, values[chosen - 1], "o", ms=11, mfc="none", mec="#e45756", mew=2)
    axes.annotate(
        f"layer {chosen}", (chosen, values[chosen - 1]), (6, 8), textcoords="offset points"
    )
    axes.set(xlabel="layer", ylabel="NMI", ylim=(0, None), xticks=numbers)
    axes.tick_params(axis="x", labelsize=8)
    axes.legend(frameon=False)
