"""Methods without training."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

TARGET_LEVEL = 0.45


def gamma(image: Tensor, exponent: float = 1 / 2.2) -> Tensor:
    """Raise (B, 3, H, W) in [0, 1] to a power."""
    return image**exponent


def auto_gamma(image: Tensor) -> Tensor:
    """Choose the power that would bring the mean level of an image to 0.45; never darken."""
    mean = image.mean(dim=(1, 2, 3), keepdim=True).clamp(1e-4, 0.999)
    return image ** (np.log(TARGET_LEVEL) / mean.log()).clamp(max=1.0)


def clahe(image: Tensor, clip: float = 2.0, tiles: int = 8) -> Tensor:
    """Equalise the lightness (CIELAB L) in tiles with limited contrast (Zuiderveld 1994)."""
    equalise = cv2.createCLAHE(clip, (tiles, tiles))
    results = []
    for one in image:
        pixels = (one.permute(1, 2, 0) * 255).round().byte().cpu().numpy()
        lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)
        lab[..., 0] = equalise.apply(np.ascontiguousarray(lab[..., 0]))
        bright = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
        results.append(torch.from_numpy(bright).permute(2, 0, 1).to(image) / 255)
    return torch.stack(results)
