"""What else a backbone can be pre-trained with on two views: the rivals of LVM-Med.

Heads and losses are those of `lightly` (MIT). Each method is a network of its own around any
backbone, whose last map is averaged; `ContrastiveTask` trains it. Batches are those of
`crossband.medical.lvm_med.views.PairedViews`: `views`, two large crops of every image, and `small`,
which DINO alone looks at.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import crossband.shared.compat  # noqa: F401 - before lightly, which imports torchvision

import torch
from torch import Tensor, nn

from crossband.shared.backbones.base import AroundBackbone, Backbone
from crossband.shared.errors import ConfigError, MissingExtraError, did_you_mean
from crossband.shared.tasks.base import Task


class Rival(AroundBackbone, nn.Module):
    """A backbone and one method's heads and loss.

    Args:
        backbone: Gives maps (B, C, H, W).

    Attributes:
        epoch: Of the step that is taken.
        progress: Part of the training that is done, 0 to 1.
    """

    def __init__(self, backbone: Backbone) -> None:
        """Keep the backbone."""
        super().__init__()
        self.backbone = backbone
        self.dim = backbone.out_channels[-1]
        self.epoch, self.progress = 0, 0.0

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss of a batch, a scalar.

        Raises:
            ConfigError: fewer than two views, or than two images, which no method can compare.
        """
        views = batch["views"]
        if len(views) < 2 or len(views[0]) < 2:
            raise ConfigError(
                f"A batch of {len(views)} views of {len(views[0])} images: {type(self).__name__} "
                "compares at least two of each."
            )
        return self.loss(views[0], views[1], batch)

    def loss(self, first: Tensor, second: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss of two views (B, 3, S, S)."""
        raise NotImplementedError

    def after_backward(self) -> None:
        """Change gradients before the optimiser takes them."""

    def after_step(self) -> None:
        """Follow the weights that the optimiser has changed."""


class _TwoViews(Rival):
    """Compares projections of two views by a loss that treats them alike."""

    def __init__(self, backbone: Backbone, head: nn.Module, objective: nn.Module) -> None:
        super().__init__(backbone)
        self.head, self.objective = head, objective

    def loss(self, first: Tensor, second: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss of two views (B, 3, S, S)."""
        return exact(
            self.objective, *(self.head(pooled(self.backbone, x)) for x in (first, second))
        )


class SimCLR(_TwoViews):
    """SimCLR (Chen et al. 2020): the other view among all other images of the batch.

    Args:
        backbone: See `Rival`.
        hidden: Width of the head.
        out: Width of the projection.
        temperature: Of the softmax.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        hidden: int = 2048,
        out: int = 128,
        temperature: float = 0.1,
    ) -> None:
        """Build head and loss."""
        losses, heads = _lightly()
        head = heads.SimCLRProjectionHead(backbone.out_channels[-1], hidden, out)
        super().__init__(backbone, head, losses.NTXentLoss(temperature, gather_distributed=_many()))


class VICReg(_TwoViews):
    """VICReg (Bardes et al. 2022): equal views, deviations of one, no covariance.

    Args:
        backbone: See `Rival`.
        hidden: Width of the head.
        out: Width of the projection.
        invariance: Weight of the distance of the views.
        variance: Weight of the deviations.
        covariance: Weight of the covariances.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        hidden: int = 8192,
        out: int = 8192,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
    ) -> None:
        """Build head and loss."""
        losses, heads = _lightly()
        head = heads.VICRegProjectionHead(backbone.out_channels[-1], hidden, out)
        weights = (invariance, variance, covariance)
        super().__init__(backbone, head, losses.VICRegLoss(*weights, gather_distributed=_many()))


