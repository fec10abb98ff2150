"""Masked pre-training of a CNN: a U-Net draws the patches that were blanked out of its input.

The convolutional rival of Xiao et al. 2023 (arXiv 2210.12843). A CNN cannot leave patches out, so
they become 0 (the mean, of normalised images). The network is `model`, a U-Net of
segmentation_models_pytorch, so the authors' files load and `load_cnn_encoder` takes its encoder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crossband.shared.compat  # noqa: F401 - before smp, which imports torchvision

from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.backbones.vit_keys import LoadReport
from crossband.shared.checkpoints import read_state_dict
from crossband.shared.errors import CheckpointError, ConfigError, MissingExtraError
from crossband.shared.pretraining.mae import MAE, MAEOutput

ENCODER = "model.encoder."
# What a classifier has of its own: its last layer, under the names of timm, torchvision and MONAI.
HEAD = re.compile(r"^(head|fc|classifier|class_layers)\.")
_STAGE = re.compile(r"^(stem|stages|layers|blocks)_(\d+)\.")


class CNNMAE(nn.Module):
    """A U-Net that learns to draw the patches it does not see.

    Args:
        encoder: Of smp (`densenet121`, `resnet50`), or `tu-NAME` for timm's.
        patch_size: p, side of a patch. Images are filled up with zeros to whole patches.
        mask_ratio: Part of the patches that is blanked out.
        norm_pix_loss: Compare with patches of mean 0 and variance 1.
        in_chans: C, channels of the image.

    Raises:
        ConfigError: an encoder that smp cannot build.
        MissingExtraError: segmentation_models_pytorch is not installed.
    """

    def __init__(
        self,
        *,
        encoder: str = "densenet121",
        patch_size: int = 16,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = False,
        in_chans: int = 3,
    ) -> None:
        """Build the U-Net with random weights."""
        super().__init__()
        try:
            import segmentation_models_pytorch as smp
        except ModuleNotFoundError as error:
            raise MissingExtraError("segmentation-models-pytorch", "medical") from error
        self.patch_size, self.mask_ratio = patch_size, mask_ratio
        self.norm_pix_loss, self.in_chans = norm_pix_loss, in_chans
        try:
            self.model = smp.Unet(
                encoder, encoder_weights=None, in_channels=in_chans, classes=in_chans
            )
        except Exception as error:  # smp and timm raise many kinds
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"A U-Net cannot be built on the encoder {encoder!r} ({reason[:100]}): name one "
                "that gives a pyramid, as densenet121, resnet50 or tu-convnext_tiny."
            ) from error
        self.stride = math.lcm(self.model.encoder.output_stride, patch_size)

    # Pixels, patches and what is hidden: MAE's, since they ask nothing of the network.
    draw_masking = MAE.draw_masking
    grid_of = MAE.grid_of
    patchify = MAE.patchify
    unpatchify = MAE.unpatchify
    pixel_loss = MAE.pixel_loss
    reconstruct = MAE.reconstruct

    def forward(self, image: Tensor, noise: Tensor | None = None) -> MAEOutput:
        """Blank out patches, draw them, compare.

        Args:
            image: (B, C, H, W).
            noise: (B, N) numbers; the patches with the least stay visible. None: drawn here.
        """
        mask = self.draw_masking(image, noise).mask
        pred = self.patchify(self.draw(self.hide(image, mask)))
        return MAEOutput(self.pixel_loss(image, pred, mask), pred, mask)

    def hide(self, image: Tensor, mask: Tensor) -> Tensor:
        """Return an image (B, C, H, W) with 0 where patches of `mask` (B, N) are hidden."""
        hidden = mask.unflatten(1, (1, *self.grid_of(image)))
        hidden = F.interpolate(hidden, scale_factor=float(self.patch_size), mode="nearest")
        hidden = hidden[..., : image.shape[-2], : image.shape[-1]]
        return image.masked_fill(hidden > 0, 0)

    def draw(self, image: Tensor) -> Tensor:
        """Map (B, C, H, W) to a drawing of the same size, filled up to whole patches."""
        rows, columns = self.grid_of(image)
        down, right = -image.shape[-2] % self.stride, -image.shape[-1] % self.stride
        drawn = self.model(F.pad(image, (0, right, 0, down)))
        return drawn[..., : rows * self.patch_size, : columns * self.patch_size]

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the encoder's weights under smp's keys, for DenseNets and ResNets timm's too."""
        return dict(self.model.encoder.state_dict())

    def no_weight_decay(self) -> set[str]:
        """Return no name: only biases and norms are spared."""
        return set()


def load_cnn_encoder(classifier: nn.Module, path: str | Path) -> LoadReport:
    """Load the encoder of a pre-trained U-Net into a classifier; its last layer is left as it is.

    Args:
        classifier: Of timm (`timm:densenet121`, `timm:resnet50`), torchvision or MONAI
            (`monai:DenseNet121`) with the network of the encoder.
        path: File of `CNNMAE`, ours or the authors': keys `model.encoder.*`.

    Raises:
        CheckpointError: unreadable, without an encoder, or one of another network.
    """
    state = _without_wrapper(read_state_dict(path)[0])
    encoder = {k.removeprefix(ENCODER): v for k, v in state.items() if k.startswith(ENCODER)}
    if not encoder:
        raise CheckpointError(
            f"{path} holds no {ENCODER}* weights (its first key is {min(state)!r}): give a file "
            "of masked pre-training of a CNN."
        )
    own = classifier.state_dict()
    found = max(
        ({rename(k): v for k, v in encoder.items()} for rename in _RENAMINGS),
        key=lambda renamed: len(renamed.keys() & own.keys()),
    )
    wrong = [k for k, v in found.items() if k not in own or own[k].shape != v.shape]
    missing = sorted(own.keys() - found.keys())
    wrong += [k for k in missing if not HEAD.match(k)]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit {type(classifier).__name__}: {len(wrong)} tensors are missing, "
            f"left over or of another shape (first: {wrong[0]}). Choose the network that was "
            "pre-trained."
        )
    classifier.load_state_dict(found, strict=False)
    left = tuple(sorted(k for k in state if not k.startswith(ENCODER)))
    return LoadReport(str(path), "smp", tuple(sorted(found)), tuple(missing), left, ())


def _without_wrapper(state: dict[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("module."): value for key, value in state.items()}


def _monai(key: str) -> str:
    """MONAI keeps the layers of a dense layer in a sequence of that name."""
    return re.sub(r"(\.denselayer\d+)\.", r"\1.layers.", key)


def _flattened(key: str) -> str:
    """Undo timm's flattened names (`tu-NAME`): `model.stages_0.x` to `stages.0.x`."""
    return _STAGE.sub(r"\1.\2.", key.removeprefix("model."))


_RENAMINGS: tuple[Callable[[str], str], ...] = (str, _monai, _flattened)
