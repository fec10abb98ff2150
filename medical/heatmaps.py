"""Where in a radiograph a finding was seen, at the size of the image."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from crossband.medical.reader import Reader
from crossband.shared.heatmaps import attention_rollout, gradient_heatmap

Method = Literal["gradient", "rollout"]


def heatmap(reader: Reader, pixels: np.ndarray, finding: int, method: Method) -> np.ndarray:
    """Return heat, float32 (H, W), of an image; what the network was not shown has none.

    Args:
        reader: The network.
        pixels: uint8 (H, W), or RGB (H, W, 3).
        finding: Number of the output; of no account to `rollout`.
        method: `gradient`, or `rollout` of the attention of a ViT.

    Raises:
        ConfigError: a network without layers or, for `rollout`, without attention.
    """
    module = reader.module
    image = reader.prepare(pixels)[None].to(reader.opened.device)
    found = (
        attention_rollout(module, image)
        if method == "rollout"
        else gradient_heatmap(module, image, finding)
    )
    height, width = pixels.shape[:2]
    scale = min(height, width) / reader.resize
    side = min(height, width, round(reader.size * scale))
    top, left = (height - side) // 2, (width - side) // 2
    shown = F.interpolate(found[:, None].float().cpu(), (side, side), mode="bilinear")[0, 0]
    heat = torch.full((height, width), float(shown.min()))
    heat[top : top + side, left : left + side] = shown
    return heat.numpy()
