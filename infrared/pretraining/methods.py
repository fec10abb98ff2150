"""What each `--method` of `pretrain` trains: network, teacher, loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from crossband.infrared.data.modalities import COLOUR
from crossband.infrared.pretraining.config import PretrainConfig
from crossband.infrared.pretraining.teachers import (
    distilled_layer,
    mae_teacher,
    nmi_table,
    unip_teacher,
)
from crossband.infrared.unip.analysis import pattern
from crossband.infrared.unip.distillation import HybridAttentionDistillation
from crossband.infrared.unip.model import UNIPViT
from crossband.infrared.unip.vit_files import model_arguments
from crossband.shared.backbones.vit_keys import load_vit
from crossband.shared.checkpoints import HEADER_KEY, read_config, read_state_dict
from crossband.shared.cli.domain import load_object
from crossband.shared.errors import ConfigError
from crossband.shared.pretraining.g2sd import G2SDStudent, G2SDTask
from crossband.shared.pretraining.mae import MAE, MAETask
from crossband.shared.pretraining.multimae import MultiMAE, MultiMAETask
from crossband.shared.pretraining.multimae_keys import load_encoder, to_vit
from crossband.shared.pretraining.self_distillation import SelfDistillationTask
from crossband.shared.registry import create_model, get_entry
from crossband.shared.tasks.base import Task

DEFAULT_MODELS = {
    "unip": "unip_small",
    "mae": "mae_vit_small_dec512d2b",
    "g2sd": "g2sd_vit_small_dec256d4b",
    "self-distill": "mae_vit_small_dec512d2b",
    "multimae": "multimae_vit_tiny",
}
# Part of all tokens that the encoder of MultiMAE sees: the authors' 98 of 3 x 196.
_VISIBLE = 1 / 6


@dataclass
class Plan:
    """What is trained.

    Attributes:
        task: Network and loss.
        name: Of the network in the catalog.
        arguments: All that it was built with.
        facts: To keep in the checkpoint and in metrics.json.
        lines: To print before training.
    """

    task: Task
    name: str
    arguments: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


def stages_of(config: PretrainConfig) -> list[str]:
    """Return the names of the stages that a method trains, one after the other.

    Raises:
        ConfigError: no round of self-distillation, or several devices for it.
    """
    if config.method != "self-distill":
        return [config.method]
    if config.rounds < 1:
        raise ConfigError(f"--rounds {config.rounds} must be at least 1.")
    if config.trainer.devices * config.trainer.num_nodes > 1:
        raise ConfigError("--method self-distill trains in stages, on one device: leave out more.")
    return ["further", *(f"round{number}" for number in range(1, config.rounds + 1))]


def build(
    config: PretrainConfig,
    images: Dataset[dict[str, Tensor]],
    stored: dict[str, Any],
    earlier: Path | None,
) -> Plan:
    """Build what a stage trains.

    Args:
        config: Options.
        images: Items of the data, to choose a teacher's layer on.
        stored: Facts of an earlier part of the run, which are not found out again.
        earlier: Checkpoint of the stage before; None in the first.

    Raises:
        ConfigError: options that do not fit together.
        CheckpointError: a teacher or weights that cannot be used.
    """
    if config.teacher and config.method not in ("unip", "g2sd"):
        raise ConfigError(f"--teacher is for --method unip and g2sd, not {config.method}.")
    torch.manual_seed(config.seed)
    if config.method == "unip":
        return _unip(config, images, stored)
    if config.method == "g2sd":
        return _g2sd(config)
    if config.method == "multimae":
        return _multimae(config)
    return _mae(config) if earlier is None else _self_distill(config, earlier)


def usable_encoders(
    plan: Plan, normalisation: dict[str, Any]
) -> dict[str, tuple[dict[str, Tensor], dict[str, Any]]]:
    """Return encoders that are written beside the checkpoint: name -> weights and facts.

    Of MultiMAE a plain ViT for each kind of image, with a fresh final norm; other methods' own
    checkpoints load into a ViT as they are.
    """
    model = plan.task.model
    if not isinstance(model, MultiMAE):
        return {}
    heads, (rows, columns) = model.encoder[0].attn.num_heads, model.grid
    arguments = {
        "embed_dim": model.embed_dim,
        "depth": len(model.encoder),
        "num_heads": heads,
        "last_heads": heads,
        "patch_size": model.patch_size,
        "img_size": [rows * model.patch_size, columns * model.patch_size],
    }
    fresh = {"norm.weight": torch.ones(model.embed_dim), "norm.bias": torch.zeros(model.embed_dim)}
    found = {}
    for name, kind in model.modalities.items():
        network = {"name": "unip_small", "arguments": {**arguments, "in_chans": kind.channels}}
        state = to_vit(model.state_dict(), name) | fresh
        facts = {"model": network, "modality": name, "normalisation": normalisation[name]}
        found[f"vit_{name}"] = (state, facts)
    return found


def _mae(config: PretrainConfig) -> Plan:
    if config.method == "self-distill" and not config.weights:
        raise ConfigError(
            "--method self-distill goes on from a network that is pre-trained already: give "
            "--weights FILE, of a whole MAE."
        )
    model, name, arguments = _create(config, MAE, weights=config.weights)
    return Plan(_task(MAETask, model, config), name, arguments, *_start(config))


def _self_distill(config: PretrainConfig, earlier: Path) -> Plan:
    """Begin again at the first weights, with what came of the stage before as the teacher."""
    student, name, arguments = _create(config, MAE, weights=config.weights)
    teacher = create_model(name, earlier, **arguments)
    more = {"teacher": teacher, "distillation_weight": config.distill_weight}
    task = _task(SelfDistillationTask, student, config, **more)
    facts, lines = _start(config)
    facts["teacher"] = {"source": str(earlier), "weight": config.distill_weight}
    return Plan(task, name, arguments, facts, [*lines, f"teacher: {earlier}"])


def _unip(config: PretrainConfig, images: Dataset, stored: dict[str, Any]) -> Plan:
    teacher = unip_teacher(config)
    facts = stored.get("teacher")
    if facts is None:
        facts = {"source": teacher.source, "arguments": teacher.arguments}
        facts |= distilled_layer(config, teacher.model, images)
    layer, depth = facts["layer"], len(teacher.model.blocks)
    heads = teacher.model.blocks[layer - 1].attn.num_heads
    given = {"last_heads": heads, "patch_size": teacher.model.patch_size}
    student, name, arguments = _create(config, UNIPViT, **given)
    more, lines = _start(config)
    if config.weights:
        lines = [f"start: {load_vit(student, config.weights)}"]
    task = _task(HybridAttentionDistillation, student, config, teacher=teacher.model, layer=layer)
    lines.append(f"teacher: {teacher.report}")
    if "nmi" in facts:
        lines.append(nmi_table(facts["nmi"], layer, facts["nmi_target"]))
        if (kind := pattern(facts["nmi"][layer - 1])) != "hybrid":
            lines.append(
                f"note: the nearest layer is {kind}, not hybrid; a teacher that is trained for "
                "longer, or of another kind, teaches more."
            )
    lines.append(f"distilled: layer {layer} of {depth}, {heads} heads")
    return Plan(task, name, arguments, {"teacher": facts, **more}, lines)


def _g2sd(config: PretrainConfig) -> Plan:
    if not config.teacher:
        raise ConfigError("--method g2sd needs a teacher: give --teacher FILE, of a whole MAE.")
    blocks = config.supervised_blocks
    teacher, arguments = mae_teacher(config.teacher, config.teacher_model, blocks)
    given = {
        "patch_size": teacher.patch_size,
        "mask_ratio": teacher.mask_ratio,
        "encoder_pred_channel": teacher.embed_dim,
        "decoder_pred_channel": teacher.mask_token.shape[-1],
    }
    student, name, own = _create(config, G2SDStudent, weights=config.weights, **given)
    task = _task(G2SDTask, student, config, teacher=teacher, encoder_weight=config.encoder_weight)
    more, lines = _start(config)
    facts = {"source": config.teacher, "arguments": arguments, "blocks": blocks}
    lines.append(f"teacher: {config.teacher}, its first {blocks} decoder blocks")
    return Plan(task, name, own, {"teacher": facts, **more}, lines)


def _multimae(config: PretrainConfig) -> Plan:
    kinds = {name: 3 if name == COLOUR else 1 for name in config.data.modalities}
    given = {"modalities": kinds, "outputs": list(kinds)}
    model, name, arguments = _create(config, MultiMAE, **given)
    tokens = len(kinds) * model.grid[0] * model.grid[1]
    model.visible_tokens = config.visible or round(_VISIBLE * tokens)
    if not 0 < model.visible_tokens < tokens:
        raise ConfigError(f"--visible {config.visible}: the images have {tokens} tokens.")
    arguments["visible_tokens"] = model.visible_tokens
    facts, lines = _start(config)
    if config.weights:
        fresh = load_encoder(model, config.weights)
        lines = [f"start: {config.weights}, {len(fresh)} tensors of which are new"]
    grey = [kind for kind in kinds if kind != COLOUR]
    task = _task(MultiMAETask, model, config, standardise=grey)
    return Plan(task, name, arguments, facts, lines)


def _create(
    config: PretrainConfig, kind: type[nn.Module], *, weights: str | None = None, **given: Any
) -> tuple[Any, str, dict[str, Any]]:
    """Build the network of a method; `--arguments` override what is given.

    Returns:
        Network, its name, and all of its arguments.

    Raises:
        ConfigError: a model of another kind.
    """
    name, stored = config.model or DEFAULT_MODELS[config.method], {}
    if weights and config.model is None:
        name, stored = _stored_model(weights) or (name, {})
    if load_object(get_entry(name).target) is not kind:
        raise ConfigError(
            f"--model {name} cannot be pre-trained by --method {config.method}: choose "
            f"{DEFAULT_MODELS[config.method]} or another of its kind (`crossband models list`)."
        )
    arguments = {**stored, "img_size": config.size, **given, **config.arguments}
    return create_model(name, weights, **arguments), name, model_arguments(name, arguments)


def _stored_model(path: str) -> tuple[str, dict[str, Any]] | None:
    """Return name and arguments that our own checkpoint has, None for others' files."""
    if HEADER_KEY not in read_state_dict(path)[1]:
        return None
    model = read_config(path)["model"]
    return model["name"], model["arguments"]


def _task(kind: type[Task], model: nn.Module, config: PretrainConfig, **more: Any) -> Task:
    return kind(model, config.optimizer, config.schedule, compile=config.trainer.compile, **more)


def _start(config: PretrainConfig) -> tuple[dict[str, Any], list[str]]:
    """Return facts and lines on the weights that training starts from."""
    if not config.weights:
        return {}, []
    return {"weights": config.weights}, [f"start: {config.weights}"]
