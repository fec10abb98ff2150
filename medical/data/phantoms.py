"""Drawn chests: what the synthetic data sets show. Nothing of it comes from a patient."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

FINDINGS = ("Cardiomegaly", "Effusion", "Mass", "Nodule", "Pneumothorax")
# Chance of each finding in an image.
_CHANCES = (0.25, 0.25, 0.15, 0.2, 0.2)
# Grey values (0 black, 1 white) of what the rays pass through.
_AIR, _BODY, _LUNG, _BONE, _HEART, _BELLY, _FLUID, _FREE_AIR = (
    *(0.03, 0.62, 0.28, 0.1, 0.74, 0.8, 0.7, 0.14),
)


@dataclass(frozen=True)
class Chest:
    """The build of a patient, in parts of the picture's side.

    Attributes:
        lung: Half the width of a lung.
        height: Half the height of a lung.
        heart: Half the width of the heart over that of the chest, when it is healthy.
        ribs: Offset of the ribs.
    """

    lung: float
    height: float
    heart: float
    ribs: float

    @classmethod
    def draw(cls, random: np.random.Generator) -> Chest:
        """Draw a patient."""
        return cls(
            random.uniform(0.15, 0.18),
            random.uniform(0.29, 0.34),
            random.uniform(0.40, 0.46),
            random.uniform(0, 1),
        )


@dataclass(frozen=True)
class Phantom:
    """A drawn radiograph.

    Attributes:
        pixels: uint8 (H, W); dense tissue is white.
        lungs: bool (H, W).
        labels: 1 or 0 per finding of `FINDINGS`.
        view: `PA` or `AP`.
    """

    pixels: np.ndarray
    lungs: np.ndarray
    labels: tuple[int, ...]
    view: str


def draw_phantom(chest: Chest, size: int, random: np.random.Generator) -> Phantom:
    """Draw a radiograph of a patient.

    From front to back (AP, as in bed) the heart is enlarged, the lungs are less filled and the
    shoulder blades lie over them.

    Args:
        chest: Whose.
        size: Side in pixels.
        random: For findings, view, position, exposure and noise.
    """
    labels = tuple(int(random.random() < chance) for chance in _CHANCES)
    view = "PA" if random.random() < 0.6 else "AP"
    has = dict(zip(FINDINGS, labels, strict=True))
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    turn, shift = random.normal(0, 0.03), random.normal(0, 0.015, 2)
    x, y = x - 0.5 - shift[0] + turn * (y - 0.5), y - shift[1]
    height = chest.height * (0.85 if view == "AP" else 1.0)
    side = np.sign(x)
    middle = 0.06 + chest.lung  # of a lung, from the spine
    # 1 on the border of a lung, less inside.
    depth = ((np.abs(x) - middle) / chest.lung) ** 2 + ((y - 0.46) / height) ** 2
    dome = 0.46 + height * (0.72 + 0.9 * ((np.abs(x) - middle) / 0.3) ** 2) - 0.02 * (side < 0)
    thorax = (depth < 1) & (y < dome)
    half = (middle + chest.lung) * (
        random.uniform(0.58, 0.66) if has["Cardiomegaly"] else chest.heart
    )
    half *= 1.12 if view == "AP" else 1.0
    base = 0.46 + height * 0.72
    heart = ((x - 0.18 * half) / half) ** 2 + ((y - base + 0.13) / 0.17) ** 2 < 1
    lungs = thorax & ~heart
    picture = np.where((np.abs(x) < 0.42) & (y > 0.06), _BODY, _AIR).astype(np.float32)
    picture[thorax] = _LUNG
    picture[np.abs(x) < 0.05] += 0.12
    picture[heart] = _HEART
    picture[(y > dome) & (np.abs(x) < 0.4) & (y > 0.5)] = _BELLY
    texture = cv2.GaussianBlur(
        random.normal(0, 1, (size, size)).astype(np.float32), (0, 0), 0.015 * size
    )
    picture[lungs] += 0.05 * (texture / max(float(texture.std()), 1e-6))[lungs]
    picture += _bones(x, y, chest, view)
    where = _side(random)
    if has["Pneumothorax"]:
        inner = ((np.abs(x) - middle + 0.03) / (0.78 * chest.lung)) ** 2
        collapsed = inner + ((y - 0.52) / (0.8 * height)) ** 2 < 1
        picture[lungs & (side == where) & ~collapsed] = _FREE_AIR
    if has["Effusion"]:
        level = base - random.uniform(0.06, 0.14) - 1.2 * (np.abs(x) - middle).clip(0)
        picture[lungs & (side == _side(random)) & (y > level)] = _FLUID
    for name, low, high in (("Nodule", 0.022, 0.032), ("Mass", 0.05, 0.07)):
        if has[name]:
            centre = _side(random) * (middle + random.uniform(-0.3, 0.6) * chest.lung)
            level = random.uniform(0.3, 0.52)
            radius = random.uniform(low, high)
            away = ((x - centre) ** 2 + (y - level) ** 2) / radius**2
            picture += 0.3 * np.exp(-(away**2))
    picture = cv2.GaussianBlur(picture, (0, 0), max(0.4, 0.003 * size))
    picture = picture.clip(0, 1) ** random.uniform(0.85, 1.15) * random.uniform(0.9, 1.05)
    picture += random.normal(0, 0.02, picture.shape)
    return Phantom(np.rint(picture.clip(0, 1) * 255).astype(np.uint8), lungs, labels, view)


def _bones(x: np.ndarray, y: np.ndarray, chest: Chest, view: str) -> np.ndarray:
    """Return what ribs, collar bones and shoulder blades add."""
    cage = (np.abs(x) < 2 * chest.lung + 0.08) & (y > 0.1) & (y < 0.82)
    bent = (y + 0.9 * (np.abs(x) - 0.12) ** 2 * 2) / 0.075 + chest.ribs
    added = np.where(cage & (np.mod(bent, 1) < 0.32), 0.7 * _BONE, 0).astype(np.float32)
    collar = np.abs(y - 0.16 - 0.15 * np.abs(x)) < 0.014
    added[collar & (np.abs(x) < 0.34)] += _BONE
    if view == "AP":
        blade = ((np.abs(x) - 0.31) / 0.075) ** 2 + ((y - 0.34) / 0.17) ** 2 < 1
        added[blade] += _BONE
    return added


def _side(random: np.random.Generator) -> int:
    return 1 if random.random() < 0.5 else -1
