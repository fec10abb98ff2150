"""Golden numbers of the backbones."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from crossband.shared.backbones.base import ImageClassifier
from crossband.shared.backbones.hornet import HorNet, HorNetClassifier
from crossband.shared.backbones.transnext import TransNeXt, TransNeXtClassifier
from crossband.shared.backbones.unireplknet import (
    DilatedReparamBlock,
    UniRepLKNet,
    UniRepLKNetClassifier,
    reparameterize,
)
from crossband.shared.checkpoints import load_state

_SOURCE = "the fixture"
Config = dict[str, Any]
Tensors = dict[str, Tensor]


def transnext(config: Config, weights: Tensors, inputs: Tensors) -> Tensors:
    """Return the outputs of every case, and the gradients of the classifier's."""
    plain = {"model": "classifier", "input": "image", "outputs": ["logits", *_stages(1)]}
    outputs: Tensors = {}
    for case in config.get("cases") or [plain]:
        settings = {**config, **case.get("constructor", {})}
        dense = "dense" in case["model"]
        arguments = _given(
            settings,
            in_chans="in_chans",
            embed_dims="embed_dims",
            num_heads="num_heads",
            mlp_ratios="mlp_ratios",
            depths="depths",
            sr_ratios="sr_ratios",
            window_size="window_size",
            qkv_bias="qkv_bias",
            fixed_pool_size="fixed_pool_size",
            img_size="img_size",
        )
        size = settings.get("pretrain_size") or settings.get("img_size", 224)
        arguments["pretrain_size"] = size
        if not settings.get("is_extrapolation", True):
            arguments["position_bias"] = "interpolate"
        if dense:
            model: nn.Module = TransNeXt(**arguments)
            own = {k: v for k, v in weights.items() if not k.startswith("head.")}
        else:
            model = TransNeXtClassifier(num_classes=config["num_classes"], **arguments)
            own = weights
        load_state(model, own, _SOURCE)
        model.train(case.get("mode", "eval").startswith("train"))
        x = inputs[case["input"]].clone().requires_grad_()
        if "module" in case:
            part = model.get_submodule(case["module"])
            found = {name: _on_tokens(part, x, case.get("input_hw")) for name in case["outputs"]}
        else:
            found = _run(model, x, first=1)
        for name in case["outputs"]:
            outputs[name] = found[name if name in found else name.rpartition(".")[2]]
        if "logits" in case["outputs"]:
            outputs |= _gradients(model, found["logits"], x)
    return _detached(outputs)


def unireplknet(config: Config, weights: Tensors, inputs: Tensors) -> Tensors:
    """Return stages, logits and gradients, and those outputs of the merged network."""
    arguments = _given(
        config, in_chans="in_chans", depths="depths", dims="dims", kernel_sizes="kernel_sizes"
    )
    if "layer_scale_init_value" in config:
        arguments["layer_scale_init_value"] = config["layer_scale_init_value"]
    arguments["deploy"] = not any(".pwconv2.2." in key for key in weights)
    x = _image(inputs)
    outputs: Tensors = {}
    for model in _networks(UniRepLKNet, UniRepLKNetClassifier, config, weights, arguments):
        merged = reparameterize(copy.deepcopy(model))
        with torch.no_grad():
            _add(outputs, model, _run(merged, x, first=0), "deploy.")
        found = _run(model, x, first=0)
        if "logits" in found:
            found |= _gradients(model, found["logits"], x)
        _add(outputs, model, found)
    return _detached(outputs)


def unireplknet_trainstep(config: Config, weights: Tensors, inputs: Tensors) -> Tensors:
    """Return loss and gradients with the statistics of the batch."""
    return unireplknet({"mode": "train", **config}, weights, inputs)


