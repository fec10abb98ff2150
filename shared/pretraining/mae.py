"""Masked autoencoders (He et al. 2022, arXiv 2111.06377): pre-training without labels.

The encoder sees a quarter of the patches, a small decoder draws the others. Keys are the authors',
so their whole files load, and `encoder_state` gives what a `ViTClassifier` or `ViT` takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.backbones.vit import Block, ViTTrunk
from crossband.shared.errors import CheckpointError
from crossband.shared.kernels.linear import Linear
from crossband.shared.layers.pos_embed import resample_pos_embed, sincos_pos_embed
from crossband.shared.pretraining.masking import Masking, random_masking, visible_count
from crossband.shared.tasks.base import Task

if TYPE_CHECKING:
    from crossband.shared.pretraining.cnn_mae import CNNMAE

_PIXEL_EPS = 1e-6
_VALIDATION_SEED = 20_220_619


class MAEOutput(NamedTuple):
    """What a pass through a masked autoencoder gives.

    Attributes:
        loss: Mean squared error over the hidden patches, a scalar.
        pred: (B, N, p p C) drawn patches; standardised ones with `norm_pix_loss`.
        mask: (B, N), 0 where a patch was visible, 1 where it was hidden.
    """

    loss: Tensor
    pred: Tensor
    mask: Tensor


class MAE(ViTTrunk):
    """A ViT that learns to draw the patches it does not see.

    Args:
        img_size: Side, or (H, W), that the tables of positions are made for; others are taken too.
        patch_size: p, side of a patch. Images are filled up with zeros to whole patches.
        in_chans: C, channels of the image.
        embed_dim: Channels of the encoder.
        depth: Its blocks.
        num_heads: Its heads.
        decoder_embed_dim: Channels of the decoder.
        decoder_depth: Its blocks.
        decoder_num_heads: Its heads.
        mlp_ratio: Hidden channels of the MLPs over their width.
        norm_eps: Of all norms.
        norm_pix_loss: Compare with patches of mean 0 and variance 1 (section 3).
        mask_ratio: Part of the patches that is hidden.

    Raises:
        ConfigError: a mask ratio that hides nothing or all, or heads that do not divide a width.
    """

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        norm_pix_loss: bool = False,
        mask_ratio: float = 0.75,
    ) -> None:
        """Build encoder and decoder, initialised as the authors do."""
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            pos_embed="sincos",
            norm_eps=norm_eps,
        )
        self.in_chans, self.norm_pix_loss, self.mask_ratio = in_chans, norm_pix_loss, mask_ratio
        visible_count(self.grid[0] * self.grid[1], mask_ratio)
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.decoder_embed = Linear(embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_embed_dim))
        self.decoder_pos_embed = nn.Parameter(
            sincos_pos_embed(decoder_embed_dim, self.grid), requires_grad=False
        )
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_embed_dim, decoder_num_heads, mlp_ratio=mlp_ratio, norm_eps=norm_eps)
            for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=norm_eps)
        self.decoder_pred = Linear(decoder_embed_dim, patch_size**2 * in_chans)
        nn.init.normal_(self.mask_token, std=0.02)
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            initialise_linear(part)

    def forward(self, image: Tensor, noise: Tensor | None = None) -> MAEOutput:
        """Hide patches, draw them, compare.

        Args:
            image: (B, C, H, W).
            noise: (B, N) numbers; the patches with the least stay visible. None: drawn here.
        """
        masking = self.draw_masking(image, noise)
        latent = self.norm(self.forward_tokens(image, keep=masking.keep).x)
        pred = self.decode(latent, masking.restore, self.grid_of(image))
        return MAEOutput(self.pixel_loss(image, pred, masking.mask), pred, masking.mask)

    def draw_masking(self, image: Tensor, noise: Tensor | None = None) -> Masking:
        """Return which patches of an image (B, C, H, W) are visible."""
        rows, columns = self.grid_of(image)
        if noise is None:
            noise = torch.rand(len(image), rows * columns, device=image.device)
        return random_masking(noise, visible_count(rows * columns, self.mask_ratio))

    def grid_of(self, image: Tensor) -> tuple[int, int]:
        """Return rows and columns of the patches of an image (B, C, H, W)."""
        return -(-image.shape[-2] // self.patch_size), -(-image.shape[-1] // self.patch_size)

    def decode_hidden(
        self, latent: Tensor, restore: Tensor, grid: tuple[int, int], blocks: int | None = None
    ) -> Tensor:
        """Return the decoder's tokens before its norm, (B, 1 + N, Dd), class token first.

        Args:
            latent: (B, 1 + K, D) visible tokens after the encoder's norm.
            restore: (B, N) of the masking.
            grid: Rows and columns of the patches.
            blocks: Decoder blocks to run; None: all.
        """
        x = self.decoder_embed(latent)
        hidden = restore.shape[1] + 1 - x.shape[1]
        tokens = torch.cat([x[:, 1:], self.mask_token.to(x).expand(len(x), hidden, -1)], dim=1)
        tokens = tokens.gather(1, restore[..., None].expand(-1, -1, x.shape[-1]))
        table = resample_pos_embed(self.decoder_pos_embed, self.grid, grid)
        x = torch.cat([x[:, :1], tokens], dim=1) + table
        for block in self.decoder_blocks[:blocks]:
            x = block(x)
        return x

    def decode(self, latent: Tensor, restore: Tensor, grid: tuple[int, int]) -> Tensor:
        """Draw the patches (B, N, p p C); arguments as for `decode_hidden`."""
        hidden = self.decode_hidden(latent, restore, grid)
        return self.decoder_pred(self.decoder_norm(hidden[:, 1:]))

    def patchify(self, image: Tensor) -> Tensor:
        """Cut (B, C, H, W) into patches (B, N, p p C): row, column, channel."""
        p = self.patch_size
        image = F.pad(image, (0, (-image.shape[-1]) % p, 0, (-image.shape[-2]) % p))
        cut = image.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # (B, C, rows, p, columns, p)
        return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def unpatchify(self, patches: Tensor, size: tuple[int, int]) -> Tensor:
        """Put patches (B, N, p p C) together to an image (B, C, H, W) of `size`."""
        p, (height, width) = self.patch_size, size
        cut = patches.unflatten(2, (p, p, -1)).unflatten(1, (-(-height // p), -(-width // p)))
        return cut.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)[..., :height, :width]

    def pixel_loss(self, image: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        """Return the mean squared error over the hidden patches, a scalar in float32."""
        target = self.patchify(image.float())
        if self.norm_pix_loss:
            mean, deviation = _statistics(target)
            target = (target - mean) / deviation
        error = (pred.float() - target).square().mean(-1)
        return (error * mask).sum() / mask.sum()

    @torch.no_grad()
    def reconstruct(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the image (B, C, H, W) with its hidden patches drawn, visible ones as they are.

        With `norm_pix_loss` drawn patches get the true mean and contrast, which no pixel tells.
        """
        _, pred, mask = self(image, noise)
        patches = self.patchify(image.float())
        if self.norm_pix_loss:
            mean, deviation = _statistics(patches)
            pred = pred * deviation + mean
        drawn = torch.where(mask[..., None].bool(), pred.float(), patches)
        return self.unpatchify(drawn, (image.shape[-2], image.shape[-1]))

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the encoder's weights under timm's and MAE's keys, for `load_vit`."""
        return {key: value for key, value in self.state_dict().items() if not is_decoder(key)}

    def no_weight_decay(self) -> set[str]:
        """Return no name: in pre-training only biases and norms are spared (appendix A.1)."""
        return set()

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bring weights to this network: both tables of positions may be of another grid."""
        state = super().adapt_state(state)
        table = state.get("decoder_pos_embed")
        if table is not None and table.shape != self.decoder_pos_embed.shape:
            state["decoder_pos_embed"] = super().adapt_state({"pos_embed": table})["pos_embed"]
        return state

    def adapt_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bring others' weights, whose tables are of square grids, to this network's grid."""
        state = super().adapt_official(state)
        table, places = state.get("decoder_pos_embed"), self.grid[0] * self.grid[1]
        side = round(places**0.5)
        if table is not None and table.shape[1] == places + 1 and side * side == places:
            state["decoder_pos_embed"] = resample_pos_embed(table, (side, side), self.grid)
        return state


