"""Files of LVM-Med's authors: `lvmmed_resnet.torch` and `lvmmed_vit.pth`.

| file | keys | ours |
|---|---|---|
| `lvmmed_resnet.torch` | torchvision's ResNet-50, perhaps with `fc.*` | `lvm_med_resnet50` |
| the same on a model hub | `embedder.*`, `encoder.stages.*` | `lvm_med_resnet50` |
| `lvmmed_vit.pth` | SAM's image encoder, no prefix and no `pos_embed` | `lvm_med_vit_base` |
| `sam_vit_b_01ec64.pth` | `image_encoder.*`, `prompt_encoder.*`, ... | `lvm_med_vit_base` |
| our checkpoint of `pretrain` | `backbone.*`, `objective.*` | either |

torchvision, timm and the encoders of segmentation_models_pytorch (`model.encoder`) take ResNet-50
under the same keys. A classifier `fc` is never taken: it belongs to no medical task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from crossband.shared.backbones import sam
from crossband.shared.checkpoints import read_state_dict
from crossband.shared.errors import CheckpointError

_WRAPPERS = ("module.", "model.", "resnet.", "backbone.")
_SAM = "image_encoder."
# The hub's names of the parts of a ResNet, and torchvision's.
_HUB = (
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    (r"^classifier\.1\.", "fc."),
)
_HUB_BLOCK = re.compile(r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.(shortcut|layer\.\d+)\.(\w+)\.")


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder's tensors under our keys, of any file in the table above.

    Counters of batches that old files lack are set to 0: nothing computes with them.

    Raises:
        CheckpointError: a file of something else.
    """
    state = _unwrapped(state)
    if _is_vit(state):
        return {key: value for key, value in state.items() if key != "pos_embed"}
    if "conv1.weight" not in state:
        raise CheckpointError(
            "The file holds neither a ResNet-50 nor SAM's image encoder: give lvmmed_resnet.torch, "
            "lvmmed_vit.pth, or a file of the same layout."
        )
    kept = {key: value for key, value in state.items() if not key.startswith("fc.")}
    for key in list(kept):
        if key.endswith(".running_mean"):
            kept.setdefault(key.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return kept


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder's tensors as the authors' files hold them: their keys are ours."""
    return from_official(state)


def left_out(state: Mapping[str, Tensor]) -> list[str]:
    """Return the keys of a file that `from_official` does not take."""
    inside = next((p for p in (_SAM, "backbone.") if any(key.startswith(p) for key in state)), "")
    return [
        key
        for key in state
        if not key.startswith(inside) or re.search(r"(^|\.)(fc|classifier\.1)\.|pos_embed$", key)
    ]


def swap_encoder(whole: Mapping[str, Tensor], encoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of all of SAM with LVM-Med's image encoder in it.

    The table of positions that LVM-Med has not is set to 0, which computes the same, so SAM's own
    `sam_model_registry` loads the result.

    Args:
        whole: Of `sam_vit_b_01ec64.pth`.
        encoder: Of `lvmmed_vit.pth`.

    Raises:
        CheckpointError: files that do not fit each other.
    """
    own = {key.removeprefix(_SAM): v for key, v in whole.items() if key.startswith(_SAM)}
    taken = from_official(encoder)
    if "pos_embed" in own:
        taken["pos_embed"] = torch.zeros_like(own["pos_embed"])
    wrong = sorted(
        {key for key in own if key not in taken or own[key].shape != taken[key].shape}
        | (taken.keys() - own.keys())
    )
    if wrong or not own:
        raise CheckpointError(
            f"The encoder does not fit SAM's (first: {wrong[0] if wrong else 'no image_encoder.'}):"
            " give sam_vit_b_01ec64.pth whole, and lvmmed_vit.pth."
        )
    return {**whole, **{f"{_SAM}{key}": value for key, value in taken.items()}}


def read_encoder(path: str | Path) -> tuple[str, dict[str, Tensor]]:
    """Read an encoder: the authors' file, or our checkpoint of `pretrain` or `models convert`.

    Returns:
        `resnet50` or `vit`, and its tensors under our keys.

    Raises:
        CheckpointError: unreadable, unsafe, or of something else.
    """
    tensors, _ = read_state_dict(path)
    try:
        state = from_official(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return ("vit" if _is_vit(state) else "resnet50"), state


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the encoder out of what is around it, and the hub's names for torchvision's."""
    found = sam.from_official(dict(state))
    for prefix in _WRAPPERS:
        own = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
        found = own or found
    if not any(key.startswith("embedder.") for key in found):
        inside = {k.removeprefix("encoder."): v for k, v in found.items() if k[:8] == "encoder."}
        return inside if "conv1.weight" in inside else found
    return {_of_hub(key): value for key, value in found.items()}


def _of_hub(key: str) -> str:
    for theirs, ours in _HUB:
        key = re.sub(theirs, ours, key)

    def renamed(match: re.Match[str]) -> str:
        stage, block, part, kind = match.groups()
        start = f"layer{int(stage) + 1}.{block}."
        if part == "shortcut":
            return f"{start}downsample.{0 if kind == 'convolution' else 1}."
        letter = "conv" if kind == "convolution" else "bn"
        return f"{start}{letter}{int(part.rpartition('.')[2]) + 1}."

    return _HUB_BLOCK.sub(renamed, key)


def _is_vit(state: Mapping[str, Tensor]) -> bool:
    return "patch_embed.proj.weight" in state and "neck.0.weight" in state
