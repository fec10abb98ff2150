"""Golden numbers of masked pre-training."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from crossband.shared.checkpoints import load_state
from crossband.shared.layers.pos_embed import resample_pos_embed, sincos_pos_embed
from crossband.shared.pretraining.distillation_losses import (
    channel_divergence,
    nkd_loss,
    relation_loss,
)
from crossband.shared.pretraining.g2sd import (
    G2SDStudent,
    feature_loss,
    load_teacher,
    teacher_features,
)
from crossband.shared.pretraining.mae import MAE
from crossband.shared.pretraining.masking import dirichlet_masking
from crossband.shared.pretraining.multimae import NORM, MultiMAE
from crossband.shared.pretraining.multimae_heads import MultiViT
from crossband.shared.pretraining.multimae_keys import from_official
from crossband.shared.training.optimizers import mae_rate

_SOURCE = "the fixture"
_HEADS = {
    "ConvNeXtAdapter": "convnext",
    "SegmenterMaskTransformer": "segmenter",
    "DPTOutputAdapter": "dpt",
}
_HEAD_OPTIONS = (
    *("embed_dim", "preds_per_patch", "depth", "mlp_ratio", "hooks", "layer_dims", "feature_dim"),
    *("head_type", "use_bn", "norm_eps"),
)
_SIZES = (
    *("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads"),
    *("decoder_embed_dim", "decoder_depth", "decoder_num_heads", "mlp_ratio"),
)


def mae(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return latent, masks, patches, the picture, the loss and its gradients."""
    given = ("norm_eps", "norm_pix_loss", "mask_ratio")
    settings = {name: config[name] for name in given if name in config}
    model = MAE(**_sizes(config), **settings).eval()
    load_state(model, weights, _SOURCE)
    image, noise = inputs["imgs"], inputs["noise"]
    masking = model.draw_masking(image, noise)
    loss, pred, mask = model(image, noise)
    loss.backward()
    outputs = {
        "latent": model.norm(model.forward_tokens(image, keep=masking.keep).x),
        "mask": mask,
        "ids_restore": masking.restore,
        "pred": pred,
        "target_patches": model.patchify(image),
        "recon": model.unpatchify(pred, (image.shape[-2], image.shape[-1])),
        "loss": loss.reshape(1),
    }
    return _detached(outputs | _gradients(model))