class MAETask(Task):
    """Trains a masked autoencoder. Batches hold `image` (B, C, H, W), normalised.

    Patches are hidden by noise of the global generator; in validation by the same noise each time,
    so that losses of different epochs can be compared.
    """

    model: MAE | CNNMAE

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss of a batch."""
        image = batch["image"]
        return self(image, self.noise(image)).loss

    def noise(self, image: Tensor) -> Tensor:
        """Draw what hides the patches of an image (B, C, H, W), (B, N)."""
        rows, columns = self.model.grid_of(image)
        shape = (len(image), rows * columns)
        if self.training:
            return torch.rand(shape, device=image.device)
        generator = torch.Generator().manual_seed(_VALIDATION_SEED)
        return torch.rand(shape, generator=generator).to(image.device)


def initialise_linear(part: nn.Module) -> None:
    """Initialise every linear layer as MAE does: Xavier-uniform weights, biases of 0."""
    for module in part.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def is_decoder(key: str) -> bool:
    """Say whether a key of a masked autoencoder belongs to its decoder."""
    return key.startswith("decoder_") or key == "mask_token"


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the authors' weights as they are: our keys are theirs.

    Raises:
        CheckpointError: a file of the encoder alone; its decoder would stay random.
    """
    if "decoder_embed.weight" not in state:
        raise CheckpointError(
            "The file holds no decoder_* weights: it is MAE's encoder alone, take the full file "
            "(mae_pretrain_vit_base_full.pth and its like), or load it into a ViT by load_vit."
        )
    return dict(state)


def to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict as it is: our keys are MAE's."""
    return dict(state)


def _statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of every patch, (B, N, 1) each."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + _PIXEL_EPS).sqrt()
