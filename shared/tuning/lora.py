"""Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685).

A frozen linear layer `W` gets `x W^T + (alpha / r) x A^T B^T` with `A` (r, I) and `B` (O, r) the
only parameters that are trained. `B` starts at zero, so tuning starts from the network as it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.kernels.linear import linear

# Of a ViT: queries and values of the fused projection, as the paper adapts them.
ATTENTION = ("*.attn.qkv",)
EVERY_LAYER = ("*.attn.qkv", "*.attn.proj", "*.mlp.fc1", "*.mlp.fc2")


class LoRALinear(nn.Linear):
    """A linear layer with low-rank additions; weight and bias keep their names and are frozen.

    Args:
        base: Layer to adapt; its tensors are taken over, not copied. Merging gives it back.
        rank: r.
        alpha: Scale of the addition is `alpha / rank`.
        dropout: Of the addition's input.
        parts: The output falls into so many equal parts (3: a fused `qkv`), each with its own
            `A` and `B`.
        adapted: Which parts are adapted.
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        alpha: float,
        *,
        dropout: float = 0.0,
        parts: int = 1,
        adapted: Sequence[int] = (0,),
    ) -> None:
        """Build the additions."""
        super().__init__(1, 1, bias=False, device="meta")
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.requires_grad_(False)
        self.base = (base,)  # in a tuple, since its tensors are registered here
        self.rank, self.scale, self.parts = rank, alpha / rank, parts
        self.adapted = tuple(adapted)
        self.dropout = nn.Dropout(dropout)
        like, count = self.weight, len(self.adapted)
        a = torch.empty(count, rank, self.in_features, device=like.device, dtype=like.dtype)
        nn.init.kaiming_uniform_(a.view(-1, self.in_features), a=math.sqrt(5))
        self.lora_A = nn.Parameter(a)
        self.lora_B = nn.Parameter(a.new_zeros(count, self.out_features // parts, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        y = linear(x, self.weight, self.bias).unflatten(-1, (self.parts, -1))
        low = linear(self.dropout(x), self.lora_A.flatten(0, 1)).unflatten(-1, (-1, self.rank))
        added = torch.einsum("...pr,por->...po", low, self.lora_B) * self.scale
        place = torch.tensor(self.adapted, device=x.device)
        return y.index_add(-2, place, added).flatten(-2)

    def delta(self) -> Tensor:
        """Return what is added to the weight, (O, I)."""
        whole = self.weight.new_zeros(self.parts, self.out_features // self.parts, self.in_features)
        whole[list(self.adapted)] = self.scale * (self.lora_B @ self.lora_A)
        return whole.flatten(0, 1)


def apply_lora(
    model: nn.Module,
    rank: int = 8,
    alpha: float | None = None,
    *,
    targets: Sequence[str] = ATTENTION,
    qkv: str = "qv",
    dropout: float = 0.0,
    also_train: Sequence[str] = ("head.*",),
) -> list[str]:
    """Freeze a network and adapt its linear layers.

    Args:
        model: Network, changed in place.
        rank: r.
        alpha: Scale of the additions is `alpha / rank`; default: `rank`.
        targets: Shell patterns of the layers' names.
        qkv: Which of queries, keys and values of a fused layer called `qkv` are adapted.
        dropout: Of the additions' input.
        also_train: Shell patterns of parameters that are trained in full, as a new head; those
            that match nothing are passed over.

    Returns:
        Names of the adapted layers.

    Raises:
        ConfigError: no layer matches, a rank below 1, letters other than q, k, v, or a network that
            is adapted already.
    """
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise ConfigError(
            f"{type(model).__name__} is adapted by LoRA already: call merge_lora first."
        )
    if rank < 1 or not qkv or set(qkv) - set("qkv"):
        raise ConfigError(f"LoRA of rank {rank} on {qkv!r}: give a rank of 1 or more, and q, k, v.")
    chosen = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(fnmatchcase(name, p) for p in targets)
    ]
    if not chosen:
        raise ConfigError(
            f"No linear layer of {type(model).__name__} matches {', '.join(targets)}."
        )
    model.requires_grad_(False)
    for name in chosen:
        fused = name.rpartition(".")[2] == "qkv"
        layer = LoRALinear(
            model.get_submodule(name),
            rank,
            float(rank if alpha is None else alpha),
            dropout=dropout,
            parts=3 if fused else 1,
            adapted=sorted("qkv".index(letter) for letter in set(qkv)) if fused else (0,),
        )
        _replace(model, name, layer)
    for name, parameter in model.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in also_train):
            parameter.requires_grad_(True)
    return chosen


def merge_lora(model: nn.Module) -> nn.Module:
    """Add what was learned to the weights, in place.

    The layers that were adapted come back, weight and bias frozen as before.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            merged = module.weight.detach() + module.delta().detach()
            (plain,) = module.base
            plain.weight = nn.Parameter(merged, requires_grad=module.weight.requires_grad)
            plain.bias = module.bias
            _replace(model, name, plain.train(module.training))
    return model


def tuned_state(model: nn.Module) -> dict[str, Tensor]:
    """Return what was trained, a small part of the state dict: additions, heads, and buffers.

    A parameter that several modules share is kept once, under its first name.
    """
    every = dict(model.named_parameters(remove_duplicate=False))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    state = model.state_dict()
    return {key: value for key, value in state.items() if key in trained or key not in every}


def load_tuned(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load what `tuned_state` gave into a network that was prepared in the same way.

    Raises:
        CheckpointError: keys or shapes that differ.
    """
    wanted = tuned_state(model)
    if differing := wanted.keys() ^ state.keys():
        raise CheckpointError(
            f"{source} does not hold what is tuned here: {len(differing)} keys differ (first: "
            f"{min(differing)}). Prepare the network as it was trained (rank, targets, qkv)."
        )
    if other := sorted(key for key in wanted if wanted[key].shape != state[key].shape):
        key = other[0]
        raise CheckpointError(
            f"{source} does not fit what is tuned here: {len(other)} tensors are of another shape "
            f"(first: {key}, file {tuple(state[key].shape)}, network {tuple(wanted[key].shape)}). "
            "Prepare the network as it was trained (rank, targets, qkv)."
        )
    model.load_state_dict(dict(state), strict=False)


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)
