"""Thermal scenes rendered by temperature, in the layout `folder`: `crossband infrared data make`.

A scene is a map of temperatures in degrees Celsius: surfaces with gradients and texture, and
objects that are warmer or colder. A camera model adds blur and noise and turns it into counts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from crossband.infrared.config import MakeConfig
from crossband.shared.cli.output import print_json
from crossband.shared.errors import ConfigError
from crossband.shared.files import atomic_path, write_text

Kind = Literal["street", "targets"]
STREET = ("background", "road", "car", "person")
TARGETS = ("background", "target")
_NOISE = 0.15  # noise-equivalent temperature difference, kelvin
# 16-bit counts of a camera whose digital number is a hundredth of a kelvin.
_COUNTS_PER_KELVIN, _ZERO_CELSIUS = 100.0, 273.15
_SHARES = (("train", 0.7), ("val", 0.15), ("test", 0.15))


def make_synthetic(
    root: str | Path,
    count: int = 60,
    *,
    size: tuple[int, int] = (160, 192),
    kind: Kind = "street",
    bits: int = 8,
    seed: int = 0,
) -> Path:
    """Write `images/`, `masks/`, `classes.txt` and the lists `train.txt`, `val.txt`, `test.txt`.

    Args:
        root: Folder to write.
        count: Scenes.
        size: Rows and columns of a scene.
        kind: `street` with road, cars and people, or `targets`, tiny ones before clouds.
        bits: 8, stretched to each scene, or 16, counts of hundredths of a kelvin.
        seed: Of the scenes.

    Returns:
        The folder.

    Raises:
        ConfigError: fewer scenes than lists, or a size that is too small.
    """
    if count < len(_SHARES) or min(size) < 32:
        raise ConfigError(f"{count} scenes of {size[0]} x {size[1]}: make 3 or more of 32 pixels.")
    root = Path(root)
    render: Callable = _street if kind == "street" else _targets
    names = [f"scene_{number:04d}" for number in range(count)]
    for number, name in enumerate(names):
        draw = np.random.default_rng((seed, number))
        celsius, mask = render(size, draw)
        _save(_camera(celsius, bits, draw), root / "images" / f"{name}.png")
        _save(mask, root / "masks" / f"{name}.png")
    classes = STREET if kind == "street" else TARGETS
    write_text(root / "classes.txt", "".join(f"{name}\n" for name in classes))
    first = 0
    for place, (split, share) in enumerate(_SHARES):
        last = count if place == len(_SHARES) - 1 else first + max(1, round(share * count))
        last = min(last, count - (len(_SHARES) - 1 - place))
        write_text(root / f"{split}.txt", "".join(f"{name}\n" for name in names[first:last]))
        first = last
    return root


def run(config: MakeConfig) -> None:
    """Run `crossband infrared data make`."""
    root = make_synthetic(
        config.out,
        config.count,
        size=(config.height, config.width),
        kind=config.kind,
        bits=int(config.bits),
        seed=config.seed,
    )
    if config.json:
        print_json({"root": str(root), "count": config.count})
    else:
        print(f"{root}: {config.count} scenes of {config.height} x {config.width}")


def _street(size: tuple[int, int], draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    height, width = size
    rows = np.linspace(0, 1, height)[:, None]
    horizon = draw.uniform(0.35, 0.5)
    sky, ground = draw.uniform(-15, 0), draw.uniform(5, 18)
    celsius = np.where(rows < horizon, sky + 12 * rows, ground + 3 * rows) * np.ones((1, width))
    celsius = celsius + _clouds(size, draw, 1.5)
    mask = np.zeros(size, np.uint8)
    # A road from the horizon to the lower border, warmer than the ground beside it.
    top, bottom = int(horizon * height), height - 1
    middle, half = draw.uniform(0.3, 0.7) * width, draw.uniform(0.25, 0.45) * width
    corners = np.array(
        [[middle - 4, top], [middle + 4, top], [middle + half, bottom], [middle - half, bottom]]
    )
    road = np.zeros(size, np.uint8)
    cv2.fillPoly(road, [corners.round().astype(np.int32)], 1)
    celsius[road > 0] += draw.uniform(3, 6)
    mask[road > 0] = STREET.index("road")
    for _ in range(int(draw.integers(1, 4))):
        _car(celsius, mask, top, middle, half, draw)
    for _ in range(int(draw.integers(1, 5))):
        _person(celsius, mask, top, draw)
    return celsius, mask


def _depth(top: int, height: int, draw: np.random.Generator) -> tuple[int, float]:
    """Return the row where an object stands, and how large it looks there, 0 to 1."""
    near = draw.uniform(0.15, 1.0)
    return int(top + near * (height - 1 - top)), near


def _car(
    celsius: np.ndarray,
    mask: np.ndarray,
    top: int,
    middle: float,
    half: float,
    draw: np.random.Generator,
) -> None:
    height, width = mask.shape
    foot, near = _depth(top, height, draw)
    tall, wide = max(3, int(0.22 * height * near)), max(4, int(0.3 * height * near))
    left = int(middle + draw.uniform(-0.8, 0.8) * half * near - wide / 2)
    box = np.s_[max(0, foot - tall) : foot + 1, max(0, left) : max(0, left + wide)]
    celsius[box] = draw.uniform(14, 20)
    mask[box] = STREET.index("car")
    warm = np.s_[max(0, foot - tall // 3) : foot + 1, max(0, left) : max(0, left + wide)]
    celsius[warm] += draw.uniform(6, 14)  # engine and wheels


def _person(celsius: np.ndarray, mask: np.ndarray, top: int, draw: np.random.Generator) -> None:
    height, width = mask.shape
    foot, near = _depth(top, height, draw)
    tall = max(4, int(0.3 * height * near))
    column = int(draw.uniform(0.05, 0.95) * width)
    body = np.zeros(mask.shape, np.uint8)
    cv2.ellipse(body, (column, foot - tall // 2), (max(1, tall // 6), tall // 2), 0, 0, 360, 1, -1)
    cv2.circle(body, (column, foot - tall), max(1, tall // 9), 1, -1)
    celsius[body > 0] = draw.uniform(26, 33)
    mask[body > 0] = STREET.index("person")


def _targets(size: tuple[int, int], draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    height, width = size
    celsius = draw.uniform(-20, 5) + _clouds(size, draw, draw.uniform(2, 6))
    mask = np.zeros(size, np.uint8)
    rows, columns = np.mgrid[:height, :width]
    for _ in range(int(draw.integers(0, 4))):
        y, x = draw.uniform(4, height - 4), draw.uniform(4, width - 4)
        sigma = draw.uniform(0.8, 2.2)
        blob = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2))
        celsius = celsius + draw.uniform(4, 10) * blob
        mask[blob > 0.4] = 1
    return celsius, mask


def _clouds(size: tuple[int, int], draw: np.random.Generator, strength: float) -> np.ndarray:
    """Return smooth noise of several scales, standard deviation about `strength` kelvin."""
    total = np.zeros(size, np.float32)
    for octave in range(2, 6):
        cells = draw.normal(size=(2**octave, 2**octave)).astype(np.float32)
        total += cv2.resize(cells, size[::-1], interpolation=cv2.INTER_CUBIC) / 2 ** (octave - 2)
    return strength * total


def _camera(celsius: np.ndarray, bits: int, draw: np.random.Generator) -> np.ndarray:
    seen = cv2.GaussianBlur(celsius.astype(np.float32), (0, 0), 0.7)
    seen = seen + draw.normal(0, _NOISE, seen.shape)
    if bits == 16:
        return ((seen + _ZERO_CELSIUS) * _COUNTS_PER_KELVIN).round().astype(np.uint16)
    low, high = np.percentile(seen, (0.5, 99.5))
    return ((seen - low) / max(high - low, 1e-6) * 255).clip(0, 255).round().astype(np.uint8)


def _save(pixels: np.ndarray, path: Path) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary)
