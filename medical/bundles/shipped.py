"""The bundle folders of the shipped recipes, without weights; run it to write them anew.

    python -m crossband.medical.bundles.shipped

Versions of packages and the date are those of the machine that wrote them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crossband.medical.bundles.writing import files_of
from crossband.medical.catalog import NIH
from crossband.medical.cli import DOMAIN
from crossband.medical.data.transforms import NIH as NORMALISATION
from crossband.medical.networks import TASKS, describe
from crossband.shared.cli.parser import parse
from crossband.shared.files import write_text

FOLDER = Path(__file__).parent
# Licence texts come with a checkpoint, so that no folder without weights claims one.
SHIPPED_FILES = ("configs/", "docs/README.md")
_NIH_LICENCE = "NIH ChestX-ray14: usage without restriction, with reference to its paper and source"


@dataclass(frozen=True)
class Recipe:
    """A recipe of `crossband medical train` and what it is trained on.

    Attributes:
        name: Of the recipe.
        classes: As the data set names them.
        data_licence: Of the images.
    """

    name: str
    classes: tuple[str, ...]
    data_licence: str = ""

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint of the recipe says of itself, but scores."""
        config = parse(DOMAIN.verbs["train"], ["--recipe", self.name])
        found = f"{len(self.classes)} findings"
        if config.task == "segmentation":
            found = ", ".join(self.classes[1:])
        return {
            "task": TASKS[config.task],
            "model": describe(config, len(self.classes)),
            "classes": list(self.classes),
            "multilabel": config.task == "classification",
            "input_size": [config.size, config.size],
            "channels": 3,
            "value_range": [0, 255],
            "normalisation": asdict(NORMALISATION),
            "reading": {"resize": config.augment.resize or config.size * 256 // 224, "window": []},
            "modality": "X-ray",
            "description": f"{config.model}: {found} of radiographs",
        }


RECIPES = {
    "chest_mae_vit_small_nih": Recipe("nih", NIH, _NIH_LICENCE),
    "chest_mae_vit_base_nih": Recipe("nih_base", NIH, _NIH_LICENCE),
    "lung_segmentation": Recipe("lungs", ("background", "lung")),
}


def files() -> dict[str, str]:
    """Return the texts of all shipped folders by their paths."""
    return {
        f"{name}/{path}": text
        for name, recipe in RECIPES.items()
        for path, text in files_of(recipe.facts(), name, data_licence=recipe.data_licence).items()
        if path.startswith(SHIPPED_FILES)
    }


if __name__ == "__main__":
    for path, text in files().items():
        write_text(FOLDER / path, text)
        print(path)