def dilated_reparam(config: Config, weights: Tensors, inputs: Tensors) -> Tensors:
    """Return the output and gradients of the branches, and output and weights when merged."""
    size = config["kernel_size"]
    branches = None
    if "branch_kernels" in config:
        pairs = zip(config["branch_kernels"], config["branch_dilations"], strict=True)
        branches = tuple(pairs)
    deploy = "origin_bn.weight" not in weights
    block = DilatedReparamBlock(config["channels"], size, branches, deploy)
    load_state(block, weights, _SOURCE)
    block.train(config.get("mode") == "train")
    merged = copy.deepcopy(block).eval()
    merged.reparameterize()
    x = _image(inputs)
    y = block(x)
    outputs = {"y": y, "deploy.y": merged(x)} | _gradients(block, y, x)
    outputs |= {f"deploy.{key}": value for key, value in merged.state_dict().items()}
    return _detached(outputs)


def hornet(config: Config, weights: Tensors, inputs: Tensors) -> Tensors:
    """Return stages, logits, loss and gradients."""
    arguments = _given(
        config,
        in_chans="in_chans",
        depths="depths",
        base_dim="base_dim",
        orders="orders",
        s="scale",
    )
    arguments["filter_sizes"] = [config.get(f"gf_stage{i}") for i in range(4)]
    x = _image(inputs)
    outputs: Tensors = {}
    for model in _networks(HorNet, HorNetClassifier, config, weights, arguments):
        found = _run(model, x, first=0)
        if "logits" in found:
            found |= _gradients(model, found["logits"], x)
        _add(outputs, model, found)
    return _detached(outputs)


def _image(inputs: Tensors) -> Tensor:
    return inputs.get("x", next(iter(inputs.values()))).clone().requires_grad_()


def _networks(
    backbone: type, classifier: type, config: Config, weights: Tensors, arguments: Config
) -> Iterator[nn.Module]:
    """Build the forms whose weights there are, in the mode of the configuration."""
    dense = {k for k in weights if re.match(r"norm\d\.", k)}
    head = {k for k in weights if re.match(r"(norm|head)\.", k)}
    if dense:
        model = backbone(**arguments)
        load_state(model, {k: v for k, v in weights.items() if k not in head}, _SOURCE)
        yield model.train(config.get("mode") == "train")
    if head or not dense:
        model = classifier(num_classes=config["num_classes"], **arguments)
        load_state(model, {k: v for k, v in weights.items() if k not in dense}, _SOURCE)
        yield model.train(config.get("mode") == "train")


def _add(outputs: Tensors, model: nn.Module, found: Tensors, prefix: str = "") -> None:
    """Add outputs by name; those of a dense network as `dense.` too, which nothing replaces."""
    outputs |= {prefix + name: value for name, value in found.items()}
    if not isinstance(model, ImageClassifier):
        outputs |= {f"{prefix}dense.{name}": value for name, value in found.items()}


def _run(model: nn.Module, x: Tensor, first: int) -> Tensors:
    """Return the maps as `stage<number>` from `first` on, and the logits of a classifier."""
    if isinstance(model, ImageClassifier):
        last, maps = model.forward_intermediates(x)
        outputs = {"logits": model.forward_head(last)}
    else:
        maps, outputs = model(x), {}
    return outputs | {f"stage{first + index}": y for index, y in enumerate(maps)}


def _stages(first: int) -> list[str]:
    return [f"stage{first + index}" for index in range(4)]


def _on_tokens(part: nn.Module, x: Tensor, size: list[int] | None) -> Tensor:
    """Run a module that takes (B, H, W, C) on tokens (B, N, C)."""
    if size is None:
        return part(x)
    return part(x.unflatten(1, size)).flatten(1, 2)


def _gradients(model: nn.Module, y: Tensor, x: Tensor) -> Tensors:
    """Return mean(y^2) and its gradients."""
    loss = y.square().mean()
    loss.backward(retain_graph=True)
    found = {"loss": loss.reshape(1), "grad.input.x": x.grad}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[f"grad.{name}"] = parameter.grad
    return found


def _given(config: Config, **names: str) -> Config:
    """Return what a configuration gives of the arguments `theirs=ours`."""
    found = {ours: config.get(theirs) for theirs, ours in names.items()}
    return {name: value for name, value in found.items() if value is not None}


def _detached(outputs: Tensors) -> Tensors:
    return {name: value.detach() for name, value in outputs.items()}
