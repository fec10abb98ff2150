"""Smaller pre-trained networks by low-rank layers: PELA (Guo et al. 2024, arXiv 2310.10700).

A linear layer `W` (O, I) becomes two, `W ~ U V` with `U = U_r S_r^(1/2)` (O, r) and
`V = S_r^(1/2) V_r^T` (r, I) of its truncated singular value decomposition. The smaller network is
then trained a little with the original as its teacher, and tuned as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.backbones.vit import Tokens, ViTTrunk
from crossband.shared.errors import ConfigError
from crossband.shared.kernels.linear import Linear, linear
from crossband.shared.tasks.base import Task
from crossband.shared.tuning.lora import EVERY_LAYER


class LowRankLinear(nn.Module):
    """Two linear layers in place of one: `x V^T U^T + b`.

    Keys: `u` (O, r), `v` (r, I) and, if the layer had one, `bias` (O,).
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int, *, bias: bool = True, **options: Any
    ) -> None:
        """Build empty factors; `options` are device and dtype."""
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.u = nn.Parameter(torch.empty(out_features, rank, **options))
        self.v = nn.Parameter(torch.empty(rank, in_features, **options))
        self.bias = nn.Parameter(torch.zeros(out_features, **options)) if bias else None

    @classmethod
    def of(cls, layer: nn.Linear, rank: int) -> LowRankLinear:
        """Return the best approximation of a layer by a rank (Eckart and Young 1936)."""
        weight, bias = layer.weight, layer.bias
        made = cls(
            layer.in_features,
            layer.out_features,
            rank,
            bias=bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        u, s, v = torch.linalg.svd(weight.detach().double(), full_matrices=False)
        root = s[:rank].sqrt()
        with torch.no_grad():
            made.u.copy_(u[:, :rank] * root)
            made.v.copy_(root[:, None] * v[:rank])
            if bias is not None:
                made.bias.copy_(bias)
        for parameter in made.parameters():
            parameter.requires_grad_(weight.requires_grad)
        return made.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        return linear(linear(x, self.v), self.u, self.bias)

    def weight(self) -> Tensor:
        """Return the product `U V`, (O, I)."""
        return self.u @ self.v

    def extra_repr(self) -> str:
        """Return sizes and rank."""
        return f"{self.in_features}, {self.out_features}, rank={self.rank}"


def rank_for(in_features: int, out_features: int, ratio: float) -> int:
    """Return the largest rank at which two layers have `ratio` times fewer weights than one.

    `r = floor(I O / ((I + O) ratio))`, at least 1.
    """
    return max(1, int(in_features * out_features / ((in_features + out_features) * ratio)))


def low_rank(
    model: nn.Module,
    *,
    rank: int | None = None,
    ratio: float | None = None,
    targets: Sequence[str] = EVERY_LAYER,
) -> dict[str, int]:
    """Replace linear layers by the two of their low-rank approximation.

    A layer that two would not make smaller, as `r (I + O) >= I O`, stays as it is, exactly.

    Args:
        model: Network, changed in place.
        rank: r of all layers; or
        ratio: How many times fewer weights each layer gets.
        targets: Shell patterns of the layers' names.

    Returns:
        Name -> rank of the layers that were replaced.

    Raises:
        ConfigError: both or neither of rank and ratio, one below 1, or no layer that matches.
    """
    given = [size for size in (rank, ratio) if size is not None]
    if len(given) != 1 or given[0] < 1:
        raise ConfigError(
            f"A low-rank network of rank {rank} and ratio {ratio} cannot be: give one of them, "
            "and no less than 1."
        )
    chosen = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(fnmatchcase(name, p) for p in targets)
    ]
    if not chosen:
        raise ConfigError(
            f"No linear layer of {type(model).__name__} matches {', '.join(targets)}."
        )
    replaced = {}
    for name in chosen:
        layer: Any = model.get_submodule(name)
        inside, outside = layer.in_features, layer.out_features
        own = rank if rank is not None else rank_for(inside, outside, float(ratio or 1))
        if own * (inside + outside) < inside * outside:
            model.set_submodule(name, LowRankLinear.of(layer, own))
            replaced[name] = own
    return replaced


def shape_like(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, int]:
    """Give a network the low-rank layers that a state dict of `low_rank` has, ready to load it.

    Returns:
        Name -> rank of the layers that were replaced.

    Raises:
        ConfigError: a low-rank layer where this network has no linear one.
    """
    ranks = {
        key.removesuffix(".v"): value.shape[0]
        for key, value in state.items()
        if key.endswith(".v") and f"{key.removesuffix('.v')}.u" in state
    }
    modules = dict(model.named_modules())
    for name, rank in ranks.items():
        layer = modules.get(name)
        if not isinstance(layer, nn.Linear):
            raise ConfigError(
                f"The weights have a low-rank layer {name}, {type(model).__name__} has no linear "
                "layer there: build the network that they were made from."
            )
        made = LowRankLinear(
            layer.in_features,
            layer.out_features,
            rank,
            bias=layer.bias is not None,
            device=layer.weight.device,
            dtype=layer.weight.dtype,
        )
        model.set_submodule(name, made.train(layer.training))
    return ranks


