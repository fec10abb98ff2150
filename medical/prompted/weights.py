"""Weights of prompted segmentation: all of SAM, perhaps with another image encoder in it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from crossband.medical.config import TrainConfig
from crossband.medical.lvm_med import official
from crossband.shared.checkpoints import load_state, read_state_dict
from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.promptable import SAM

SIZES: dict[str, dict[str, Any]] = {
    "sam_vit_b_prompted": {},
    "sam_vit_l_prompted": {
        "embed_dim": 1024,
        "depth": 24,
        "num_heads": 16,
        "global_attn_indexes": [5, 11, 17, 23],
    },
    "sam_vit_h_prompted": {
        "embed_dim": 1280,
        "depth": 32,
        "num_heads": 16,
        "global_attn_indexes": [7, 15, 23, 31],
    },
}
_PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")


def describe(config: TrainConfig, classes: int) -> dict[str, Any]:
    """Return what a checkpoint stores of the network: name and arguments.

    Args:
        config: Options.
        classes: Of the masks; every box gets one mask, however many there are.

    Raises:
        ConfigError: a model that takes no prompts.
    """
    if config.model not in SIZES:
        raise ConfigError(f"--model {config.model} takes no boxes: give {', '.join(SIZES)}.")
    arguments = {"img_size": config.size, **SIZES[config.model], **config.network.arguments}
    return {"name": "lvm_med_sam_vit_base", "arguments": arguments}


def required(config: TrainConfig) -> str:
    """Return the file of weights.

    Raises:
        ConfigError: none is given: the encoders are not trained here, so random ones stay random.
    """
    if not config.weights:
        raise ConfigError(
            f"--model {config.model} trains the mask decoder alone, and without --weights its "
            "encoders are random: give --weights sam_vit_b_01ec64.pth."
        )
    return config.weights


def load(model: SAM, config: TrainConfig) -> str:
    """Load `--weights`, put `--network.encoder` in; return a line that says what was loaded.

    Raises:
        ConfigError: no weights.
        CheckpointError: a file that cannot be read, or that does not fit.
    """
    path = required(config)
    state = model.adapt_state(_whole(path))
    line = f"{len(state)} tensors of {path}"
    if config.network.encoder:
        encoder = read_state_dict(config.network.encoder)[0]
        try:
            taken = model.image_encoder.adapt_state(official.from_official(encoder))
            state = official.swap_encoder(state, taken)
        except CheckpointError as error:
            raise CheckpointError(f"--network.encoder {config.network.encoder}: {error}") from error
        line += f", the image encoder of {config.network.encoder}"
    load_state(model, state, path)
    return line


def freeze(model: nn.Module) -> None:
    """Leave the mask decoder to be trained, without what a single mask has no use for.

    The heads of the three other masks and of the masks' quality get no gradient.
    """
    model.requires_grad_(False)
    decoder = model.mask_decoder
    decoder.requires_grad_(True)
    decoder.iou_prediction_head.requires_grad_(False)
    decoder.output_hypernetworks_mlps[1:].requires_grad_(False)


def _whole(path: str) -> dict[str, Tensor]:
    """Read all of SAM: the authors' file, or our checkpoint, whose keys are the same.

    Raises:
        CheckpointError: a part is not there.
    """
    tensors, _ = read_state_dict(path)
    state = {key: value for key, value in tensors.items() if key.startswith(_PARTS)}
    missing = [part for part in _PARTS if not any(key.startswith(part) for key in state)]
    if missing:
        raise CheckpointError(
            f"{path} is not all of SAM (no {', '.join(missing)}*): give sam_vit_b_01ec64.pth by "
            "--weights; a file of an image encoder goes to --network.encoder."
        )
    return state
