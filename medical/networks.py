"""From the options of `train` to a network, and from a checkpoint back to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from crossband.shared.heads.pooled import PooledClassifier
from crossband.shared.heads.unet import BackboneUNet
from crossband.shared.heads.vit_segmentor import ViTSegmentor
from crossband.shared.heads.vit_unet import MapUNet, ViTUNet
from crossband.shared.registry import catalog, create_model
from crossband.shared.tuning.freeze import freeze, linear_probe
from crossband.shared.tuning.lora import apply_lora, load_tuned

CLASSIFICATION = "medical classification"
SEGMENTATION = "medical segmentation"
PROMPTED = "medical prompted segmentation"
DETECTION = "medical detection"
STATISTICS = "statistics"
TASKS = {"classification": CLASSIFICATION, "segmentation": SEGMENTATION}

VITS = tuple(f"chest_mae_vit_{size}" for size in SIZES)
# Names that people know, and where the networks come from.
SHORT = {
    "densenet121": "monai:DenseNet121",
    "resnet50": "timm:resnet50",
    "convnext_tiny": "timm:convnext_tiny",
    "unet": "monai:UNet",
    "sam_vit_b": "lvm_med_vit_base_classifier",
}
# The same of U-Nets.
_U_NETS = {"resnet50": "lvm_med_resnet50_unet", "sam_vit_b": "lvm_med_vit_base_unet"}
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
    masks = config.task == "segmentation"
    name, arguments = (_segmenting if masks else _classifying)(config, classes)
    if masks and config.tuning not in ("full", "linear"):
        raise ConfigError(f"--tuning {config.tuning} is for --task classification.")
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
    if config.network.head:
        if masks or min(config.network.head) < 1:
            raise ConfigError("--network.head: widths of at least 1, for --task classification.")
        found["head"] = list(config.network.head)
    if config.tuning != "full":
        found["tuning"] = {"kind": config.tuning}
        if config.tuning == "lora":
            found["tuning"] |= {"rank": config.tuner.rank}
        elif config.tuning == "dvpt":
            names = ("rank", "prompts", "share", "cross_attention")
            found["tuning"] |= {name: getattr(config.tuner, name) for name in names}
    return found


def _segmenting(config: TrainConfig, classes: int) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of a network for masks.

    Raises:
        ConfigError: it gives none.
    """
    name = _U_NETS.get(config.model, SHORT.get(config.model, config.model))
    if name in VITS:
        name = f"{name}_{config.network.decoder}"
    if name.startswith("chest_mae_vit"):
        arguments: dict[str, Any] = {
            "num_classes": classes,
            "img_size": config.size,
            "drop_path_rate": config.network.drop_path,
        }
        if name.endswith("_upernet"):
            arguments["channels"] = config.network.channels
            arguments["detail"] = config.network.detail
        return name, arguments
    if config.network.decoder != "unet":
        raise ConfigError(
            f"--network.decoder {config.network.decoder} is for chest_mae_vit_*: leave it out with "
            f"--model {config.model}."
        )
    if name == "monai:UNet" or config.model.startswith("monai:"):
        flat = {"spatial_dims": 2, "in_channels": 3}
        return name, (_UNET if name == "monai:UNet" else flat) | {"out_channels": classes}
    if name.startswith("lvm_med_") and name.endswith("_unet"):
        return name, {"num_classes": classes}
    if name.startswith("timm:") or getattr(catalog().get(name), "backbone", None):
        # What follows is of the backbone.
        return "backbone_unet", {"backbone": name, "num_classes": classes}
    raise ConfigError(
        f"--model {config.model} gives no masks: take {VITS[1]}, resnet50, sam_vit_b, unet, "
        "timm:NAME (of a CNN) or monai:NAME."
    )


def _classifying(config: TrainConfig, classes: int) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of a network for findings.

    Raises:
        ConfigError: it gives masks.
    """
    name = SHORT.get(config.model, config.model)
    if name in VITS:
        return name, {
            "num_classes": classes,
            "img_size": config.size,
            "global_pool": config.network.pool,
            "drop_path_rate": config.network.drop_path,
        }
    if name == "monai:UNet" or name.endswith(("_unet", "_upernet", "_prompted")):
        raise ConfigError(
            f"--model {config.model} gives masks: take --task segmentation, or another model."
        )
    if name.startswith("monai:"):
        return name, {"spatial_dims": 2, "in_channels": 3, "out_channels": classes}
    return name, {"num_classes": classes}


def build(description: Mapping[str, Any]) -> nn.Module:
    """Build the network that `describe` names, not yet tuned."""
    model = create_model(description["name"], **description["arguments"])
    if description.get("head"):
        _deepen(model, description["head"])
    return model


def _deepen(model: nn.Module, widths: Sequence[int]) -> None:
    """Put an MLP with ReLUs (LVM-Med's "fcns") in the place of the layer that classifies."""
    name = head_of(model)
    last = model.get_submodule(name)
    assert isinstance(last, nn.Linear)
    sizes = [last.in_features, *widths]
    layers: list[nn.Module] = []
    for before, after in zip(sizes, widths, strict=False):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    parent, _, own = name.rpartition(".")
    head = MLPHead(*layers, nn.Linear(sizes[-1], last.out_features))
    setattr(model.get_submodule(parent), own, head)


class MLPHead(nn.Sequential):
    """Linear layers and ReLUs in the place of one layer that classifies."""


def tune(model: nn.Module, description: Mapping[str, Any]) -> None:
    """Freeze and add what the tuning of a description says."""
    tuning = dict(description.get("tuning") or {})
    kind = tuning.pop("kind", "full")
    if kind == "linear":
        if isinstance(model, ViTSegmentor | MapUNet):
            model.vit.requires_grad_(False)
        elif isinstance(model, BackboneUNet):
            freeze(model.encoder)
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
    found = [name for name in _HEADS if isinstance(modules.get(name), nn.Linear | MLPHead)]
    if not found:
        raise ConfigError(
            f"The layer of {type(model).__name__} that classifies is not known, so it cannot be "
            "tuned alone: take --tuning full."
        )
    return found[0]


def load_weights(model: nn.Module, config: TrainConfig) -> str:
    """Load `--weights`; see `load_pretrained`."""
    return load_pretrained(model, str(config.weights))


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
    inner = _backbone_of(model)
    encoder = encoders.read_ours(path)
    encoder = encoders.read_authors(inner, path) if encoder is None else encoder
    if encoder is not None:
        return str(encoders.load_encoder(inner, encoder, path)) + "; the head starts anew"
    if inner is not model:
        found = encoders.load_inner(inner, path, model.inner)  # type: ignore[arg-type]
        return f"{found}; all but the encoder starts anew"
    return str(official.load_pretrained(model, path))


def _backbone_of(model: nn.Module) -> nn.Module:
    """Return the part of a network that pre-trained weights are for."""
    if isinstance(model, MapUNet | BackboneUNet | PooledClassifier):
        return getattr(model, model.inner)
    return model


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
