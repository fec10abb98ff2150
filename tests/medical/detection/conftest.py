from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

LIBRARIES = ("mmengine", "mmcv", "mmdet", "pycocotools")
CLASSES = ("disc", "square")


def needs_mmdet() -> None:
    """Skip a module of tests where the extra is not installed."""
    for library in LIBRARIES:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed: extra openmmlab", allow_module_level=True)


def draw_shapes(root: Path, count: int, side: int = 64, seed: int = 0) -> Path:
    """Write images of one bright disc and one square each, and a COCO json without splits."""
    draw = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    images, boxes = [], []
    for number in range(count):
        noise = draw.integers(0, 50, (side, side), dtype=np.uint8)
        picture = Image.fromarray(noise)
        canvas = ImageDraw.Draw(picture)
        for kind, left in ((1, 2), (2, side // 2 + 2)):
            size = int(draw.integers(side // 4, side // 3))
            x = left + int(draw.integers(0, side // 2 - size - 3))
            y = int(draw.integers(1, side - size - 1))
            shape = canvas.ellipse if kind == 1 else canvas.rectangle
            shape((x, y, x + size - 1, y + size - 1), fill=230 if kind == 1 else 150)
            box = {"id": len(boxes), "image_id": number, "category_id": kind, "iscrowd": 0}
            boxes.append(box | {"bbox": [x, y, size, size], "area": size * size})
        name = f"{number:03d}.png"
        picture.save(root / "images" / name)
        images.append({"id": number, "file_name": name, "width": side, "height": side})
    kinds = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": boxes, "categories": kinds}
    (root / "boxes.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four images of discs and squares."""
    return draw_shapes(tmp_path_factory.mktemp("shapes"), 24)
