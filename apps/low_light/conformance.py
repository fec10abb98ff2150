"""Golden numbers of GDC, UGDC, the published inference, Zero-DCE and SCI."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from crossband.apps.low_light.baselines import official as rivals
from crossband.apps.low_light.baselines.sci import SCI
from crossband.apps.low_light.baselines.zero_dce import ZeroDCE
from crossband.apps.low_light.gdc import GDC
from crossband.apps.low_light.model import TML, UGDC, denormalise, normalise
from crossband.apps.low_light.official import from_official
from crossband.shared.checkpoints import load_state

_SOURCE = "the fixture"
_FULL_MAPS = ("inc", "up4", "down1", "up3")  # stored with every fourth row and column


def gdc(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the block's output, its change and all gradients; both orders must agree."""
    shape = config["in_shape"]
    in_shape = shape if isinstance(shape, int) else tuple(shape)
    block = GDC(config["dim"], in_shape, patch_size=config.get("patch", 0)).eval()
    load_state(block, from_official(weights), _SOURCE)
    x = inputs["x"].clone().requires_grad_()
    y = block(x)
    for order in ("direct", "reassociated"):
        block.order = order
        torch.testing.assert_close(block(x), y, rtol=1e-4, atol=1e-5)
    loss = y.square().mean()
    loss.backward()
    outputs = {"y": y, "delta": y - x, "loss": loss.reshape(1), "grad.input.x": x.grad}
    return _detached(outputs | _gradients(block))


def ugdc(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the output, the stages' maps and all gradients."""
    height, width = _native(config["in_shapes"])
    model = UGDC(
        height,
        width,
        config["stem_channels"],
        in_channels=config["n_channels"],
        out_channels=config["n_classes"],
        patch_size=_patch(config["in_shapes"]),
        drop_path=0.0,
    )
    model.train(config.get("mode") == "train")
    load_state(model, from_official(weights), _SOURCE)
    x = inputs["x"].clone().requires_grad_()
    maps = model.stages(x)
    y = model.outc(maps["up4"])
    outputs = {"y": y}
    for name, value in maps.items():
        step = 4 if name in _FULL_MAPS else 1
        outputs[f"feat.{name}"] = value[:1, :, ::step, ::step]
    if "target" in inputs:
        loss = F.smooth_l1_loss(y, inputs["target"])
        loss.backward()
        outputs["smooth_l1_beta1"] = loss.reshape(1)
        outputs |= _gradients(model) | {"grad.input.x": x.grad}
    return _detached(outputs)


def tml_pipeline(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return every step of the authors' inference script."""
    height, width = _native(config["in_shapes"])
    model = TML(
        height,
        width,
        config["pm_stem"],
        config["em_stem"],
        patch_size=_patch(config["in_shapes"]),
    ).eval()
    load_state(model, weights, _SOURCE)
    image = Image.fromarray(inputs["image_uint8_hwc"].numpy())
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).copy()
    low = normalise(torch.from_numpy(resized).permute(2, 0, 1)[None] / 255)
    with torch.no_grad():
        coarse = model.pm(low)
        noise = model.em(coarse)
        result = model.enhance(low)
    image = denormalise(result)[0]
    return {
        "resized_uint8_hwc": torch.from_numpy(resized),
        "low": low,
        "coarse": coarse,
        "noise": noise,
        "normalised": result,
        "denormalised": image,
        "png_uint8_chw": (image * 255 + 0.5).clamp(0, 255).byte(),
    }


def zero_dce_sci(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the rivals' results with their authors' weights."""
    image = inputs["image_uint8_hwc"].permute(2, 0, 1)[None] / 255
    outputs = {}
    for name in config["weights_from"]:
        model = (ZeroDCE() if name == "zero_dce" else SCI()).eval()
        own = {k[len(name) + 1 :]: v for k, v in weights.items() if k.startswith(f"{name}.")}
        load_state(model, rivals.from_official(own), name)
        with torch.no_grad():
            outputs[name] = model(image)
    return outputs


def _native(shapes: list[Any]) -> tuple[int, int]:
    first = shapes[0]
    return (first, first) if isinstance(first, int) else tuple(first)


def _patch(shapes: list[Any]) -> int:
    return 7 if isinstance(shapes[0], int) else 5


def _gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    return {
        f"grad.{name}": parameter.grad
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def _detached(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in outputs.items()}
