"""The contract of backbones, and how a pyramid network becomes one or an image classifier.

A family of pyramid networks has three classes:

- `<Family>Trunk(Pyramid)`: stem and stages, under the authors' names;
- `<Family>(PyramidBackbone, <Family>Trunk)`: a `Backbone`; its keys are those of the authors'
  detection and segmentation files (`norm0..3` where the family normalises what it hands out);
- `<Family>Classifier(ImageClassifier, <Family>Trunk)`: its keys are those of the authors'
  classification files (`norm.*` and `head.*` beside the stages).

Both speak timm's language (forward_intermediates, prune_intermediate_layers, group_matcher, ...),
so `timm.create_model(..., features_only=True)` works on them. Trunks are built and initialised
before norms and heads, so that one seed gives both classes the same stages.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from crossband.shared.checkpoints import load_state
from crossband.shared.errors import ConfigError
from crossband.shared.layers.layer_norm import LayerNorm2d


class Backbone(nn.Module):
    """A network that turns an image into feature maps, finest first.

    Attributes:
        out_channels: Channels of each map.
        strides: Image pixels per cell of each map; sides may be rounded up or down.
    """

    out_channels: list[int]
    strides: list[int]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (B, C, H, W) to maps (B, out_channels[i], ~H/strides[i], ~W/strides[i])."""
        raise NotImplementedError


class AroundBackbone(nn.Module):
    """Holds a backbone: layers and what takes no weight decay are its own, all else comes last.

    Attributes:
        inner: Name of the backbone among the modules.
    """

    inner = "backbone"

    def layer_index(self, name: str) -> int:
        """Return the layer of a parameter for layer-wise rates."""
        own = getattr(self, self.inner).layer_index
        within = name.removeprefix(f"{self.inner}.")
        return own(within if within != name else "norm.weight")

    def no_weight_decay(self) -> set[str]:
        """Return names of the backbone's parameters that take no weight decay."""
        names = getattr(getattr(self, self.inner), "no_weight_decay", set)()
        return {f"{self.inner}.{name}" for name in names}


