"""How a bundle reads its files: by MONAI's transforms, unless a domain has its own.

A network gives in a bundle what it gives in the library only if files are read and prepared alike,
so a domain whose reading MONAI cannot express brings transforms of its own, in a module
`crossband.<domain>.bundles.transforms` (`crossband.shared.bundles.safety` lets them be built).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Node = dict[str, Any]

# Files of one grey, two (grey and alpha), three or four channels, to what the network takes.
_TO_ONE = "$lambda x: x[:1] if len(x) < 3 else x[:3].mean(0, keepdim=True)"
_TO_THREE = "$lambda x: x[:3] if len(x) >= 3 else x[:1].repeat(3, 1, 1)"
_FIRST = "$lambda x: x[:1]"


@dataclass(frozen=True)
class Reading:
    """The parts of a bundle's configurations that read files, in MONAI's language.

    Attributes:
        image: Transforms from `image`, a path, to what the network takes.
        training: From `image`, in segmentation also `label`, to randomly changed ones.
        validation: The same without chance.
        listing: What gives the list of `{"image": path}` of `dataset_dir`.
        restore: Segmentation: transforms of `pred` back to the size of the file.
        restores_logits: Whether `restore` takes logits rather than probabilities.
        before_saving: Segmentation: transforms of the classes before they are written.
        inferer: What runs the network on what `image` gives; training always takes it whole.
        output_ext: Segmentation: of the files that are written.
        settings: Ids that the transforms refer to.
        grey: Whether the channels are copies of one grey value.
    """

    image: list[Node]
    training: list[Node]
    validation: list[Node]
    listing: Any
    restore: list[Node] = field(default_factory=list)
    restores_logits: bool = False
    before_saving: list[Node] = field(default_factory=list)
    inferer: Node = field(default_factory=lambda: {"_target_": "SimpleInferer"})
    output_ext: str = ".png"
    settings: dict[str, Any] = field(default_factory=dict)
    grey: bool = False


def monai_reading(facts: dict[str, Any]) -> Reading:
    """Return reading by MONAI: resized to the network's size, scaled, normalised."""
    keys = ["image", "label"] if facts["task"] == "segmentation" else ["image"]
    first = {"_target_": "Lambdad", "keys": "label", "func": _FIRST, "track_meta": True}
    label = [first] if "label" in keys else []
    flip = {"_target_": "RandFlipd", "keys": keys, "prob": 0.5, "spatial_axis": 1}
    inverse = {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "image",
        "nearest_interp": False,
        "to_tensor": True,
    }
    return Reading(
        image=_steps(facts, ["image"]),
        training=[*_steps(facts, keys), flip, *label],
        validation=[*_steps(facts, keys), *label],
        listing="$[{'image': name} for name in sorted(glob.glob(@dataset_dir + '/*.*'))]",
        restore=[inverse],
    )


def _steps(facts: dict[str, Any], keys: list[str]) -> list[Node]:
    low, high = facts["value_range"]
    steps: list[Node] = [
        {"_target_": "LoadImaged", "keys": keys, "ensure_channel_first": True},
        # MONAI reads images as (C, W, H).
        {"_target_": "Transposed", "keys": keys, "indices": [0, 2, 1]},
    ]
    if facts["channels"] in (1, 3):
        to = _TO_ONE if facts["channels"] == 1 else _TO_THREE
        steps.append({"_target_": "Lambdad", "keys": "image", "func": to, "track_meta": True})
    modes = [{"image": "bilinear", "label": "nearest"}[key] for key in keys]
    return [
        *steps,
        {"_target_": "Resized", "keys": keys, "spatial_size": facts["size"], "mode": modes},
        {
            "_target_": "ScaleIntensityRanged",
            "keys": "image",
            "a_min": low,
            "a_max": high,
            "b_min": 0.0,
            "b_max": 1.0,
        },
        {
            "_target_": "NormalizeIntensityd",
            "keys": "image",
            "subtrahend": facts["mean"],
            "divisor": facts["std"],
            "channel_wise": True,
        },
    ]
