"""From the options of `train` to a network, and from a checkpoint back to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossband.medical.catalog import SIZES
from crossband.medical.config import TrainConfig
from crossband.shared.backbones.vit_keys import load_vit
from crossband.shared.checkpoints import Checkpoint, load_checkpoint, load_state
from crossband.shared.devices import AUTOCAST, select_device
from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.export import is_exported, load_exported
from crossband.shared.files import file_digest
from crossband.shared.heads.vit_segmentor import ViTSegmentor
from crossband.shared.heads.vit_unet import ViTUNet
from crossband.shared.registry import create_model
from crossband.shared.tuning.freeze import linear_probe
from crossband.shared.tuning.lora import apply_lora, load_tuned

CLASSIFICATION = "medical classification"
SEGMENTATION = "medical segmentation"
STATISTICS = "statistics"
TASKS = {"classification": CLASSIFICATION, "segmentation": SEGMENTATION}

VITS = tuple(f"chest_mae_vit_{size}" for size in SIZES)
# Names that people know, and where the networks come from.
SHORT = {
    "densenet121": "monai:DenseNet121",
    "resnet50": "timm:resnet50",
    "convnext_tiny": "timm:convnext_tiny",
    "unet": "monai:UNet",
}
_UNET = {
    "spatial_dims": 2,
    "in_channels": 3,
    "channels": [16, 32, 64, 128, 256],
    "strides": [2, 2, 2, 2],
    "num_res_units": 2,
}
# What classifies, in networks of other libraries.
_HEADS = ("head", "class_layers.out", "fc", "classifier", "head.fc")


def describe(config: TrainConfig, classes: int) -> dict[str, Any]:
    """Return what a checkpoint stores of a network: name, arguments, and how it is tuned.

    Raises:
        ConfigError: a network that cannot do the task, or a tuning that it does not take.
    """
    name = SHORT.get(config.model, config.model)
    arguments: dict[str, Any] = {}
    if config.task == "segmentation":
        if name in VITS:
            name = f"{name}_{config.network.decoder}"
        if name.startswith("chest_mae_vit"):
            arguments = {
                "num_classes": classes,
                "img_size": config.size,
                "drop_path_rate": config.network.drop_path,
            }
            if name.endswith("_upernet"):
                arguments["channels"] = config.network.channels
                arguments["detail"] = config.network.detail
        elif name == "monai:UNet" or config.model.startswith("monai:"):
            flat = {"spatial_dims": 2, "in_channels": 3}
            arguments = (_UNET if name == "monai:UNet" else flat) | {"out_channels": classes}
        else:
            raise ConfigError(
                f"--model {config.model} gives no masks: take {VITS[1]}, unet or monai:NAME."
            )
        if config.tuning not in ("full", "linear"):
            raise ConfigError(f"--tuning {config.tuning} is for --task classification.")
    elif name in VITS:
        arguments = {
            "num_classes": classes,
            "img_size": config.size,
            "global_pool": config.network.pool,
            "drop_path_rate": config.network.drop_path,
        }
    elif name == "monai:UNet" or name.endswith(("_unet", "_upernet")):
        raise ConfigError(
            f"--model {config.model} gives masks: take --task segmentation, or another model."
        )
    elif name.startswith("monai:"):
        arguments = {"spatial_dims": 2, "in_channels": 3, "out_channels": classes}
    else:
        arguments = {"num_classes": classes}
    if not name.startswith("chest_mae") and config.optimizer.layer_decay != 1:
        raise ConfigError(
            f"--optimizer.layer_decay {config.optimizer.layer_decay:g} is for plain ViTs: give "
            f"--optimizer.layer_decay 1 (or a recipe for CNNs) with {config.model}."
        )
    if config.tuning in ("lora", "dvpt") and config.optimizer.layer_decay != 1:
        raise ConfigError(
            f"--optimizer.layer_decay {config.optimizer.layer_decay:g} would all but stop what "
            f"--tuning {config.tuning} adds to the early blocks: give --optimizer.layer_decay 1."
        )
    found: dict[str, Any] = {"name": name, "arguments": arguments | config.network.arguments}
    if config.tuning != "full":
        found["tuning"] = {"kind": config.tuning}
        if config.tuning == "lora":
            found["tuning"] |= {"rank": config.tuner.rank}
        elif config.tuning == "dvpt":
            names = ("rank", "prompts", "share", "cross_attention")
            found["tuning"] |= {name: getattr(config.tuner, name) for name in names}
    return found


def build(description: Mapping[str, Any]) -> nn.Module:
    """Build the network that `describe` names, not yet tuned."""
    return create_model(description["name"], **description["arguments"])


def tune(model: nn.Module, description: Mapping[str, Any]) -> None:
    """Freeze and add what the tuning of a description says."""
    tuning = dict(description.get("tuning") or {})
    kind = tuning.pop("kind", "full")
    if kind == "linear":
        if isinstance(model, ViTSegmentor | ViTUNet):
            model.vit.requires_grad_(False)
        else:
            linear_probe(model, head_of(model))
    elif kind == "lora":
        apply_lora(model, also_train=(f"{head_of(model)}.*", "fc_norm.*"), **tuning)
    elif kind == "dvpt":
        from crossband.shared.tuning.dvpt.apply import apply_dvpt

        apply_dvpt(model, also_train=(f"{head_of(model)}.*", "fc_norm.*"), **tuning)


def head_of(model: nn.Module) -> str:
    """Return the name of the layer that classifies.

    Raises:
        ConfigError: none is known.
    """
    modules = dict(model.named_modules())
    found = [name for name in _HEADS if isinstance(modules.get(name), nn.Linear)]
    if not found:
        raise ConfigError(
            f"The layer of {type(model).__name__} that classifies is not known, so it cannot be "
            "tuned alone: take --tuning full."
        )
    return found[0]


def load_pretrained(model: nn.Module, path: str) -> str:
    """Load pre-trained weights; return a line that says what was loaded.

    Of `pretrain` on views, and of LVM-Med's authors, the backbone is taken.

    Raises:
        CheckpointError: unreadable, or of another network.
    """
    from crossband.medical.chest_mae import official
    from crossband.medical.pretraining import encoders

    if isinstance(model, ViTSegmentor | ViTUNet):
        return str(load_vit(model.vit, path))
    encoder = encoders.read_ours(path)
    encoder = encoders.read_authors(model, path) if encoder is None else encoder
    if encoder is not None:
        return str(encoders.load_encoder(model, encoder, path)) + "; the head starts anew"
    return str(official.load_pretrained(model, path))


def load_trained(path: str | Path, *tasks: str) -> tuple[nn.Module, Checkpoint]:
    """Load a checkpoint of `train` with its network, in evaluation.

    Raises:
        CheckpointError: missing, foreign or of another task.
    """
    checkpoint = load_checkpoint(path)
    require_task(checkpoint.config, path, *tasks)
    model, base = build(checkpoint.config["model"]), checkpoint.config.get("base")
    if base:  # the file holds what was tuned, and nothing else
        load_pretrained(model, str(_base_file(path, base)))
    tune(model, checkpoint.config["model"])
    if base:
        load_tuned(model, checkpoint.state_dict, str(path))
    else:
        load_state(model, checkpoint.state_dict, path)
    return model.eval().requires_grad_(False), checkpoint


def _base_file(path: str | Path, base: Mapping[str, str]) -> Path:
    """Return the file that a tuned part was trained on: where it lay, or beside the part.

    Raises:
        CheckpointError: it is not there, or it has changed.
    """
    places = (Path(base["path"]), Path(path).parent / Path(base["path"]).name)
    there = [place for place in places if place.is_file()]
    for place in there:
        if file_digest(place) == base["sha256"]:
            return place
    what = "has changed since" if there else "is not there"
    raise CheckpointError(
        f"{path} was tuned on {base['path']}, which {what}: bring the file back, put it beside the "
        "tuned part, or take best.safetensors, which holds everything."
    )


def require_task(config: Mapping[str, Any], path: str | Path, *tasks: str) -> str:
    """Return the task of a checkpoint.

    Raises:
        CheckpointError: not one of `tasks`.
    """
    found = config.get("task")
    if found not in tasks:
        raise CheckpointError(
            f"{path} is of the task '{found}', not of {' or '.join(tasks)}: give best.safetensors "
            "of `crossband medical train`."
        )
    return str(found)


@dataclass(frozen=True)
class Opened:
    """A network to use.

    Attributes:
        network: Maps (B, 3, S, S) to logits.
        config: Of its checkpoint.
        device: Where it computes.
        number: Type of mixed precision, or None.
        module: The network with its layers; None of an exported one.
    """

    network: Callable[[Tensor], Tensor]
    config: dict[str, Any]
    device: torch.device
    number: torch.dtype | None = None
    module: nn.Module | None = None

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Return logits of normalised images (B, 3, S, S), float32 on the CPU."""
        image = image.to(self.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.number, enabled=self.number is not None):
            return self.network(image).float().cpu()


def open_network(path: str | Path, *, device: str = "auto", precision: str = "32") -> Opened:
    """Load a checkpoint of `train`, or what `export` made of one.

    Raises:
        CheckpointError: missing, foreign, damaged, or of another task.
        ConfigError: a device or a precision that an exported network has not.
    """
    if is_exported(path):
        run, config = load_exported(path)
        require_task(config, path, CLASSIFICATION, SEGMENTATION)
        if precision != "32" or device not in ("auto", "cpu"):
            raise ConfigError(
                f"{path} is exported and runs on the CPU in 32 bits: leave out --device and "
                "--precision, or give the checkpoint itself."
            )
        return Opened(run, config, torch.device("cpu"))
    model, checkpoint = load_trained(path, CLASSIFICATION, SEGMENTATION)
    place = select_device(device)
    model = model.to(place, memory_format=torch.channels_last)
    return Opened(model, checkpoint.config, place, AUTOCAST.get(precision), model)