class Stage(nn.Sequential):
    """Blocks in a row; with `grad_checkpointing` they are computed again in the backward pass."""

    grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks."""
        for block in self:
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


class Pyramid(nn.Module):
    """Stem and stages of a family: what its backbone and its classifier have in common.

    A subclass builds its stages, then calls `_describe`, and gives `forward_stage`,
    `_drop_stages_after` and the patterns of its keys.

    Attributes:
        num_features: Channels of the last stage.
        feature_info: timm's description of the stages: channels, reduction, module to hook.
        depths: Blocks of each stage.
        in_chans: Channels of the image.
        min_size: Smallest side of an image.
        first_conv: Name of the convolution that takes the image.
        stem_pattern: Matches the keys of the stem.
        block_pattern: Matches keys of blocks; groups are stage and block.
        entry_pattern: Matches the other keys of a stage; its group is the stage.
        first_stage: Number of the first stage in the keys.
        blocks_per_layer: In layer-wise learning rates stage 2, the deep one, is cut into layers
            of so many blocks (ConvNeXt's rule); None: a stage is a layer.
    """

    num_features: int
    feature_info: list[dict[str, Any]]
    depths: list[int]
    in_chans: int
    min_size = 1
    first_conv: str
    stem_pattern: str
    block_pattern: str
    entry_pattern: str
    first_stage = 0
    blocks_per_layer: int | None = None

    def forward_stage(self, index: int, x: Tensor) -> Tensor:
        """Map what stage `index - 1` gave, or the image, to the map (B, C, H, W) of a stage."""
        raise NotImplementedError

    def _drop_stages_after(self, last: int) -> None:
        raise NotImplementedError

    def _describe(
        self, channels: Sequence[int], depths: Sequence[int], in_chans: int, module: str
    ) -> None:
        """Set what is known of the stages; `module` is the name of stage `{}`'s module."""
        self.num_features = self.head_hidden_size = channels[-1]
        self.in_chans = in_chans
        self.depths = list(depths)
        self.feature_info = [
            {
                "num_chs": count,
                "reduction": 4 * 2**index,
                "module": module.format(index + self.first_stage),
            }
            for index, count in enumerate(channels)
        ]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute blocks again in the backward pass, which saves memory and costs time."""
        for module in self.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters of two or more axes that take no weight decay."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's expressions for groups of parameters: stages if coarse, else blocks."""
        last = (r"^norm|^head", (99999,))
        entry, block = f"^{self.entry_pattern}", f"^{self.block_pattern}"
        blocks = block.rpartition(r"\.(\d+)")[0]
        return {
            "stem": f"^{self.stem_pattern}",
            "blocks": [(entry, None), (blocks, None), last]
            if coarse
            else [(entry, (0,)), (block, None), last],
        }

    def layer_index(self, name: str) -> int:
        """Return the layer of a parameter for layer-wise learning rates, 0 for the stem.

        Output norms and the head come last.
        """
        if re.match(self.stem_pattern, name):
            return 0
        per_layer = self.blocks_per_layer
        deep = -(-self.depths[2] // per_layer) if per_layer else 1
        first = (1, 2, 3, 3 + deep, 4 + deep)  # first layer of each stage, and the end
        for pattern in (self.block_pattern, self.entry_pattern):
            if found := re.match(pattern, name):
                stage, block = (*map(int, found.groups()), 0)[:2]
                stage -= self.first_stage
                return first[stage] + (block // per_layer if stage == 2 and per_layer else 0)
        return first[-1]

    def stage_index(self, name: str) -> int | None:
        """Return the stage that a key belongs to, -1 for the stem, None for norms and head."""
        if re.match(self.stem_pattern, name):
            return -1
        for pattern in (self.block_pattern, self.entry_pattern):
            if found := re.match(pattern, name):
                return int(found[1]) - self.first_stage
        return None

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bring weights of another form of the same network to this one's form."""
        return dict(state)

    def _maps(self, image: Tensor, last: int) -> list[Tensor]:
        height, width = image.shape[-2:]
        if min(height, width) < self.min_size:
            raise ConfigError(
                f"{type(self).__name__} got an image of {height} x {width}: both sides must be "
                f"at least {self.min_size}; enlarge or pad it."
            )
        maps, x = [], image
        for index in range(last + 1):
            x = self.forward_stage(index, x)
            maps.append(x)
        return maps


class PyramidBackbone(Backbone):
    """The backbone of a family; mixed in before its trunk.

    Args:
        out_indices: Stages whose maps are returned; negative ones count from the end. Stages
            after the last one and norms that nothing uses are not kept.
        trunk: Arguments of the trunk.
    """

    dense_norms = True  # whether `norm0..3` normalise the maps that are handed out

    def __init__(self, *, out_indices: Sequence[int] = (0, 1, 2, 3), **trunk: Any) -> None:
        """Build the trunk, then the norms."""
        super().__init__(**trunk)
        if self.dense_norms:
            for index, info in enumerate(self.feature_info):
                self.add_module(f"norm{index}", LayerNorm2d(info["num_chs"]))
                info["module"] = f"norm{index}"
        self.prune_intermediate_layers(list(out_indices))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (B, C, H, W) to the maps of the stages in `out_indices`, finest first.

        Raises:
            ConfigError: an image smaller than the network can take.
        """
        return self.forward_intermediates(image, self.out_indices, intermediates_only=True)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = True,
        stop_early: bool = True,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the maps of some stages, and before them the last map if asked.

        timm passes `norm=False`, by which it means a norm after the last stage; the norms of a
        dense network are part of its maps and always apply.

        Raises:
            ConfigError: a stage that does not exist, or whose norm was dropped.
        """
        _check_format(output_fmt)
        taken = self._take(indices)
        last = max(taken) if stop_early or intermediates_only else len(self.feature_info) - 1
        raw = self._maps(x, last)
        maps = [self._finish(index, raw[index]) for index in taken]
        return maps if intermediates_only else (raw[-1], maps)

    def _take(self, indices: int | Sequence[int] | None) -> list[int]:
        """Return stage numbers; refuse stages whose norms are no longer there."""
        taken = take_indices(len(self.feature_info), indices)
        lost = [i for i in taken if self.dense_norms and not hasattr(self, f"norm{i}")]
        if lost:
            raise ConfigError(
                f"{type(self).__name__} keeps norms for the stages {self.out_indices} alone, so it "
                f"gives no map of stage {lost[0]}: build it with all out_indices that are wanted."
            )
        return taken

    def _finish(self, index: int, x: Tensor) -> Tensor:
        return self.get_submodule(f"norm{index}")(x) if self.dense_norms else x

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = (0, 1, 2, 3),
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Keep what the maps of some stages need; return their indices.

        Raises:
            ConfigError: a stage that does not exist, or whose norm was dropped.
        """
        taken = self._take(indices)
        last = max(taken)
        self._drop_stages_after(last)
        if self.dense_norms:
            for index in range(len(self.feature_info)):
                if index not in taken and hasattr(self, f"norm{index}"):
                    delattr(self, f"norm{index}")
        self.feature_info = self.feature_info[: last + 1]
        self.num_features = self.head_hidden_size = self.feature_info[-1]["num_chs"]
        self.out_indices = sorted(taken)
        self.out_channels = [self.feature_info[i]["num_chs"] for i in self.out_indices]
        self.strides = [self.feature_info[i]["reduction"] for i in self.out_indices]
        return taken


class ImageClassifier(nn.Module):
    """The image classifier of a family; mixed in before its trunk.

    Pools the last map, normalises it (`norm`, LayerNorm) and applies `head` (Linear).

    Args:
        num_classes: Outputs; 0 returns the pooled, normalised features.
        global_pool: `avg`, or empty to keep the map.
        drop_rate: Dropout before the head.
        trunk: Arguments of the trunk.
    """

    pooled_norm = True

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        global_pool: Literal["avg", ""] = "avg",
        drop_rate: float = 0.0,
        **trunk: Any,
    ) -> None:
        """Build the trunk, then norm and head."""
        super().__init__(**trunk)
        self.drop_rate = drop_rate
        self.norm: nn.Module = nn.Identity()
        if self.pooled_norm:
            self.norm = nn.LayerNorm(self.num_features, eps=1e-6)
        self.reset_classifier(num_classes, global_pool)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, C, H, W) to logits (B, num_classes).

        Raises:
            ConfigError: an image smaller than the network can take.
        """
        return self.forward_head(self.forward_features(image))

    def forward_features(self, x: Tensor) -> Tensor:
        """Map an image to the map (B, C, H/32, W/32) of the last stage."""
        return self._maps(x, len(self.feature_info) - 1)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, normalise and classify the last map; without the head if `pre_logits`."""
        x = x.permute(0, 2, 3, 1)
        x = self.norm(x.mean((1, 2)) if self.global_pool else x)
        if not pre_logits:
            x = self.head(F.dropout(x, self.drop_rate, self.training))
        return x if self.global_pool else x.permute(0, 3, 1, 2)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the maps of some stages, and before them the last one if asked.

        With `norm` the last stage's map is normalised by `norm`, as timm does it.
        """
        _check_format(output_fmt)
        taken = take_indices(len(self.feature_info), indices)
        end = len(self.feature_info) - 1
        raw = self._maps(x, max(taken) if stop_early else end)
        maps = [raw[index] for index in taken]
        if norm and taken[-1] == end:
            maps[-1] = self.norm(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return maps if intermediates_only else (raw[-1], maps)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the stages after the last of `indices`, and norm and head that then fit no more."""
        taken = take_indices(len(self.feature_info), indices)
        last = max(taken)
        shorter = last < len(self.feature_info) - 1
        self._drop_stages_after(last)
        self.feature_info = self.feature_info[: last + 1]
        self.num_features = self.head_hidden_size = self.feature_info[-1]["num_chs"]
        if prune_norm or shorter:
            self.norm = nn.Identity()
        if prune_head or shorter:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh head on; 0 classes for none, an empty `global_pool` to keep the map.

        Raises:
            ConfigError: another pooling.
        """
        if global_pool is not None:
            if global_pool not in ("avg", ""):
                raise ConfigError(f"global_pool {global_pool!r} is not known: give 'avg' or ''.")
            self.global_pool = global_pool
        self.num_classes = num_classes
        if not num_classes:
            self.head: nn.Module = nn.Identity()
            return
        like = next(self.parameters())
        self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
        initialise(self.head)


def initialise(module: nn.Module) -> None:
    """Draw convolutions and linear layers from a truncated normal of deviation 0.02, biases 0."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def drop_path_rates(rate: float, depths: Iterable[int]) -> list[list[float]]:
    """Return the probability of leaving out each block of each stage: 0 to `rate`, linearly."""
    depths = list(depths)
    total = sum(depths)
    rates = [rate * i / max(1, total - 1) for i in range(total)]
    return [[rates.pop(0) for _ in range(depth)] for depth in depths]


def take_indices(stages: int, indices: int | Sequence[int] | None) -> list[int]:
    """Return stage numbers: all for None, the last `n` for a number, negative ones from the end.

    Raises:
        ConfigError: a stage that does not exist.
    """
    if indices is None:
        indices = stages
    wanted = range(-indices, 0) if isinstance(indices, int) else indices
    taken = [stages + i if i < 0 else i for i in wanted]
    if not taken or min(taken) < 0 or max(taken) >= stages:
        raise ConfigError(
            f"out_indices {indices} name no stage of a network that has {stages}: give numbers "
            f"from 0 to {stages - 1}."
        )
    return taken


def load_backbone(
    model: nn.Module, state: Mapping[str, Tensor], source: str, *, left: Iterable[str] = ()
) -> None:
    """Load weights into a backbone, a classifier's file too, and warn of what does not fit.

    Takes the arguments of `fit_backbone`.

    Raises:
        CheckpointError: stages do not fit.
    """
    load_state(model, fit_backbone(model, state, source, left=left), source)


def fit_backbone(
    model: nn.Module, state: Mapping[str, Tensor], source: str, *, left: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Make a state dict of a backbone from a file, and warn of what does not belong.

    A classifier's `head` and `norm` are left out, as are norms of maps that the network does not
    give and stages after its last one. Output norms of the network that the file lacks keep their
    present values, if it lacks all of them. All else is returned as it is.

    Args:
        model: Backbone.
        state: Weights under our keys.
        source: Name of the file, for messages.
        left: Keys of the file that were left out already, to be named too.
    """
    beyond = []
    if isinstance(model, Pyramid):
        stages = len(model.feature_info)
        beyond = [key for key in state if (model.stage_index(key) or 0) >= stages]
    adapt = getattr(model, "adapt_state", dict)
    state = adapt({key: value for key, value in state.items() if key not in beyond})
    own = model.state_dict()
    unused = [k for k in state if k not in own and re.match(r"(head|fc_norm|pool|norm\d?)\.", k)]
    norms = [k for k in own if re.match(r"norm\d\.", k)]
    filled = {} if any(k in state for k in norms) else {k: own[k] for k in norms}
    parts = []
    numbered = [f"{re.match(r'.*?[0-9]+', key)[0]}.*" for key in beyond]
    if names := ", ".join(sorted({*_groups([*left, *unused]), *numbered})):
        parts.append(f"{names} of the file left out")
    if names := ", ".join(sorted(_groups(filled))):
        parts.append(f"{names} of the network not in the file and left as they were")
    if parts:
        warnings.warn(
            f"{source} loaded into {type(model).__name__}: {'; '.join(parts)}.", stacklevel=2
        )
    return {k: v for k, v in state.items() if k not in unused} | filled


def _groups(keys: Iterable[str]) -> set[str]:
    return {f"{key.partition('.')[0]}.*" for key in keys}


def _check_format(output_fmt: str) -> None:
    if str(getattr(output_fmt, "value", output_fmt)) != "NCHW":
        raise ConfigError(f"maps are NCHW, not {output_fmt}: permute them.")
