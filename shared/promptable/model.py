"""All of Segment Anything: `sam_vit_b_01ec64.pth`, `sam_vit_l_0b3195.pth`, `sam_vit_h_4b8939.pth`.

| size | embed_dim | depth | num_heads | global_attn_indexes |
|---|---|---|---|---|
| base | 768 | 12 | 12 | 2, 5, 8, 11 |
| large | 1024 | 24 | 16 | 5, 11, 17, 23 |
| huge | 1280 | 32 | 16 | 7, 15, 23, 31 |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.backbones.sam import SAMEncoder
from crossband.shared.errors import ConfigError
from crossband.shared.layers.resize import resize
from crossband.shared.promptable.decoder import MaskDecoder
from crossband.shared.promptable.prompts import PromptEncoder
from crossband.shared.promptable.transformer import TwoWayTransformer

PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of 0..255
_ENCODER = "image_encoder."


class SAM(nn.Module):
    """Outlines what a prompt means. Logits above 0 are the object.

    Args:
        img_size: S, side of the input frame, a multiple of `patch_size`.
        patch_size: Side of a patch.
        embed_dim: Channels of the image encoder's tokens.
        depth: Its blocks.
        num_heads: Its heads.
        mlp_ratio: Hidden channels of its MLPs over `embed_dim`.
        out_chans: C, channels of its map and of the decoder.
        use_abs_pos: Whether it has a table of positions.
        window_size: Side of its windows, in tokens.
        global_attn_indexes: Its blocks that attend globally.
        decoder_depth: Blocks of the mask decoder.
        decoder_heads: Their heads.
        decoder_mlp_dim: Hidden channels of their MLPs.
        mask_in_chans: Channels of a rough mask on its way down.
        num_multimask_outputs: Masks for a prompt of several meanings.
        iou_head_hidden_dim: Hidden channels of what tells the masks' quality.
    """

    def __init__(
        self,
        *,
        img_size: int = 1024,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        out_chans: int = 256,
        use_abs_pos: bool = True,
        window_size: int = 14,
        global_attn_indexes: Sequence[int] = (2, 5, 8, 11),
        decoder_depth: int = 2,
        decoder_heads: int = 8,
        decoder_mlp_dim: int = 2048,
        mask_in_chans: int = 16,
        num_multimask_outputs: int = 3,
        iou_head_hidden_dim: int = 256,
    ) -> None:
        """Build the three parts.

        Raises:
            ConfigError: a side that is not cut into whole patches, or channels that cannot be.
        """
        super().__init__()
        if img_size % patch_size or img_size < patch_size:
            raise ConfigError(
                f"A side of {img_size} pixels is not cut into whole patches of {patch_size}: give "
                f"a multiple of {patch_size}."
            )
        side = img_size // patch_size
        self.img_size, self.patch_size = img_size, patch_size
        self.image_encoder = SAMEncoder(
            img_size=img_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            out_chans=out_chans,
            use_abs_pos=use_abs_pos,
            window_size=window_size,
            global_attn_indexes=global_attn_indexes,
        )
        self.prompt_encoder = PromptEncoder(
            out_chans, (side, side), (img_size, img_size), mask_in_chans
        )
        transformer = TwoWayTransformer(decoder_depth, out_chans, decoder_heads, decoder_mlp_dim)
        self.mask_decoder = MaskDecoder(
            out_chans, transformer, num_multimask_outputs, iou_head_hidden_dim=iou_head_hidden_dim
        )
        # Not in the authors' files.
        for name, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, boxes: Tensor | None = None) -> Tensor:
        """Return the mask of one box in each image, logits (B, 1, 4 S / p, 4 S / p).

        Args:
            images: Normalised and padded, (B, 3, S, S).
            boxes: Corners x0, y0, x1, y1, (B, 4), pixels of the input frame; default: all of it.
        """
        if boxes is None:
            corners = [0, 0, self.img_size - 1, self.img_size - 1]
            boxes = images.new_tensor(corners).expand(len(images), 4)
        return self.decode(self.encode(images), boxes=boxes)[0]

    def encode(self, images: Tensor) -> Tensor:
        """Return the maps (B, C, S / p, S / p) of normalised and padded images (B, 3, S, S)."""
        return self.image_encoder(images)[0]

    def decode(
        self,
        maps: Tensor,
        *,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, M, 4 S / p, 4 S / p) and predicted IoU (B, M) of B prompts.

        Args:
            maps: Of `encode`: (B, C, h, w) of each prompt's image, or (1, C, h, w) of one image.
            points: Places (B, N, 2) and labels (B, N); see `PromptEncoder`.
            boxes: Corners (B, 4).
            masks: Logits of rough masks, (B, 1, 4 h, 4 w).
            multimask: Give the masks for several meanings, not the one for a clear prompt.
        """
        sparse, dense = self.prompt_encoder(points, boxes, masks)
        positions = self.prompt_encoder.dense_positions()
        return self.mask_decoder(maps, positions, sparse, dense, multimask)

    def preprocess(self, pixels: Tensor) -> Tensor:
        """Normalise RGB 0..255, (..., 3, h, w) of sides up to S; pad right and below with zeros."""
        height, width = pixels.shape[-2:]
        image = (pixels - self.pixel_mean) / self.pixel_std
        return F.pad(image, (0, self.img_size - width, 0, self.img_size - height))

    def postprocess(self, logits: Tensor, inner: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Return logits (B, M, H, W) at the size of the image, without the padding.

        Args:
            logits: Of `forward` or `decode`.
            inner: Height and width of the image within the input frame.
            size: Height and width of the image itself.
        """
        frame = resize(logits, (self.img_size, self.img_size))
        return resize(frame[..., : inner[0], : inner[1]], size)

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bring weights to this network: the encoder's tables of another size are interpolated."""
        inner = {k[len(_ENCODER) :]: v for k, v in state.items() if k.startswith(_ENCODER)}
        adapted = self.image_encoder.adapt_state(inner)
        rest = {key: value for key, value in state.items() if not key.startswith(_ENCODER)}
        return {**rest, **{_ENCODER + key: value for key, value in adapted.items()}}
