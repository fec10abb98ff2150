"""The report of a pre-training run: curves, the protocol, and what the network has learnt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossband.infrared.data.images import spread
from crossband.infrared.data.modalities import COLOUR
from crossband.infrared.pretraining.config import PretrainConfig
from crossband.infrared.pretraining.material import Material
from crossband.infrared.pretraining.methods import Plan
from crossband.infrared.unip.distillation import HybridAttentionDistillation
from crossband.infrared.unip.looking import logit_maps, places
from crossband.infrared.unip.plots import grey, nmi_curve, query_attention
from crossband.shared.cli.output import print_json
from crossband.shared.pretraining.g2sd import G2SDStudent
from crossband.shared.pretraining.mae import MAE, MAETask
from crossband.shared.pretraining.multimae import MultiMAE, MultiMAETask
from crossband.shared.pretraining.multimae_losses import robust_standardise
from crossband.shared.registry import IMAGENET_MEAN, IMAGENET_STD
from crossband.shared.reports.figures import curves, rows_of_images
from crossband.shared.reports.html import Report
from crossband.shared.reports.reconstructions import reconstructions
from crossband.shared.training.run_folder import RunFolder

_SHOWN = 4
_QUERIES = (0.5, 0.5, 0.25, 0.25)
_LOSSES = {
    "unip": "divergence of attention",
    "mae": "squared error of hidden patches",
    "g2sd": "smooth L1 to the teacher's decoder",
    "self-distill": "squared error, and distance to the teacher",
    "multimae": "sum of the decoders' losses",
}


def write_report(
    config: PretrainConfig,
    folder: RunFolder,
    plan: Plan,
    material: Material,
    histories: dict[str, list[dict[str, float]]],
    description: dict[str, Any],
) -> None:
    """Write metrics.json and report.html; print where they are.

    Args:
        config: Options of the run.
        folder: Of the run.
        plan: Of its last stage, with the final weights.
        material: What was learnt from.
        histories: Of each stage.
        description: Of the checkpoint.
    """
    last = list(histories.values())[-1]
    facts = {k: v for k, v in description.items() if k not in ("task", "normalisation")}
    outcome = {**facts, "history": last}
    if len(histories) > 1:
        outcome["stages"] = histories
    folder.write_results(outcome)
    report = Report(f"Pre-training: {config.method}", _protocol_text(description))
    for stage, history in histories.items():
        report.heading("Loss" if len(histories) == 1 else f"Loss, stage {stage}")
        report.figure(curves(history, unit=_LOSSES[config.method]))
    teacher = description.get("teacher", {})
    if "nmi" in teacher:
        report.heading("Choice of the teacher's layer")
        report.figure(
            nmi_curve(teacher["nmi"], teacher["nmi_target"], teacher["layer"]),
            f"NMI of the teacher's layers on {teacher['nmi_images']} images of the data.",
        )
    _pictures(report, plan, material)
    report.write(folder.report)
    if config.json:
        print_json({"weights": str(folder.best), **outcome})
    else:
        print(f"weights: {folder.best}\nreport: {folder.report}")


def _pictures(report: Report, plan: Plan, material: Material) -> None:
    """Show what the network does on images that were held back."""
    task = plan.task.cpu().eval()
    length = len(material.val)  # type: ignore[arg-type]
    items = [material.val[index] for index in spread(range(length), _SHOWN)]
    draw: Callable[[Report, Any, list[dict[str, Tensor]]], None] | None = None
    if isinstance(task, HybridAttentionDistillation):
        draw = _attention
    elif isinstance(task, MultiMAETask):
        draw = _modalities
    elif isinstance(task.model, MAE) and not isinstance(task.model, G2SDStudent):
        draw = _reconstructions
    if draw is not None:
        report.heading("On images that were held back")
        with torch.no_grad():
            draw(report, task, items)


def _attention(
    report: Report, task: HybridAttentionDistillation, items: list[dict[str, Tensor]]
) -> None:
    for item in items:
        image = item["image"][None]
        found = task.model.embed_tokens(image)
        chosen = places(_QUERIES, found.grid)
        rows = [row * found.grid[1] + column for row, column in chosen]
        logits = (  # of the networks as they are: compiled ones would be compiled for one image
            task.model.attention_logits(image),
            task.teacher[0].attention_logits(image, task.layer - 1),
        )
        student, teacher = (logit_maps(x, found.prefix, rows, found.grid) for x in logits)
        maps = {f"teacher, layer {task.layer}": teacher, "student, last": student}
        figure = query_attention(grey(image[0]), maps, chosen, task.model.patch_size)
        report.figure(figure, "Where two queries (x) look, mean over heads.")


def _reconstructions(report: Report, task: MAETask, items: list[dict[str, Tensor]]) -> None:
    image = torch.stack([item["image"] for item in items])
    report.figure(*reconstructions(task, image, grey))


def _modalities(report: Report, task: MultiMAETask, items: list[dict[str, Tensor]]) -> None:
    maps = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    maps |= {name: robust_standardise(maps[name]) for name in task.standardise}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        found = task.model(maps)
    rows = []
    titles = [title for name in maps for title in (name, "seen", "drawn")]
    for index in range(len(items)):
        row: list[np.ndarray] = []
        for name, truth in maps.items():
            mask = found.masks[name][index]
            drawn = found.preds[name][index] if name in found.preds else truth[index]
            seen = truth[index].masked_fill(_upsampled(mask, truth[index], task.model), 0.0)
            row += [_shown(name, part, truth[index]) for part in (truth[index], seen, drawn)]
        rows.append(row)
    report.figure(
        rows_of_images(rows, titles),
        f"{task.model.visible_tokens} tokens of all kinds visible; of these, drawn images need not "
        "repeat what was seen.",
    )


def _upsampled(mask: Tensor, like: Tensor, model: MultiMAE) -> Tensor:
    p = model.patch_size
    grid = mask.unflatten(0, (like.shape[-2] // p, like.shape[-1] // p)).bool()
    return grid.repeat_interleave(p, 0).repeat_interleave(p, 1)


def _shown(name: str, image: Tensor, truth: Tensor) -> np.ndarray:
    """Return an image as it is looked at: colours, or values from the truth's least to most."""
    if name == COLOUR:
        mean, std = (torch.tensor(n).view(-1, 1, 1) for n in (IMAGENET_MEAN, IMAGENET_STD))
        return (image * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
    low, high = truth.min(), truth.max()
    return ((image[0] - low) / (high - low).clamp(min=1e-6)).clamp(0, 1).numpy()


def _protocol_text(description: dict[str, Any]) -> str:
    protocol, model = description["protocol"], description["model"]
    sets = ", ".join(f"{name} {count}" for name, count in protocol["data_sets"].items())
    teacher = f" Teacher: {protocol['teacher']}." if protocol["teacher"] else ""
    return (
        f"{model['name']} on {protocol['images']['train']} images ({sets}), of "
        f"{protocol['size']} x {protocol['size']} pixels, batches of {protocol['batch_size']}; "
        f"{protocol['images']['val']} held back to validate on.{teacher} Seed {protocol['seed']}. "
        f"{protocol['machine']}."
    )