def merge_low_rank(model: nn.Module) -> nn.Module:
    """Put the product of the factors into one linear layer again, in place; same outputs."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LowRankLinear):
            dense = Linear(
                module.in_features,
                module.out_features,
                bias=module.bias is not None,
                device=module.u.device,
                dtype=module.u.dtype,
            )
            with torch.no_grad():
                dense.weight.copy_(module.weight())
                if module.bias is not None:
                    dense.bias.copy_(module.bias)
            dense.requires_grad_(module.u.requires_grad)
            model.set_submodule(name, dense.train(module.training))
    return model


def feature_distillation(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the mean squared error between features, mean over layers.

    Args:
        student: A tensor for each layer.
        teacher: The same of the original network; takes no gradient.
    """
    errors = [
        F.mse_loss(s.float(), t.detach().float()) for s, t in zip(student, teacher, strict=True)
    ]
    return torch.stack(errors).mean()


def weight_perturbation(
    model: nn.Module, original: Mapping[str, Tensor], bound: float = 0.0
) -> Tensor:
    """Return how far the factors' products left the original weights.

    `mean over layers of max(0, ||W - U V||_F / ||W||_F - bound)^2`: deviations up to the bound are
    free, so that the network can learn, larger ones are drawn back.

    Args:
        model: Network with low-rank layers.
        original: Name of the layer -> W (O, I).
        bound: Relative deviation that costs nothing.

    Raises:
        ConfigError: a network without low-rank layers.
    """
    losses = []
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            weight = original[name].float()
            # Of squares, since a norm has no gradient at 0.
            square = (weight - module.weight().float()).square().sum() / weight.square().sum()
            if bound > 0:
                square = (square.clamp(min=bound**2).sqrt() - bound).square()
            losses.append(square)
    if not losses:
        raise ConfigError(f"{type(model).__name__} has no low-rank layers: call low_rank first.")
    return torch.stack(losses).mean()


class PELATask(Task):
    """Trains a low-rank network by its own objective and to feel as the original does.

    `L + alpha * feature distillation + beta * weight perturbation`. Batches are those of the
    objective; features are those of `image`.

    Args:
        settings: Of `Task`; the network is a ViT with low-rank layers.
        teacher: The original network. It is no part of the task's state.
        objective: Maps the network and a batch to the loss it was pre-trained with; None: features
            alone teach it.
        alpha: Weight of the features, those of every block.
        beta: Weight of the perturbation.
        bound: Relative deviation of the weights that costs nothing.
        compile: Run features and objective through `torch.compile`.
        options: Of `Task`.

    Raises:
        ConfigError: a network without low-rank layers, or that does not fit the teacher.
    """

    model: ViTTrunk

    def __init__(
        self,
        *settings: Any,
        teacher: ViTTrunk,
        objective: Callable[[nn.Module, Mapping[str, Any]], Tensor] | None = None,
        alpha: float = 1.0,
        beta: float = 1.0,
        bound: float = 0.0,
        compile: bool = False,  # noqa: A002 - the option's name
        **options: Any,
    ) -> None:
        """Keep the parts."""
        super().__init__(*settings, compile=compile, **options)
        self._layers = torch.compile(_layers) if compile else _layers
        self.objective, self.alpha, self.beta, self.bound = objective, alpha, beta, bound
        frozen = teacher.requires_grad_(False).eval()
        self._teacher = (frozen,)  # in a tuple, so that no checkpoint holds it
        dense = dict(frozen.named_modules())
        for name, module in self.model.named_modules():
            if isinstance(module, LowRankLinear) and not _same_size(module, dense.get(name)):
                raise ConfigError(
                    f"The teacher has no linear layer of {name}'s size: give the network that "
                    "low_rank was called on."
                )

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss of a batch."""
        image = batch["image"]
        teacher = self._teacher[0].to(image.device)
        with torch.no_grad():
            wanted = self._layers(teacher, image)
        found = self._layers(self.model, image)
        loss = self.alpha * feature_distillation(found, wanted)
        dense = teacher.named_modules()
        original = {name: m.weight for name, m in dense if isinstance(m, nn.Linear)}
        loss = loss + self.beta * weight_perturbation(self.model, original, self.bound)
        return loss if self.objective is None else loss + self.objective(self._forward[0], batch)


def _layers(model: ViTTrunk, image: Tensor) -> list[Tensor]:
    found: Tokens = model.forward_tokens(image, layers=range(len(model.blocks)))
    return list(found.layers.values())


def _same_size(layer: LowRankLinear, other: Any) -> bool:
    return isinstance(other, nn.Linear) and other.weight.shape == (
        layer.out_features,
        layer.in_features,
    )
