"""From the options of `train` to a network, and from a checkpoint back to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from crossband.infrared.catalog import RIVALS, SIZES
from crossband.infrared.config import NetworkConfig
from crossband.shared.backbones.vit_keys import LoadReport, load_vit
from crossband.shared.checkpoints import (
    HEADER_KEY,
    Checkpoint,
    load_checkpoint,
    load_state,
    read_state_dict,
)
from crossband.shared.errors import CheckpointError, ConfigError, did_you_mean
from crossband.shared.registry import create_model

TASK = "infrared segmentation"
UNIP = tuple(f"unip_{size}" for size in SIZES)
NAMES = (*UNIP, *(entry.name for entry in RIVALS))


def describe(model: str, config: NetworkConfig, num_classes: int) -> dict[str, Any]:
    """Return the name and the arguments of a network, as a checkpoint stores them.

    Raises:
        ConfigError: an unknown model, or blocks that it does not have.
    """
    if model not in NAMES:
        hint = did_you_mean(model, NAMES) or f" There are: {', '.join(NAMES)}."
        raise ConfigError(f"--model {model!r} is no segmentation network.{hint}")
    if model not in UNIP:
        if config.tuning != "full" or config.blocks:
            given = "blocks" if config.blocks else f"tuning {config.tuning}"
            raise ConfigError(
                f"--network.{given}: {model} has no plain ViT to take blocks of and is trained as "
                "a whole; leave it out, or choose another recipe."
            )
        arguments: dict[str, Any] = {"num_classes": num_classes}
        if model in ("unet", "upernet"):
            arguments["encoder"] = config.encoder
        return {"name": model, "arguments": arguments}
    depth = SIZES[model.removeprefix("unip_")]["depth"]
    for block in config.blocks:
        if not 1 <= block <= depth:
            raise ConfigError(f"--network.blocks {block}: {model} has blocks 1 to {depth}.")
    arguments = {"num_classes": num_classes, "img_size": config.img_size}
    if config.blocks:
        arguments["out_indices"] = [block - 1 for block in config.blocks]
    if config.tuning != "full":
        if config.detail or config.last_heads:
            raise ConfigError(
                f"--network.tuning {config.tuning} probes the ViT as it is: leave out "
                "--network.detail and --network.last_heads."
            )
        if config.tuning == "layerwise" and len(config.blocks) != 1:
            raise ConfigError("--network.tuning layerwise probes one block: give --network.blocks.")
        return {"name": f"{model}_linear", "arguments": arguments}
    arguments |= {
        "auxiliary": config.auxiliary,
        "drop_path_rate": config.drop_path,
        "dropout": config.dropout,
    }
    optional = {
        "channels": config.channels,
        "last_heads": config.last_heads,
        "detail": config.detail,
    }
    arguments |= {name: value for name, value in optional.items() if value}
    return {"name": f"{model}_upernet", "arguments": arguments}


def build(description: Mapping[str, Any]) -> nn.Module:
    """Build the network that `describe` names."""
    return create_model(description["name"], **description["arguments"])


def load_pretrained(model: nn.Module, path: str) -> LoadReport | str:
    """Load a pre-trained ViT, or a whole network of the same kind whose classes may differ.

    Raises:
        CheckpointError: unreadable, or of another network.
        ConfigError: a network that takes no pre-trained ViT.
    """
    state, header = read_state_dict(path)
    whole = any(key.startswith("decode_head.") for key in state)
    if whole or state.keys() == model.state_dict().keys():
        return _load_whole(model, path)
    if not hasattr(model, "vit"):
        raise ConfigError(
            f"--weights {path}: {type(model).__name__} has no plain ViT to load them into; leave "
            "them out, or choose a UNIP model."
        )
    if header.get(HEADER_KEY) and not any(key.startswith("blocks.") for key in state):
        raise CheckpointError(f"{path} holds no ViT: give a file of `crossband infrared pretrain`.")
    return load_vit(model.vit, path)


def _load_whole(model: nn.Module, path: str) -> str:
    """Go on from a trained network; heads of another number of classes start anew."""
    from crossband.infrared.unip.official import from_official

    state = from_official(read_state_dict(path)[0])
    own = model.state_dict()
    unused = [key for key in state if key.startswith("auxiliary_head.") and key not in own]
    state = {key: value for key, value in state.items() if key not in unused}
    left = [
        key
        for key in state
        if "conv_seg" in key and key in own and state[key].shape != own[key].shape
    ]
    vit = getattr(model, "vit", None)
    prefix = next((f"{n}." for n, m in model.named_modules() if m is vit), "")
    if vit is not None:
        inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        state |= {prefix + key: value for key, value in vit.adapt_state(inner).items()}
    load_state(model, state | {key: own[key] for key in left}, path)
    again = f"; {', '.join(left)} start anew (other classes)" if left else ""
    again += "; the auxiliary head is left out" if unused else ""
    return f"{len(state) - len(left)} tensors loaded from {path}{again}"


def load_trained(path: str | Path) -> tuple[nn.Module, Checkpoint]:
    """Load a checkpoint of `train` with its network, in evaluation.

    Raises:
        CheckpointError: missing, foreign or of another task.
    """
    checkpoint = load_checkpoint(path)
    task = checkpoint.config.get("task")
    if task != TASK:
        raise CheckpointError(
            f"{path} is of the task '{task}', not a segmentation network: give best.safetensors of "
            "`crossband infrared train`."
        )
    model = build(checkpoint.config["model"])
    load_state(model, checkpoint.state_dict, path)
    return model.eval(), checkpoint
