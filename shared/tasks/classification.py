"""Classification: findings that may occur together, or classes of which one is true."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from crossband.shared.errors import ConfigError, DataError
from crossband.shared.metrics.ranking import mean_auroc
from crossband.shared.tasks.base import Task

LossName = Literal["auto", "bce", "ce", "focal", "asymmetric"]
Monitor = Literal["auroc", "loss", "accuracy"]
UNKNOWN = -1  # class id of an image whose class is not known

_MONITORS: dict[str, tuple[str, int]] = {
    "auroc": ("val_auroc", -1),
    "loss": ("val_loss", 1),
    "accuracy": ("val_accuracy", -1),
}
# Focusing of positives and of negatives, and margin of negatives.
_FOCUS = {"focal": (2.0, 2.0, 0.0), "asymmetric": (0.0, 4.0, 0.05)}


class ClassificationTask(Task):
    """Trains a network that gives logits (B, K) of images (B, C, H, W).

    Batches hold `image` and `label`: (B, K) of 1, 0 or NaN (not known, left out), or class ids (B,)
    if `exclusive`, -1 where not known. Logged over the whole validation set are `val_loss`,
    `val_auroc` (mean over the findings, or classes against the rest, that have both values) and
    `val_accuracy` (share of classes, or of labels at a probability of one half, that are right).

    Args:
        settings: Of `Task`.
        exclusive: Classes exclude each other.
        loss: `auto` is `bce` of findings and `ce` of classes; `focal` (Lin et al. 2017, gamma 2)
            and `asymmetric` (Ridnik et al. 2021, gammas 0 and 4, margin 0.05) are for findings.
        pos_weight: Factor of the loss of positives, one per finding.
        class_weights: Of cross-entropy, one per class.
        label_smoothing: Part of the label that is spread over its values.
        monitor: What chooses the best weights.
        options: Of `Task`.

    Raises:
        ConfigError: options that do not go together.
    """

    def __init__(
        self,
        *settings: Any,
        exclusive: bool = False,
        loss: LossName = "auto",
        pos_weight: Sequence[float] = (),
        class_weights: Sequence[float] = (),
        label_smoothing: float = 0.0,
        monitor: Monitor = "auroc",
        **options: Any,
    ) -> None:
        """Keep the parts."""
        super().__init__(*settings, **options)
        if loss == "auto":
            loss = "ce" if exclusive else "bce"
        if exclusive != (loss == "ce"):
            kind, fits = ("classes", "ce") if exclusive else ("findings", "bce, focal, asymmetric")
            raise ConfigError(f"The loss {loss!r} does not fit {kind}: take one of {fits}.")
        if exclusive and len(pos_weight):
            raise ConfigError("pos_weight is of findings: give class_weights for classes.")
        if not exclusive and len(class_weights):
            raise ConfigError("class_weights are of classes: give pos_weight for findings.")
        self.exclusive, self.loss_name = exclusive, loss
        weights = class_weights if exclusive else pos_weight
        self.weights = torch.tensor(weights, dtype=torch.float32) if len(weights) else None
        self.label_smoothing = label_smoothing
        self.monitor = _MONITORS[monitor]
        self._seen: list[tuple[Tensor, Tensor]] = []

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch."""
        return self.objective(self._logits(batch), batch["label"])

    def _logits(self, batch: dict[str, Tensor]) -> Tensor:
        return self(batch["image"].contiguous(memory_format=torch.channels_last)).float()

    def objective(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the mean loss over what is known, 0 where nothing is.

        Args:
            logits: (B, K).
            label: (B, K), or (B,) of classes.

        Raises:
            ConfigError: weights of another number of classes.
        """
        weights = self.weights
        if weights is not None:
            if len(weights) != logits.shape[1]:
                name = "class_weights" if self.exclusive else "pos_weight"
                raise ConfigError(
                    f"{name} has {len(weights)} numbers and the network {logits.shape[1]} outputs: "
                    "give one for each."
                )
            weights = weights.to(logits)
        if self.exclusive:
            return _cross_entropy(logits, label, weights, self.label_smoothing)
        known = ~label.isnan()
        target = torch.where(known, label, 0.0)
        if self.label_smoothing:
            target = target * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        if self.loss_name == "bce":
            losses = F.binary_cross_entropy_with_logits(
                logits, target, pos_weight=weights, reduction="none"
            )
        else:
            positive, negative, margin = _FOCUS[self.loss_name]
            losses = asymmetric_loss(logits, target, positive, negative, margin, weights)
        return torch.where(known, losses, 0.0).sum() / known.sum().clamp(min=1)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Keep logits and labels."""
        self._seen.append((self._logits(batch), batch["label"]))

    def on_validation_epoch_end(self) -> None:
        """Log the scores over the whole validation set.

        Raises:
            DataError: the AUROC chooses the weights and no finding has both values.
        """
        logits, label = (torch.cat(part) for part in zip(*self._seen, strict=True))
        self._seen = []
        if self.trainer.world_size > 1:
            logits, label = self._whole(logits), self._whole(label)
        scores = self._scores(logits, label)
        if self.monitor[0] == "val_auroc" and not _rankable(label, logits.shape[1]):
            raise DataError(
                f"None of the findings is both present and absent in the {len(label)} validation "
                "images, so the AUROC cannot choose the weights: hold back more images, or let the "
                "loss choose."
            )
        for name, value in scores.items():
            self.log(f"val_{name}", value, sync_dist=True)  # equal in all processes

    def _whole(self, values: Tensor) -> Tensor:
        """Gather what the processes hold, in the order of the data.

        Each has every n-th item, and the first items again where the number does not divide.
        """
        gathered = self.all_gather(values).transpose(0, 1).flatten(0, 1)
        return gathered[: len(self.trainer.val_dataloaders.dataset)]

    def _scores(self, logits: Tensor, label: Tensor) -> dict[str, float]:
        loss = float(self.objective(logits, label))
        if self.exclusive:
            known = label != UNKNOWN
            logits, label = logits[known], label[known]
            right = logits.argmax(1) == label
            truth = F.one_hot(label, logits.shape[1])
            ranked = mean_auroc(_numpy(logits.softmax(1)), _numpy(truth))
        else:
            ranked = mean_auroc(_numpy(logits), _numpy(label))
            known = ~label.isnan()
            right = (logits > 0)[known] == (label > 0.5)[known]
        return {"loss": loss, "auroc": ranked, "accuracy": float(right.float().mean())}


def asymmetric_loss(
    logits: Tensor,
    target: Tensor,
    gamma_positive: float,
    gamma_negative: float,
    margin: float,
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Return `-w y (1-p)^g+ log p - (1-y) q^g- log(1-q)` with `q = max(p - m, 0)`, not reduced.

    Equations 1 and 5 to 7 of Ridnik et al. 2021; with equal gammas and no margin the focal loss.

    Args:
        logits: Any shape.
        target: The same shape, 0 to 1.
        gamma_positive: How much easy positives are turned down.
        gamma_negative: How much easy negatives are turned down.
        margin: Negatives below this probability do not count.
        pos_weight: Factor w of positives, of the shape of the last axis.
    """
    chance, opposite = torch.sigmoid(logits), torch.sigmoid(-logits)
    present = -F.logsigmoid(logits) * opposite**gamma_positive
    if margin:
        shifted = (chance - margin).clamp(min=0)
        absent = -torch.log((opposite + margin).clamp(max=1)) * shifted**gamma_negative
    else:
        absent = -F.logsigmoid(-logits) * chance**gamma_negative
    if pos_weight is not None:
        present = present * pos_weight
    return target * present + (1 - target) * absent


def _cross_entropy(
    logits: Tensor, label: Tensor, weights: Tensor | None, label_smoothing: float
) -> Tensor:
    losses = F.cross_entropy(
        logits,
        label,
        weights,
        ignore_index=UNKNOWN,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    known = label != UNKNOWN
    if weights is None:
        return losses / known.sum().clamp(min=1)
    total = weights[label[known]].sum()
    return losses / torch.where(total > 0, total, 1.0)


def _rankable(label: Tensor, classes: int) -> bool:
    if label.dim() == 1:
        known = label[label != UNKNOWN]
        return len(known.unique()) > 1
    return bool(((label == 1).any(0) & (label == 0).any(0)).any())


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
