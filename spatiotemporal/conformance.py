"""Golden numbers of metrics, losses, schedules and Moving MNIST: `spatiotemporal_metrics`."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossband.shared.config import ScheduleConfig
from crossband.shared.training.optimizers import build_schedule
from crossband.spatiotemporal import metrics
from crossband.spatiotemporal.data.moving_mnist import (
    generate_moving_mnist,
    random_trajectory,
    read_idx_images,
)
from crossband.spatiotemporal.losses import tau_regulariser


def run(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Any]:
    """Compute what the fixture's configuration asks for."""
    arrays = {name: value.numpy() for name, value in inputs.items()}
    results: dict[str, Any] = {}
    for name, case in config.get("metrics", {}).get("cases", {}).items():
        results[name] = _openstl(case, arrays["pred"], arrays["true"])
    if "weatherbench" in config:
        results["weatherbench"] = metrics.weatherbench_scores(
            *(arrays[name] for name in config["weatherbench"]["inputs"])
        )
    asked = config.get("outputs", {})
    span = 64 - 28
    for name, case in asked.items():
        if name.startswith("moving_mnist"):
            span = case["image_size"] - case["digit_size"]
            digits = read_idx_images(config["fixture_dir"] / case["digits"])
            results[name] = generate_moving_mnist(
                digits, _generator(case), frames=case["n_frames"], size=case["image_size"]
            )
    if "traj" in asked:
        frames = int(asked["traj"]["fn"].partition("(")[2].rstrip(")"))
        results["traj_y"], results["traj_x"] = random_trajectory(
            _generator(asked["traj"]), frames, span
        )
    if "onecycle" in asked:
        results |= _onecycle(asked["onecycle"])
    if "tau_reg" in asked:
        results |= _tau(asked["tau_reg"], inputs)
    return results


def _openstl(case: dict[str, Any], prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    if "mean" in case:
        prediction, truth = (a * case["std"] + case["mean"] for a in (prediction, truth))
    norm = case["spatial_norm"]
    if "channel_names" in case:
        found = metrics.openstl_channel_errors(
            prediction, truth, case["channel_names"], spatial_norm=norm
        )
    else:
        found = metrics.openstl_errors(prediction, truth, spatial_norm=norm)
    if "ssim" in case["metrics"]:
        found |= metrics.openstl_image_quality(prediction, truth)
    return found


def _generator(case: dict[str, Any]) -> random.Random:
    """Return the generator of a case whose seed is written like `random.seed(123) ...`."""
    return random.Random(int(case["seed"].partition("(")[2].partition(")")[0]))


def _onecycle(case: dict[str, Any]) -> dict[str, np.ndarray]:
    """Step our own schedule, whose other settings are OpenSTL's."""
    rate, steps = case["max_lr"], case["total_steps"]
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    schedule = build_schedule(optimizer, ScheduleConfig(name="onecycle"), rate, 1, steps)
    rates, betas = [], []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        betas.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        if step + 1 < steps:
            schedule.step()
    return {"onecycle_lr": np.array(rates), "onecycle_beta1": np.array(betas)}


def _tau(case: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    prediction, truth = (inputs[name] for name in case["inputs"])
    prediction = prediction.clone().requires_grad_()
    value = tau_regulariser(prediction, truth, case["tau"], case["eps"])
    (gradient,) = torch.autograd.grad(value, prediction)
    return {"tau_reg": value.detach().reshape(1), f"grad.{case['inputs'][0]}": gradient}
