"""The bundle folders of the shipped recipes, without weights; run it to write them anew.

    python -m crossband.medical.bundles.shipped

Versions of packages and the date are those of the machine that wrote them.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from crossband.medical.bundles.writing import files_of
from crossband.medical.catalog import NIH
from crossband.medical.config import TaskName, TrainConfig
from crossband.medical.data.transforms import NIH as NIH_NORMALISATION
from crossband.medical.networks import TASKS, describe
from crossband.shared.files import write_text

FOLDER = Path(__file__).parent
SIZE = 224
_NIH_LICENCE = "NIH ChestX-ray14: usage without restriction, with reference to its paper and source"
# Licence texts come with a checkpoint, so that no folder without weights claims one.
SHIPPED_FILES = ("configs/", "docs/README.md")


def _facts(
    model: str, classes: tuple[str, ...], description: str, task: TaskName, licence: str = ""
) -> dict[str, Any]:
    """Return what a checkpoint of `crossband medical train` says of itself, but scores."""
    facts: dict[str, Any] = {
        "task": TASKS[task],
        "model": describe(TrainConfig(model=model, task=task, size=SIZE), len(classes)),
        "classes": list(classes),
        "multilabel": task == "classification",
        "input_size": [SIZE, SIZE],
        "channels": 3,
        "value_range": [0, 255],
        "normalisation": asdict(NIH_NORMALISATION),
        "reading": {"resize": 256, "window": []},
        "modality": "X-ray",
        "description": description,
    }
    return facts | ({"license": licence} if licence else {})


def recipes() -> dict[str, dict[str, Any]]:
    """Return what the checkpoint of each shipped recipe says of itself, by the folder's name."""
    findings = "14 findings in frontal chest X-rays, {} pre-trained by masked images"
    return {
        **{
            f"chest_mae_vit_{size}_nih": _facts(
                f"chest_mae_vit_{size}",
                NIH,
                findings.format(f"ViT-{size[0].upper()}/16"),
                "classification",
                _NIH_LICENCE,
            )
            for size in ("small", "base")
        },
        "lung_segmentation": _facts(
            "chest_mae_vit_small",
            ("background", "lung"),
            "lungs in frontal chest X-rays, ViT-S/16 pre-trained by masked images",
            "segmentation",
        ),
    }


def files() -> dict[str, str]:
    """Return the texts of all shipped folders by their paths."""
    return {
        f"{name}/{path}": text
        for name, facts in recipes().items()
        for path, text in files_of(facts, name).items()
        if path.startswith(SHIPPED_FILES)
    }


if __name__ == "__main__":
    for path, text in files().items():
        write_text(FOLDER / path, text)
        print(path)
