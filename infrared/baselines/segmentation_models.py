"""Networks of segmentation_models.pytorch, with any of timm's encoders."""

from __future__ import annotations

import crossband.shared.compat  # noqa: F401 - before timm, which imports torchvision

import segmentation_models_pytorch as smp
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.errors import ConfigError

_STRIDE = 32


class SMPSegmentor(nn.Module):
    """A decoder of smp on an encoder without pre-trained weights.

    Args:
        decoder: `unet` or `upernet`.
        encoder: Of smp, or `tu-NAME` for timm's.
        num_classes: K.
        in_chans: Channels of the image.

    Raises:
        ConfigError: an encoder that smp cannot build.
    """

    def __init__(
        self,
        *,
        decoder: str = "unet",
        encoder: str = "tu-resnet18",
        num_classes: int,
        in_chans: int = 3,
    ) -> None:
        """Build the network."""
        super().__init__()
        try:
            self.net = smp.create_model(
                decoder, encoder, encoder_weights=None, in_channels=in_chans, classes=num_classes
            )
        except Exception as error:  # smp and timm raise many kinds
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"{decoder} cannot be built on the encoder {encoder!r} ({reason[:100]}): name one "
                "that gives a pyramid, as tu-resnet18."
            ) from error
        self.num_classes = num_classes

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, C, H, W) to logits (B, K, H, W); the image is filled up to multiples of 32."""
        height, width = image.shape[-2:]
        down, right = -height % _STRIDE, -width % _STRIDE
        if down or right:
            image = F.pad(image, (0, right, 0, down))
        return self.net(image)[..., :height, :width]
