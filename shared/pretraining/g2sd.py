"""Generic-to-specific distillation, its generic stage (Huang et al. 2023, arXiv 2302.14771).

A small masked autoencoder learns what the decoder of a large one thinks, under the same mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.checkpoints import load_state, read_state_dict
from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.kernels.linear import Linear
from crossband.shared.pretraining.mae import MAE, MAETask, initialise_linear

_NORM_EPS = 1e-6


class Features(NamedTuple):
    """Hidden states of a masked autoencoder, or what a student makes of them.

    Attributes:
        encoder: (B, 1 + K, D) of the visible tokens, class token first.
        decoder: (B, 1 + N, Dd) of all tokens, or (B, N - K, Dd) of the hidden patches.
        mask: (B, N), 0 visible and 1 hidden.
    """

    encoder: Tensor
    decoder: Tensor
    mask: Tensor


class FeatureHead(nn.Module):
    """Two linear layers from the student's width to the teacher's."""

    def __init__(self, dim: int, teacher_dim: int) -> None:
        """Build the layers."""
        super().__init__()
        self.fc1, self.act = Linear(dim, teacher_dim), nn.GELU()
        self.fc2 = Linear(teacher_dim, teacher_dim)
        initialise_linear(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to (..., teacher_dim)."""
        return self.fc2(self.act(self.fc1(x)))


class G2SDStudent(MAE):
    """A masked autoencoder that predicts its teacher's hidden states.

    `decoder_norm` and `decoder_pred` are kept, as in the authors' files, but not trained.

    Args:
        encoder_pred_channel: Width of the teacher's encoder.
        decoder_pred_channel: Width of the teacher's decoder.
        supervise_all: Predict the hidden states of all tokens, not of hidden patches alone.
        sizes: Arguments of `MAE`.
    """

    def __init__(
        self,
        *,
        encoder_pred_channel: int = 768,
        decoder_pred_channel: int = 512,
        supervise_all: bool = True,
        **sizes: Any,
    ) -> None:
        """Build the autoencoder and the heads."""
        super().__init__(**sizes)
        self.supervise_all = supervise_all
        self.encoderfeature_pred = FeatureHead(self.embed_dim, encoder_pred_channel)
        self.decoderfeature_pred = FeatureHead(self.mask_token.shape[-1], decoder_pred_channel)
        for unused in (self.decoder_norm, self.decoder_pred):
            unused.requires_grad_(False)

    def forward(  # type: ignore[override]
        self, image: Tensor, noise: Tensor | None = None
    ) -> Features:
        """Predict the teacher's hidden states of an image (B, C, H, W); `noise` as for `MAE`."""
        masking = self.draw_masking(image, noise)
        latent = self.norm(self.forward_tokens(image, keep=masking.keep).x)
        hidden = self.decode_hidden(latent, masking.restore, self.grid_of(image))
        hidden = supervised(hidden, masking.mask, self.supervise_all)
        return Features(
            self.encoderfeature_pred(latent), self.decoderfeature_pred(hidden), masking.mask
        )

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the encoder's weights under timm's and MAE's keys, for `load_vit`."""
        state = super().encoder_state()
        return {key: value for key, value in state.items() if "feature_pred." not in key}


@torch.no_grad()
def teacher_features(
    teacher: MAE, image: Tensor, noise: Tensor, *, supervise_all: bool = True
) -> Features:
    """Return what a teacher thinks: encoder before its norm, decoder after its last block.

    Args:
        teacher: As `load_teacher` leaves it.
        image: (B, C, H, W).
        noise: (B, N), the student's.
        supervise_all: All tokens, not hidden patches alone.
    """
    masking = teacher.draw_masking(image, noise)
    before = teacher.forward_tokens(image, keep=masking.keep).x
    hidden = teacher.decode_hidden(teacher.norm(before), masking.restore, teacher.grid_of(image))
    return Features(before, supervised(hidden, masking.mask, supervise_all), masking.mask)


def supervised(hidden: Tensor, mask: Tensor, every: bool) -> Tensor:
    """Return all tokens (B, 1 + N, D), or those of hidden patches (B, N - K, D)."""
    if every:
        return hidden
    return hidden[:, 1:][mask.bool()].unflatten(0, (len(mask), -1))


