"""Projectors of pooled features and of feature maps."""

from __future__ import annotations

from torch import Tensor, nn

from crossband.shared.errors import ConfigError


class Projector(nn.Sequential):
    """Linear, BatchNorm and ReLU for each width but the last, which is a linear map without bias.

    `128` is the paper's (2048 x 128 for ResNet-50); `1024-1024-1024` and `512-512-512` the draft's.

    Args:
        dim: Channels of the input.
        widths: Channels, joined by hyphens.

    Raises:
        ConfigError: widths that are no positive whole numbers.
    """

    def __init__(self, dim: int, widths: str) -> None:
        """Build the layers."""
        words = widths.split("-")
        if not all(word.isdecimal() and int(word) for word in words):
            raise ConfigError(
                f"projector {widths!r} is no list of widths: write 128, or 1024-1024-1024."
            )
        sizes = [dim, *map(int, words)]
        layers: list[nn.Module] = []
        for before, after in zip(sizes[:-2], sizes[1:-1], strict=True):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
        super().__init__(*layers, nn.Linear(sizes[-2], sizes[-1], bias=False))
        self.width = sizes[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, dim) to (N, width).

        Raises:
            ConfigError: one row in training, whose batch statistics do not exist.
        """
        if self.training and len(self) > 1 and len(x) < 2:
            raise ConfigError(
                "A projector with BatchNorm cannot be trained on one image: give batches of two or "
                "more, or projector 128."
            )
        return super().forward(x)
