"""Golden numbers of the metrics: the adapter of `spatiotemporal_metrics`."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from crossband.spatiotemporal import metrics


def run(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Any]:
    """Compute what the fixture's configuration asks for."""
    arrays = {name: value.numpy() for name, value in inputs.items()}
    results: dict[str, Any] = {}
    for name, case in config.get("metrics", {}).get("cases", {}).items():
        prediction, truth = arrays["pred"], arrays["true"]
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
        results[name] = found
    if "weatherbench" in config:
        results["weatherbench"] = metrics.weatherbench_scores(
            *(np.asarray(arrays[name]) for name in config["weatherbench"]["inputs"])
        )
    return results
