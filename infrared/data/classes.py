"""Names and colours of the classes of the public data sets, in the order of their ids."""

from __future__ import annotations

import colorsys

BACKGROUND = "background"
SODA = (
    *(BACKGROUND, "person", "building", "tree", "road", "pole", "grass", "door", "table", "chair"),
    *("car", "bicycle", "lamp", "monitor", "traffic cone", "trash can", "animal", "fence", "sky"),
    *("river", "sidewalk"),
)
MFNET = (
    *(BACKGROUND, "car", "person", "bike", "curve", "car stop", "guardrail", "color cone", "bump"),
)
SCUT = (*(BACKGROUND, "road", "person", "rider", "car", "truck", "fence", "tree", "bus", "pole"),)
PST900 = (BACKGROUND, "fire extinguisher", "backpack", "hand drill", "survivor")
SIRST = (BACKGROUND, "target")

_MFNET_COLOURS = (
    *((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128)),
    *((0, 128, 128), (128, 128, 128), (64, 0, 0)),
)
_SCUT_COLOURS = (
    *((0, 0, 0), (128, 64, 128), (60, 20, 220), (0, 0, 255), (142, 0, 0), (70, 0, 0)),
    *((153, 153, 190), (35, 142, 107), (100, 60, 0), (153, 153, 153)),
)
_COLOURS = {MFNET: _MFNET_COLOURS, SCUT: _SCUT_COLOURS}


def palette(classes: tuple[str, ...]) -> list[tuple[int, int, int]]:
    """Return one RGB colour per class: the data set's own, or hues a golden angle apart."""
    if classes in _COLOURS:
        return list(_COLOURS[classes])
    hues = (colorsys.hsv_to_rgb(0.618034 * i % 1, 0.75, 0.95) for i in range(len(classes) - 1))
    bright = [tuple(round(255 * part) for part in hue) for hue in hues]
    return [(0, 0, 0), *bright][: len(classes)]
