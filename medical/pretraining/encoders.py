"""The backbone of pre-training on views, in and out of files.

`best.safetensors` of such a run holds all of it, the backbone under `backbone.*`;
`encoder.safetensors` holds the backbone alone, under the keys of the whole network (timm's,
torchvision's or SAM's), but that timm joins some names by `_` where it gives feature maps.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from crossband.medical.lvm_med.official import from_official
from crossband.medical.pretraining.config import MASKED_METHODS
from crossband.shared.backbones.sam import SAMEncoder
from crossband.shared.backbones.vit_keys import LoadReport
from crossband.shared.checkpoints import HEADER_KEY, read_config, read_state_dict
from crossband.shared.errors import CheckpointError
from crossband.shared.pretraining.cnn_mae import HEAD

ENCODER_FILE = "encoder.safetensors"
_INSIDE = "backbone."
# What a network has after its last map.
_AFTER = re.compile(r"^(norm|fc_norm)\.")
_SAM = "patch_embed.proj.weight"
_RESNET50 = {"conv1.weight", "layer1.0.conv3.weight", "layer4.2.conv3.weight"}


def plain_keys(backbone: nn.Module) -> dict[str, Tensor]:
    """Return a backbone's weights without what timm's are wrapped in."""
    return {_unwrapped(key): value for key, value in backbone.state_dict().items()}


def read_ours(path: str | Path) -> dict[str, Tensor] | None:
    """Return the backbone of a file of `pretrain`; None: of a file of anything else.

    Raises:
        CheckpointError: unreadable.
    """
    state, header = read_state_dict(path)
    if HEADER_KEY not in header:
        return None
    config = read_config(path)
    if config.get("task") != "pre-training" or config.get("method") in MASKED_METHODS:
        return None
    inside = {k.removeprefix(_INSIDE): v for k, v in state.items() if k.startswith(_INSIDE)}
    return {_unwrapped(key): value for key, value in (inside or state).items()}


def read_authors(model: nn.Module, path: str | Path) -> dict[str, Tensor] | None:
    """Return the encoder of LVM-Med's authors (or SAM's) for such a network; None: anything else.

    Files with the network's own keys are left to others, who take the classifier too.

    Raises:
        CheckpointError: unreadable, or the other encoder.
    """
    state, header = read_state_dict(path)
    if isinstance(model, SAMEncoder):
        with suppress(CheckpointError):  # of something else than either encoder
            encoder = from_official(state)
            if _SAM in encoder:
                return model.adapt_state(encoder)
        raise CheckpointError(
            f"{path} holds no image encoder of SAM: give lvmmed_vit.pth, sam_vit_b_01ec64.pth, "
            "or encoder.safetensors of `pretrain --model sam_vit_b`."
        )
    own = model.state_dict().keys()
    if HEADER_KEY in header or not own >= _RESNET50:
        return None
    if state.keys() >= {key for key in own if not HEAD.match(key)}:
        return None
    try:
        encoder = from_official(state)
    except CheckpointError:  # said better by those who read other files
        return None
    if "conv1.weight" not in encoder:
        raise CheckpointError(
            f"{path} holds SAM's image encoder and {type(model).__name__} is a ResNet-50: give "
            "lvmmed_resnet.torch."
        )
    return encoder


def load_inner(model: nn.Module, path: str | Path, inner: str) -> LoadReport:
    """Load a backbone from a classifier's file (timm's, torchvision's), or from that of a U-Net.

    Args:
        model: The backbone.
        path: The file.
        inner: Name of the backbone within such U-Nets.

    Raises:
        CheckpointError: unreadable, or of another network.
    """
    state, own = read_state_dict(path)[0], model.state_dict().keys()
    prefix = f"{inner}."
    within = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    kept = {k: v for k, v in (within or state).items() if k in own or not HEAD.match(k)}
    return load_encoder(model, kept, path)


def load_encoder(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> LoadReport:
    """Load a backbone into a network of the same kind; its head is left as it is.

    Args:
        model: Classifier of timm, torchvision or MONAI, or a backbone.
        state: Of the backbone.
        path: Where it comes from.

    Raises:
        CheckpointError: of another network.
    """
    own = model.state_dict()
    names = {_joined(key): key for key in own}
    found: dict[str, Any] = {names.get(_joined(key), key): value for key, value in state.items()}
    wrong = [k for k, v in found.items() if k not in own or own[k].shape != v.shape]
    missing = tuple(sorted(own.keys() - found.keys()))
    wrong += [key for key in missing if not HEAD.match(key) and not _AFTER.match(key)]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit {type(model).__name__}: {len(wrong)} tensors are missing, left "
            f"over or of another shape (first: {wrong[0]}). Choose the network that was "
            "pre-trained."
        )
    model.load_state_dict(found, strict=False)
    return LoadReport(str(path), "backbone", tuple(sorted(found)), missing, (), ())


def _unwrapped(key: str) -> str:
    return re.sub(r"^net\.(model\.)?", "", key)


def _joined(key: str) -> str:
    """Return one spelling for timm's two, and for MONAI's of a dense layer."""
    return re.sub(r"(denselayer\d+)_layers_", r"\1_", _unwrapped(key).replace(".", "_"))
