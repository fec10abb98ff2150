"""Pictures of what a masked autoencoder draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from crossband.shared.pretraining.mae import MAE, MAETask
from crossband.shared.reports.figures import rows_of_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@torch.no_grad()
def reconstructions(
    task: MAETask, image: Tensor, grey: Callable[[Tensor], np.ndarray]
) -> tuple[Figure, str]:
    """Draw images, what the network saw of them, and what it drew; return figure and caption.

    Args:
        task: With the network.
        image: (B, C, H, W), normalised.
        grey: Maps one image (C, H, W) to (H, W) in [0, 1].
    """
    model, noise = task.model, task.noise(image)
    mask = model(image, noise).mask
    drawn = model.reconstruct(image, noise)
    seen = _hide(model, image, mask)
    rows = [[grey(part) for part in parts] for parts in zip(image, seen, drawn, strict=True)]
    caption = f"{model.mask_ratio:.0%} of the patches hidden; visible ones are shown as they are."
    if model.norm_pix_loss:
        caption += " Drawn patches have the true mean and contrast, which the loss leaves out."
    return rows_of_images(rows, ("image", "seen", "drawn")), caption


def _hide(model: MAE, image: Tensor, mask: Tensor) -> Tensor:
    patches = model.patchify(image).masked_fill(mask[..., None].bool(), 0.0)
    return model.unpatchify(patches, (image.shape[-2], image.shape[-1]))
