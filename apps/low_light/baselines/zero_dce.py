"""Zero-DCE (Guo et al. 2020): a small network chooses a brightening curve for every pixel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_STEPS = 8


class ZeroDCE(nn.Module):
    """Seven 3x3 convolutions with symmetric joins; eight steps of `x + r (x^2 - x)`.

    Args:
        width: Channels of the hidden layers.
    """

    reach = 7

    def __init__(self, width: int = 32) -> None:
        """Build the layers under the authors' names."""
        super().__init__()
        inputs = (3, width, width, width, 2 * width, 2 * width, 2 * width)
        outputs = (width,) * 6 + (3 * _STEPS,)
        for n, (i, o) in enumerate(zip(inputs, outputs, strict=True), start=1):
            setattr(self, f"e_conv{n}", nn.Conv2d(i, o, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        """Map RGB (B, 3, H, W) in [0, 1] to the brightened image."""
        x1 = F.relu(self.e_conv1(image))
        x2 = F.relu(self.e_conv2(x1))
        x3 = F.relu(self.e_conv3(x2))
        x4 = F.relu(self.e_conv4(x3))
        x5 = F.relu(self.e_conv5(torch.cat([x3, x4], dim=1)))
        x6 = F.relu(self.e_conv6(torch.cat([x2, x5], dim=1)))
        curves = torch.tanh(self.e_conv7(torch.cat([x1, x6], dim=1)))
        for curve in curves.split(3, dim=1):
            image = image + curve * (image.square() - image)
        return image
