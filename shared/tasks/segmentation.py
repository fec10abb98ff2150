"""Segmentation: a class for every pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from crossband.shared.errors import MissingExtraError
from crossband.shared.layers.resize import resize
from crossband.shared.metrics import ConfusionMatrix
from crossband.shared.tasks.base import Task

LossName = Literal["ce", "ce_dice", "ce_dice_all", "dice_ce", "soft_iou", "ce_soft_iou"]
Monitor = Literal["miou", "iou", "loss"]
_MONITORS: dict[str, tuple[str, int]] = {
    "miou": ("val_miou", -1),
    "iou": ("val_iou", -1),
    "loss": ("val_loss", 1),
}


class SegmentationTask(Task):
    """Trains a network that gives logits (B, K, H, W) of images (B, C, H, W).

    Batches hold `image` and `mask`, class ids (B, H, W) with 255 for what is ignored. In
    validation masks may have another size than images: logits are brought to it. Logged are
    `val_loss`, `val_miou` and `val_iou`, the IoU of the last class.

    Args:
        settings: Of `Task`; networks with `training_logits(image) -> (logits, auxiliary)` are
            trained by both heads.
        loss: What is minimised. `ce_dice` leaves the background out of the overlap, `ce_dice_all`
            counts it (LVM-Med, section 5), `dice_ce` is MONAI's `DiceCELoss` (means over images).
            The auxiliary head is trained by cross-entropy alone.
        class_weights: Of cross-entropy, one per class.
        avg_non_ignore: Average over labelled pixels, not over all (mmseg's default).
        auxiliary_weight: Of the auxiliary loss.
        infer: Maps one image (C, H, W) to logits (K, H, W) in validation; default: at once.
        monitor: What chooses the best weights.
        options: Of `Task`.
    """

    def __init__(
        self,
        *settings: Any,
        loss: LossName = "ce",
        class_weights: Sequence[float] = (),
        avg_non_ignore: bool = True,
        auxiliary_weight: float = 0.4,
        infer: Callable[[Tensor], Tensor] | None = None,
        monitor: Monitor = "miou",
        **options: Any,
    ) -> None:
        """Keep the parts."""
        super().__init__(*settings, **options)
        self.loss_name = loss
        self.class_weights = torch.tensor(class_weights) if class_weights else None
        self.avg_non_ignore = avg_non_ignore
        self.auxiliary_weight = auxiliary_weight
        self.infer = infer
        self.monitor = _MONITORS[monitor]
        self.matrix: ConfusionMatrix | None = None

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch."""
        image = batch["image"].contiguous(memory_format=torch.channels_last)
        both = getattr(self.model, "training_logits", None)
        main, auxiliary = both(image) if both else (self(image), None)
        total = self.objective(main, batch["mask"])
        if auxiliary is not None:
            total = total + self.auxiliary_weight * self.cross_entropy(auxiliary, batch["mask"])
        return total

    def objective(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the main loss of logits (B, K, h, w), resized to the mask (B, H, W)."""
        logits = resize(logits, mask.shape[-2:]).float()
        total = logits.new_zeros(())
        if self.loss_name == "dice_ce":
            weight = None if self.class_weights is None else self.class_weights.to(logits)
            return _monai_dice_ce(logits, mask, weight)
        if self.loss_name.startswith("ce"):
            total = total + self.cross_entropy(logits, mask)
        if self.loss_name == "ce_dice":
            total = total + overlap_loss(logits, mask, "dice")
        elif self.loss_name == "ce_dice_all":
            total = total + overlap_loss(logits, mask, "dice", background=True, smooth=1e-6)
        elif self.loss_name.endswith("soft_iou"):
            total = total + overlap_loss(logits, mask, "iou")
        return total

    def cross_entropy(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return mmseg's cross-entropy of logits that are resized to the mask."""
        logits = resize(logits, mask.shape[-2:]).float()
        weight = None if self.class_weights is None else self.class_weights.to(logits)
        losses = F.cross_entropy(logits, mask, weight, ignore_index=255, reduction="sum")
        pixels = (mask != 255).sum().clamp(min=1) if self.avg_non_ignore else mask.numel()
        return losses / pixels

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Count pixels and log the loss."""
        image, mask = batch["image"], batch["mask"]
        if self.infer is None:
            logits = self(image)
        else:
            logits = torch.stack([self.infer(one) for one in image])
        logits = resize(logits, mask.shape[-2:]).float()
        if self.matrix is None:
            self.matrix = ConfusionMatrix(logits.shape[1])
        self.matrix.update(logits.argmax(1), mask)
        loss = self.objective(logits, mask)
        self.log("val_loss", loss, batch_size=len(image), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log the scores over the whole validation set."""
        assert self.matrix is not None
        counts = self.matrix.counts.to(self.device)
        if self.trainer.world_size > 1:
            counts = self.all_gather(counts).sum(0)
        self.matrix.counts = counts
        scores = self.matrix.scores()
        self.log("val_miou", scores.mean(scores.iou), rank_zero_only=False)
        self.log("val_iou", float(scores.iou[-1].nan_to_num()), rank_zero_only=False)
        self.matrix = None


def overlap_loss(
    logits: Tensor,
    mask: Tensor,
    kind: Literal["dice", "iou"],
    *,
    background: bool = False,
    smooth: float = 1.0,
) -> Tensor:
    """Return 1 minus the mean of the classes' soft overlaps, over the whole batch.

    Soft IoU is `(sum p t + s) / (sum p + sum t - sum p t + s)`, Dice
    `(2 sum p t + s) / (sum p + sum t + s)`; the s defines images without a class.

    Args:
        logits: (B, K, H, W).
        mask: (B, H, W), 255 is ignored.
        kind: Which overlap.
        background: Count class 0 too.
        smooth: s.
    """
    valid = (mask != 255)[:, None]
    chance = logits.softmax(1) * valid
    truth = F.one_hot(mask.where(mask != 255, 0), logits.shape[1]).movedim(-1, 1) * valid
    axes, first = (0, 2, 3), 0 if background else 1
    both = (chance * truth).sum(axes)[first:]
    sums = (chance.sum(axes) + truth.sum(axes))[first:]
    if kind == "iou":
        return 1 - ((both + smooth) / (sums - both + smooth)).mean()
    return 1 - ((2 * both + smooth) / (sums + smooth)).mean()


def _monai_dice_ce(logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
    """Return MONAI's DiceCELoss; what is ignored counts as background.

    Raises:
        MissingExtraError: MONAI is not installed.
    """
    try:
        from monai.losses import DiceCELoss
    except ModuleNotFoundError as error:
        raise MissingExtraError("monai", "medical") from error
    loss = DiceCELoss(softmax=True, to_onehot_y=True, weight=weight)
    return loss(logits, mask.where(mask != 255, 0)[:, None])