def mae_recipe(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return tables of positions, a resized one and the learning-rate curve."""
    sizes = ((384, 14), (512, 14), (48, 4))
    tables = {f"sincos_d{d}_g{g}": sincos_pos_embed(d, (g, g))[0] for d, g in sizes}
    resized = resample_pos_embed(inputs["pos_embed_4x4"], (4, 4), (7, 7))
    epochs, schedule = inputs["epochs"], config["schedule"]
    rates = [mae_rate(float(epoch), **schedule) for epoch in epochs]
    return {**tables, "pos_embed_7x7": resized, "lr": epochs.new_tensor(rates)}


def g2sd(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return hidden states, all losses and their gradients."""
    eps, ratio, beta = config["norm_eps"], config["mask_ratio"], config["smooth_l1_beta"]
    sizes = {"norm_eps": eps, "mask_ratio": ratio}
    teacher = MAE(**sizes, **_sizes(config["teacher"]))
    load_teacher(teacher, _part(weights, "teacher."), config["teacher"]["suplayer"])
    heads = ("encoder_pred_channel", "decoder_pred_channel", "supervise_all")
    settings = {name: config["student"][name] for name in heads if name in config["student"]}
    student = G2SDStudent(**sizes, **_sizes(config["student"]), **settings).eval()
    load_state(student, _part(weights, "student."), _SOURCE)
    qkv: dict[str, tuple[Tensor, ...]] = {}
    for name, model in (("student", student), ("teacher", teacher)):
        model.blocks[-1].attn.qkv.register_forward_hook(
            lambda module, args, output, name=name: qkv.update({name: output.chunk(3, -1)})
        )
    image, noise = inputs["image"], inputs["noise"]
    wanted = teacher_features(teacher, image, noise, supervise_all=student.supervise_all)
    found = student(image, noise)
    loss_encoder = feature_loss(found.encoder, wanted.encoder, beta)
    loss_decoder = feature_loss(found.decoder, wanted.decoder, beta)
    total = 0 * loss_encoder + loss_decoder
    total.backward()
    outputs = {
        "mask": found.mask,
        "teacher_prenorm": wanted.encoder,
        "teacher_decoder_hidden": wanted.decoder,
        "student_encoder_pred": found.encoder,
        "student_decoder_pred": found.decoder,
        "loss_encoder": loss_encoder,
        "loss_decoder": loss_decoder,
        "loss_total": total,
    }
    widths = [qkv[name][0].shape[-1] for name in ("student", "teacher")]
    for count in range(1, 17):
        if not any(width % count for width in widths):
            loss = relation_loss(qkv["student"], qkv["teacher"], count)
            outputs[f"relation_loss_last_layer_Ar{count}"] = loss
    outputs |= _gradients(student, "grad.student.") | _output_losses(config, inputs)
    return _detached(outputs)


def _output_losses(config: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the losses on logits and maps that a fixture has, with gradients."""
    outputs = {}
    if "nkd_student" in inputs:
        given = config["losses"]["nkd"]
        student = inputs["nkd_student"].clone().requires_grad_()
        loss = nkd_loss(
            student,
            inputs["nkd_teacher"],
            inputs["nkd_label"],
            temperature=given["temp"],
            alpha=given["alpha"],
        )
        loss.backward()
        outputs |= {"nkd": loss, "grad.nkd_student": student.grad}
    for name in config["grad_of"]:
        if case := re.fullmatch(r"cwd_tau([\d.]+)_w([\d.]+)", name):
            student = inputs["cwd_student"].clone().requires_grad_()
            temperature, weight = (float(number) for number in case.groups())
            loss = weight * channel_divergence(
                student, inputs["cwd_teacher"], temperature=temperature
            )
            loss.backward()
            outputs |= {name: loss, f"grad.{name}": student.grad}
    return outputs


def multimae(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the decoders' maps, their losses, and masks that were drawn."""
    outputs = {
        name: {
            "dim": own["decoder_dim"],
            "depth": own["depth"],
            "heads": own["heads"],
            "task_queries": own["use_task_queries"],
            "cross_attention": own["use_xattn"],
            "context": own["context_tasks"],
        }
        for name, own in config["output_adapters"].items()
    }
    drawn = {
        own["task"]: own
        for name, own in config["output_adapters"].items()
        if not name.startswith(NORM)
    }
    seen = list(config["input_adapters"])
    arguments = _encoder(config, {**drawn, **config["input_adapters"]})
    model = MultiMAE(inputs=seen, outputs=outputs, **arguments).eval()
    load_state(model, from_official(_part(weights, f"{config['weights_prefix']}.")), _SOURCE)
    maps = {name: inputs[name] for name in model.modalities if name in inputs}
    masks = {name: inputs[f"task_mask.{name}"] for name in seen if f"task_mask.{name}" in inputs}
    if not masks:  # nothing is hidden
        tokens, _ = model.tokenise(maps)
        masks = {name: torch.zeros(x.shape[:2]) for name, x in tokens.items()}
    preds, masks = model({name: maps[name] for name in masks}, masks)
    found = {f"pred.{name}": pred for name, pred in preds.items()}
    found |= {f"loss.{n}": loss for n, loss in model.losses(preds, maps, masks).items()}
    if sampler := config.get("mask_sampler"):
        found |= _sampled(sampler, seen)
    return _detached(found)


def _sampled(sampler: dict[str, Any], names: list[str]) -> dict[str, Tensor]:
    seed = re.search(r"\d+", str(sampler["seed"]))
    number = seed.group() if seed else "0"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(number))
        masks, masking = dirichlet_masking(
            dict(zip(names, sampler["tokens_per_task"], strict=True)),
            sampler["batch"],
            sampler["num_encoded_tokens"],
            alphas=sampler["alphas"],
            sample_subsets=sampler["sample_tasks_uniformly"],
        )
    found = {f"sampled_mask_seed{number}.{name}": mask.long() for name, mask in masks.items()}
    return {**found, f"sampled_ids_keep_seed{number}": masking.keep}


def multimae_head(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the maps of every head in the fixture, each with its own encoder."""
    found = {}
    for case in config.get("cases", {"": config}).values():
        given = case["head"]
        options = {name: given[name] for name in _HEAD_OPTIONS if name in given}
        if "heads" in given:
            options["num_heads"] = given["heads"]
        if given["type"] == "DPTOutputAdapter":
            options.pop("norm_eps", None)
        model = MultiViT(
            num_classes=given.get("num_classes", config.get("num_classes")),
            head=_HEADS[given["type"]],
            head_options=options,
            main_tasks=given["main_tasks"],
            output_name=config["output_adapter_name"],
            **_encoder(config, config["input_adapters"]),
        ).eval()
        load_state(model, from_official(_part(weights, f"{case['weights_prefix']}.")), _SOURCE)
        with torch.no_grad():
            found[case["output"]] = model({n: inputs[i] for n, i in config["inputs"].items()})
    return found


def _encoder(config: dict[str, Any], adapters: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the encoder's arguments of a fixture's configuration."""
    modalities = {}
    for name, own in adapters.items():
        labels = "num_classes" in own or own.get("task") == "semseg"
        modalities[name] = {
            "channels": own.get("num_classes", own.get("num_channels")),
            "labels": labels,
            "stride": own["stride_level"],
            "class_dim": own.get("dim_class_emb", 64),
            "pool_classes": own.get("interpolate_class_emb", False),
        }
    return {
        "modalities": modalities,
        "img_size": config["image"],
        "patch_size": config["patch"],
        "embed_dim": config["dim_tokens"],
        "depth": config["depth"],
        "num_heads": config["heads"],
        "mlp_ratio": config["mlp_ratio"],
        "qkv_bias": config["qkv_bias"],
        "num_global_tokens": config["num_global_tokens"],
        "norm_eps": config["norm_eps"],
    }


def _sizes(config: dict[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in _SIZES if name in config}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _gradients(module: nn.Module, prefix: str = "grad.") -> dict[str, Tensor]:
    return {
        f"{prefix}{name}": parameter.grad
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def _detached(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in outputs.items()}
