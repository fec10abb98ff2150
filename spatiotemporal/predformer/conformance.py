"""Golden numbers of PredFormer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossband.shared.checkpoints import load_state
from crossband.spatiotemporal.predformer.model import INTERLEAVED, PredFormer
from crossband.spatiotemporal.predformer.official import from_official, from_official_config


def run(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the outputs, intermediate tokens and all gradients of the mean squared error."""
    arguments = from_official_config(config, config["variant"])
    arguments |= {k: config[k] for k in ("legacy_order", "layer_skip") if k in config}
    model = PredFormer(**arguments).eval()
    load_state(model, from_official(weights), "the fixture")
    tokens = model.embed(inputs["x"])
    outputs = {
        "y": model(inputs["x"]),
        "tokens_plus_pos": tokens,
        "pos_embedding": model.pos_embedding,
    }
    if config["variant"] in INTERLEAVED:
        outputs["block0"] = model.run_block(model.blocks[0], tokens)
    if "target" in inputs:
        error = torch.nn.functional.mse_loss(outputs["y"], inputs["target"])
        error.backward()
        outputs["mse"] = error.reshape(1)
        for name, parameter in model.named_parameters():
            outputs[f"grad.{name}"] = parameter.grad
    return {name: value.detach() for name, value in outputs.items()}
