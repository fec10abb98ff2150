"""Pairs made from well-lit photographs, in LOL's layout: `crossband low-light data make`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from crossband.apps.low_light.config import MakeConfig
from crossband.apps.low_light.data.dimming import Camera, dim, get_camera
from crossband.apps.low_light.data.photos import PhotoStore, readable, to_tensor
from crossband.shared.cli.output import print_json
from crossband.shared.data.images import Photo, find_photos, write_photo
from crossband.shared.errors import ConfigError

# Colour photographs that come inside scikit-image, no download needed.
EMBEDDED = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")


def embedded_photos() -> list[Path]:
    """Return the photographs that scikit-image brings."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    return [folder / name for name in EMBEDDED if (folder / name).is_file()]


def make_synthetic(
    root: str | Path,
    photos: Sequence[str | Path] = (),
    *,
    camera: Camera | None = None,
    longest: int = 640,
    seed: int = 0,
) -> list[Path]:
    """Write `low/NAME.png` and `high/NAME.png` for every photograph.

    Args:
        root: Folder to write.
        photos: Files or folders; default: `embedded_photos()`.
        camera: What dims them; default: the training camera.
        longest: Longest side; 0 keeps the size.
        seed: Of the draws; every photograph has its own, whatever the others are.

    Returns:
        The dark files.

    Raises:
        DataError: no photograph that can be read.
    """
    camera = replace(camera or get_camera("training"), untouched=0.0)
    found = [path for path, _ in find_photos(photos)[0]] if photos else embedded_photos()
    store = PhotoStore(0.5, longest)
    paths, _ = readable(found, store)
    written = []
    for number, path in enumerate(paths):
        high = store.read(path)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        low = dim(to_tensor(high)[None], camera, generator)[0]
        pixels = (low * 255).round().byte().permute(1, 2, 0).numpy()
        name = f"{path.stem}.png"
        for folder, image in (("low", pixels), ("high", high)):
            write_photo(Photo(np.ascontiguousarray(image)), Path(root) / folder / name)
        written.append(Path(root) / "low" / name)
    return written


def run(config: MakeConfig) -> None:
    """Run `crossband low-light data make`.

    Raises:
        ConfigError: a length below zero.
    """
    if config.longest < 0:
        raise ConfigError(f"--longest {config.longest} must be 0 or more.")
    camera = get_camera(config.camera)
    written = make_synthetic(
        config.out, config.root, camera=camera, longest=config.longest, seed=config.seed
    )
    if config.json:
        print_json({"root": config.out, "pairs": len(written), "camera": config.camera})
    else:
        print(f"{config.out}: {len(written)} pairs dimmed by the camera '{config.camera}'")