def feature_loss(pred: Tensor, hidden: Tensor, beta: float = 2.0) -> Tensor:
    """Return the smooth L1 loss to a normalised hidden state.

    Args:
        pred: (B, N, D) of the student.
        hidden: Same shape, of the teacher; normalised here, without scale and shift.
        beta: Where the loss goes over from squares to absolute values.
    """
    target = F.layer_norm(hidden.float(), hidden.shape[-1:], eps=_NORM_EPS)
    return F.smooth_l1_loss(pred.float(), target, beta=beta)


def load_teacher(model: MAE, source: str | Path | Mapping[str, Tensor], suplayer: int = 4) -> MAE:
    """Load a teacher from MAE's whole file and freeze it; keep what distillation needs.

    Args:
        model: Network of the file's size, changed in place: decoder blocks after `suplayer`, the
            decoder's norm and its last layer go.
        source: File or weights; the blocks and layers that go may be missing from it.
        suplayer: Number of decoder blocks to run.

    Raises:
        CheckpointError: a file without decoder, or of another size.
        ConfigError: fewer decoder blocks than `suplayer`.
    """
    if not 0 < suplayer <= len(model.decoder_blocks):
        raise ConfigError(
            f"The teacher has {len(model.decoder_blocks)} decoder blocks, so its decoder cannot "
            f"stop after {suplayer}: choose a suplayer from 1 to {len(model.decoder_blocks)}."
        )
    name, state = "the weights", source
    if not isinstance(source, Mapping):
        name, (state, _) = str(source), read_state_dict(source)
    if not any(key.startswith("decoder_") for key in state):
        raise CheckpointError(
            f"{name} holds no decoder_* weights, so the teacher's decoder would stay random: take "
            "MAE's whole file (mae_pretrain_vit_base_full.pth and its like)."
        )
    model.decoder_blocks = model.decoder_blocks[:suplayer]
    model.decoder_norm, model.decoder_pred = nn.Identity(), nn.Identity()
    own = model.state_dict().keys()
    left_out = ("decoder_blocks.", "decoder_norm.", "decoder_pred.")
    state = {k: v for k, v in state.items() if k in own or not k.startswith(left_out)}
    load_state(model, model.adapt_state(state), name)
    return model.requires_grad_(False).eval()


class G2SDTask(MAETask):
    """Trains a student on its teacher's hidden states. Batches hold `image` (B, C, H, W).

    Args:
        settings: Of `Task`; the network is a `G2SDStudent`.
        teacher: As `load_teacher` leaves it. It is no part of the task's state.
        encoder_weight: Weight of the loss of the encoder's hidden state; the authors' is 0.
        beta: Of the smooth L1 loss.
        options: Of `Task`.

    Raises:
        ConfigError: a student whose heads, patches or mask do not fit the teacher.
    """

    model: G2SDStudent  # type: ignore[assignment]

    def __init__(
        self,
        *settings: Any,
        teacher: MAE,
        encoder_weight: float = 0.0,
        beta: float = 2.0,
        **options: Any,
    ) -> None:
        """Keep the parts."""
        super().__init__(*settings, **options)
        _check_fit(self.model, teacher)
        self.encoder_weight, self.beta = encoder_weight, beta
        self._teacher = (teacher,)  # in a tuple, so that no checkpoint holds it

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss of a batch; teacher and student see the same patches."""
        image = batch["image"]
        noise, teacher = self.noise(image), self._teacher[0].to(image.device)
        wanted = teacher_features(teacher, image, noise, supervise_all=self.model.supervise_all)
        found: Features = self(image, noise)
        # A weight of 0 still gives the head a gradient, which distributed training waits for.
        encoder = self.encoder_weight * feature_loss(found.encoder, wanted.encoder, self.beta)
        return encoder + feature_loss(found.decoder, wanted.decoder, self.beta)


def _check_fit(student: G2SDStudent, teacher: MAE) -> None:
    pairs = {
        "encoder_pred_channel": (student.encoderfeature_pred.fc2.out_features, teacher.embed_dim),
        "decoder_pred_channel": (
            student.decoderfeature_pred.fc2.out_features,
            teacher.mask_token.shape[-1],
        ),
        "patch_size": (student.patch_size, teacher.patch_size),
        "mask_ratio": (student.mask_ratio, teacher.mask_ratio),
        "in_chans": (student.in_chans, teacher.in_chans),
    }
    for name, (own, wanted) in pairs.items():
        if own != wanted:
            raise ConfigError(
                f"The student's {name} is {own}, the teacher's {wanted}: build the student with "
                f"{name}={wanted}."
            )