class BarlowTwins(_TwoViews):
    """Barlow Twins (Zbontar et al. 2021): the correlation of the views is the identity.

    Args:
        backbone: See `Rival`.
        hidden: Width of the head.
        out: Width of the projection.
        redundancy: Weight of what lies off the diagonal (the paper's lambda).
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        hidden: int = 8192,
        out: int = 8192,
        redundancy: float = 5e-3,
    ) -> None:
        """Build head and loss."""
        losses, heads = _lightly()
        head = heads.BarlowTwinsProjectionHead(backbone.out_channels[-1], hidden, out)
        super().__init__(
            backbone, head, losses.BarlowTwinsLoss(redundancy, gather_distributed=_many())
        )


class _Taught(Rival):
    """Has a teacher: a slower copy of backbone and head, which no gradient reaches.

    After each step of the optimiser `teacher = m teacher + (1 - m) student`, where m rises from
    `momentum` to 1 on a cosine over the training. Running statistics are the teacher's own.
    """

    def __init__(
        self, backbone: Backbone, head: nn.Module, teacher_head: nn.Module, momentum: float
    ) -> None:
        super().__init__(backbone)
        if not 0 <= momentum <= 1:
            raise ConfigError(f"momentum {momentum:g} must be in [0, 1].")
        self.head, self.momentum = head, momentum
        teacher_head.load_state_dict(head.state_dict())
        self.teacher = nn.ModuleDict({"backbone": copy.deepcopy(backbone), "head": teacher_head})
        self.teacher.requires_grad_(False)

    def taught(self, image: Tensor) -> Tensor:
        """Return the teacher's projection (B, out), without a gradient."""
        with torch.no_grad():
            return self.teacher["head"](pooled(self.teacher["backbone"], image))

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the teacher towards the student."""
        m = 1 - (1 - self.momentum) * (1 + math.cos(math.pi * self.progress)) / 2
        for mine, own in ((self.backbone, "backbone"), (self.head, "head")):
            pairs = zip(mine.parameters(), self.teacher[own].parameters(), strict=True)
            for student, teacher in pairs:
                teacher.lerp_(student.detach().to(teacher.dtype), 1 - m)


class BYOL(_Taught):
    """BYOL (Grill et al. 2020): one view predicts what a slower copy makes of the other.

    The loss is the mean of both directions' negative cosine, -1 to 1 (the paper's is
    `4 + 4 loss`).

    Args:
        backbone: See `Rival`.
        hidden: Width of head and predictor.
        out: Width of the projection.
        momentum: Of the teacher, at the start.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        hidden: int = 4096,
        out: int = 256,
        momentum: float = 0.996,
    ) -> None:
        """Build heads and loss."""
        losses, heads = _lightly()
        dim = backbone.out_channels[-1]
        head, slow = (heads.BYOLProjectionHead(dim, hidden, out) for _ in range(2))
        super().__init__(backbone, head, slow, momentum)
        self.predictor = heads.BYOLPredictionHead(out, hidden, out)
        self.objective = losses.NegativeCosineSimilarity()

    def loss(self, first: Tensor, second: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss of two views (B, 3, S, S)."""
        terms = []
        for here, there in ((first, second), (second, first)):
            found = self.predictor(self.head(pooled(self.backbone, here)))
            terms.append(exact(self.objective, found, self.taught(there)))
        return (terms[0] + terms[1]) / 2


class DINO(_Taught):
    """DINO (Caron et al. 2021): all crops sort an image as a slower copy sorts its large ones.

    Args:
        backbone: See `Rival`; it has to take small crops too.
        hidden: Width of the head.
        bottleneck: Width before the last layer.
        out: Number of prototypes.
        momentum: Of the teacher, at the start.
        temperature: Of the student.
        teacher_temperature: Of the teacher, at first and after `warmup` epochs.
        warmup: Epochs in which the teacher's temperature rises.
        frozen: Epochs in which the last layer does not learn.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        hidden: int = 2048,
        bottleneck: int = 256,
        out: int = 65536,
        momentum: float = 0.996,
        temperature: float = 0.1,
        teacher_temperature: tuple[float, float] = (0.04, 0.07),
        warmup: int = 30,
        frozen: int = 1,
    ) -> None:
        """Build heads and loss."""
        losses, heads = _lightly()
        widths = (backbone.out_channels[-1], hidden, bottleneck, out)
        with warnings.catch_warnings():  # lightly's head takes PyTorch's former weight_norm
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            head, slow = (
                heads.DINOProjectionHead(*widths, freeze_last_layer=frozen) for _ in range(2)
            )
        super().__init__(backbone, head, slow, momentum)
        low, high = teacher_temperature
        self.objective = losses.DINOLoss(out, low, high, warmup, temperature)

    def loss(self, first: Tensor, second: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss of two large views and all small ones; the centre moves in training."""
        views = (first, second)
        teacher = [self.taught(view) for view in views]
        student = [
            self.head(pooled(self.backbone, view)) for view in (*views, *batch.get("small", ()))
        ]
        centre = self.objective.center.clone()
        found = exact(self.objective, teacher, student, epoch=self.epoch)
        if not self.training:
            self.objective.center.data = centre
        return found

    def after_backward(self) -> None:
        """Keep the last layer as it is in the first epochs."""
        self.head.cancel_last_layer_gradients(self.epoch)


RIVALS: dict[str, type[Rival]] = {
    "simclr": SimCLR,
    "byol": BYOL,
    "vicreg": VICReg,
    "dino": DINO,
    "barlow-twins": BarlowTwins,
}


def create_rival(method: str, backbone: Backbone, **arguments: Any) -> Rival:
    """Build a method around a backbone.

    Args:
        method: `simclr`, `byol`, `vicreg`, `dino` or `barlow-twins`.
        backbone: What is to be pre-trained.
        arguments: Of the method: widths of the heads, temperatures, weights, momentum.

    Raises:
        ConfigError: an unknown method or argument.
        MissingExtraError: lightly is not installed.
    """
    if method not in RIVALS:
        hint = did_you_mean(method, RIVALS) or f" There are: {', '.join(RIVALS)}."
        raise ConfigError(f"There is no method {method!r}.{hint}")
    try:
        return RIVALS[method](backbone, **arguments)
    except TypeError as error:
        raise ConfigError(f"--method {method} does not take these arguments: {error}.") from error


class ContrastiveTask(Task):
    """Trains a `Rival` on batches of views.

    The teacher follows after each step of the optimiser; it is part of the state. A validation
    batch of one image, which cannot be compared, is left out.

    Args:
        model: A `Rival`.
        settings: Of `Task`.
        options: Of `Task`.
    """

    model: Rival

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss of a batch."""
        return self(batch)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Tell the method how far the training is, and return the loss."""
        self.model.epoch = self.current_epoch
        total = max(1.0, float(self.trainer.estimated_stepping_batches))
        self.model.progress = min(1.0, self.global_step / total)
        return super().training_step(batch, batch_idx)

    def on_after_backward(self) -> None:
        """Let the method change gradients."""
        self.model.after_backward()

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Step, then let the teacher follow."""
        super().optimizer_step(*arguments, **options)
        self.model.after_step()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Log `val_loss`, averaged over images and over processes.

        Raises:
            ConfigError: there is only one image to validate on.
        """
        count = len(batch["views"][0])
        if count < 2 and batch_idx:
            return
        self.log("val_loss", self.loss(batch), batch_size=count, sync_dist=True)


def pooled(backbone: nn.Module, image: Tensor) -> Tensor:
    """Return the mean of a backbone's last map, (B, C)."""
    return backbone(image)[-1].mean((2, 3))


def exact(objective: nn.Module, *features: Any, **options: Any) -> Tensor:
    """Return a loss in float32, under autocast too.

    Args:
        objective: The loss.
        features: Tensors, or lists of them.
        options: Of the loss.
    """
    full = [[x.float() for x in f] if isinstance(f, list) else f.float() for f in features]
    first = full[0][0] if isinstance(full[0], list) else full[0]
    with torch.autocast(first.device.type, enabled=False):
        return objective(*full, **options)


def _lightly() -> tuple[ModuleType, ModuleType]:
    """Return lightly's losses and heads.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import lightly.loss as losses
        import lightly.models.modules.heads as heads
    except ImportError as error:
        raise MissingExtraError(error.name or "lightly", "medical") from error
    return losses, heads


def _many() -> bool:
    """Whether a loss may gather the batches of all processes."""
    return torch.distributed.is_available()
