from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from openmmlab_tester import CONFIG, script


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright discs (class 1) and dark squares (class 2) on noise, 48 x 48."""
    cv2 = pytest.importorskip("cv2")
    folder = tmp_path_factory.mktemp("thermal")
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    generator = np.random.default_rng(0)
    for index in range(16):
        image = generator.normal(120, 8, (48, 48))
        mask = np.zeros((48, 48), np.uint8)
        y, x = generator.integers(12, 36, 2)
        disc = np.hypot(*(np.mgrid[:48, :48] - np.array([y, x])[:, None, None])) < 9
        image[disc], mask[disc] = 220, 1
        top, left = generator.integers(0, 36, 2)
        square = np.s_[top : top + 10, left : left + 10]
        image[square], mask[square] = 30, 2
        cv2.imwrite(str(folder / "images" / f"{index:02d}.png"), image.clip(0, 255).astype("u1"))
        cv2.imwrite(str(folder / "masks" / f"{index:02d}.png"), mask)
    (folder / "classes.txt").write_text("background\ndisc\nsquare\n")
    (folder / "train.txt").write_text("".join(f"{i:02d}\n" for i in range(12)))
    (folder / "val.txt").write_text("".join(f"{i:02d}\n" for i in range(12, 16)))
    return folder


@pytest.fixture(scope="module")
def config(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "unireplknet_toy.py"
    path.write_text(CONFIG.replace("DATA", str(data)))
    return path


@pytest.fixture(scope="module")
def resumed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of mmseg's own train.py that was stopped after step 3 and resumed up to 6."""
    folder = tmp_path_factory.mktemp("resumed")
    script("train.py", config, "--work-dir", folder, "--cfg-options", "train_cfg.max_iters=3")
    script("train.py", config, "--work-dir", folder, "--resume")
    return folder
