"""MultiMAE: masked pre-training on several aligned kinds of maps (Bachmann et al. 2022).

One encoder sees a few tokens of, say, colour, thermal and depth images and label maps; a small
decoder for each kind draws the rest (arXiv 2204.01678). Keys are the authors'. Any set of kinds
goes, and each may be missing when the network is used.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crossband.shared.backbones.vit import Block
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.pretraining.masking import Masking, dirichlet_masking, masking_of
from crossband.shared.pretraining.multimae_adapters import (
    Decoder,
    InputAdapter,
    Modality,
    initialise,
    resize,
    token,
)
from crossband.shared.pretraining.multimae_losses import (
    masked_mean,
    pixel_errors,
    robust_standardise,
    standardise_patches,
)
from crossband.shared.tasks.base import Task

_VALIDATION_SEED = 20_220_404
_EPS = 1e-6
NORM = "norm_"  # prefix of a decoder that draws standardised patches


class MultiModalEncoder(nn.Module):
    """A ViT over the tokens of several kinds of maps: what pre-training and use have in common.

    Args:
        modalities: Name -> number of channels, or attributes of `Modality`.
        inputs: Names of those that are seen; None: all.
        img_size: Side, or (H, W), that the tables of positions are made for; others are taken too.
        patch_size: Side of a patch in pixels of the image.
        embed_dim: D, channels of a token.
        depth: Blocks.
        num_heads: Of a block.
        mlp_ratio: Hidden channels of the MLPs over D.
        qkv_bias: Whether queries, keys and values have a bias.
        num_global_tokens: Learned tokens, put behind all others.
        norm_eps: Of all norms.
        drop_path_rate: Of the last block; rises linearly from 0.
    """

    def __init__(
        self,
        *,
        modalities: Mapping[str, int | Mapping[str, Any]],
        inputs: Sequence[str] | None = None,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        num_global_tokens: int = 1,
        norm_eps: float = _EPS,
        drop_path_rate: float = 0.0,
    ) -> None:
        """Build adapters and blocks.

        Raises:
            ConfigError: no modality, or an input that is none.
        """
        super().__init__()
        self.modalities = {name: Modality.of(spec) for name, spec in modalities.items()}
        seen = list(self.modalities) if inputs is None else list(inputs)
        if not seen or set(seen) - self.modalities.keys():
            raise ConfigError(
                f"The inputs {seen} are not all among the modalities {list(self.modalities)}: "
                "name one or more of them."
            )
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid = (height // patch_size, width // patch_size)
        self.patch_size, self.embed_dim, self.norm_eps = patch_size, embed_dim, norm_eps
        self.input_adapters = nn.ModuleDict(
            {n: InputAdapter(self.modalities[n], embed_dim, self.grid, patch_size) for n in seen}
        )
        self.global_tokens = token(num_global_tokens, embed_dim)
        self.encoder = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop_path=drop_path_rate * i / max(1, depth - 1),
                norm_eps=norm_eps,
            )
            for i in range(depth)
        )

    def tokenise(self, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[int, int]]:
        """Return name -> tokens (B, N, D) of the maps that are given, and their grid.

        Raises:
            DataError: no map of a known kind, or maps that are not aligned patch by patch.
        """
        grids = {}
        for name, adapter in self.input_adapters.items():
            if name in inputs:
                x, p = inputs[name], adapter.patch_size
                if x.shape[-2] % p or x.shape[-1] % p:
                    raise DataError(
                        f"The {name} map of {x.shape[-2]} x {x.shape[-1]} is not made of whole "
                        f"patches of {p}: crop or resize it."
                    )
                grids[name] = adapter.grid_of(x)
        if len(set(grids.values())) != 1:
            given = ", ".join(f"{n} {a} x {b}" for n, (a, b) in grids.items()) or "none"
            raise DataError(
                f"The maps must be aligned and of the kinds {', '.join(self.input_adapters)}; "
                f"their grids of patches are: {given}."
            )
        tokens = {name: self.input_adapters[name](inputs[name]) for name in grids}
        return tokens, next(iter(grids.values()))

    def encode(self, x: Tensor, layers: Collection[int] = ()) -> tuple[Tensor, dict[int, Tensor]]:
        """Run the blocks on tokens (B, N, D); return theirs and global ones, (B, N + G, D).

        Also returns the output of the blocks in `layers`, by number.
        """
        x = torch.cat([x, self.global_tokens.to(x).expand(len(x), -1, -1)], dim=1)
        found = {}
        for number, block in enumerate(self.encoder):
            x = block(x)
            if number in layers:
                found[number] = x
        return x, found

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters of two or more axes that take no weight decay."""
        return {"global_tokens"}

    def layer_index(self, name: str) -> int:
        """Return the layer of a parameter for layer-wise learning rates, 0 for the embeddings."""
        if name.startswith("encoder."):
            return int(name.split(".")[1]) + 1
        return 0 if name.startswith(("input_adapters.", "global_tokens")) else len(self.encoder) + 1

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bring weights to this network: tables of positions of another grid are interpolated."""
        state, own = dict(state), self.state_dict()
        for key, table in state.items():
            if key.endswith("pos_emb") and key in own and table.shape[1] == own[key].shape[1]:
                name = key.split(".")[1]
                image = key.startswith("input") and not self.modalities[name].labels
                mode = "bicubic" if image else "bilinear"
                state[key] = resize(table, (own[key].shape[-2], own[key].shape[-1]), mode)
        return state


class MultiMAEOutput(NamedTuple):
    """What a pass through MultiMAE gives.

    Attributes:
        preds: Decoder -> drawn map (B, C, H, W), or logits of classes.
        masks: Modality -> (B, N), 0 where a token was visible, 1 where it was hidden.
    """

    preds: dict[str, Tensor]
    masks: dict[str, Tensor]


class MultiMAE(MultiModalEncoder):
    """Learns to draw maps of several kinds from a few tokens of all.

    Args:
        outputs: Decoders: names of modalities, or `norm_` and a name for standardised patches; or
            name -> arguments of `Decoder` that differ from the next ones. None: one for each
            modality.
        decoder_embed_dim: Channels of the decoders.
        decoder_depth: Their blocks of self-attention.
        decoder_num_heads: Their heads.
        visible_tokens: Tokens that are seen, over all modalities.
        alphas: Of the Dirichlet distribution that shares them out.
        sample_subsets: Leave whole modalities out at random.
        encoder: Arguments of `MultiModalEncoder`.
    """

    def __init__(
        self,
        *,
        outputs: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
        decoder_embed_dim: int = 256,
        decoder_depth: int = 2,
        decoder_num_heads: int = 8,
        visible_tokens: int = 98,
        alphas: float | Sequence[float] = 1.0,
        sample_subsets: bool = False,
        **encoder: Any,
    ) -> None:
        """Build encoder and decoders.

        Raises:
            ConfigError: a decoder of an unknown modality.
        """
        super().__init__(**encoder)
        self.visible_tokens, self.alphas = visible_tokens, alphas
        self.sample_subsets = sample_subsets
        if not isinstance(outputs, Mapping):
            outputs = {name: {} for name in (self.modalities if outputs is None else outputs)}
        shared = {
            **{"encoder_dim": self.embed_dim, "grid": self.grid, "patch": self.patch_size},
            **{"dim": decoder_embed_dim, "depth": decoder_depth, "heads": decoder_num_heads},
            **{"norm_eps": self.norm_eps, "context": list(self.input_adapters)},
        }
        self.output_adapters = nn.ModuleDict()
        for name, own in outputs.items():
            task = name.removeprefix(NORM)
            if task not in self.modalities:
                raise ConfigError(
                    f"There is no modality {task!r} to draw: {', '.join(self.modalities)}."
                )
            self.output_adapters[name] = Decoder(self.modalities[task], task, **{**shared, **own})
        initialise(self)

    def forward(
        self, inputs: Mapping[str, Tensor], masks: Masking | Mapping[str, Tensor] | None = None
    ) -> MultiMAEOutput:
        """Hide tokens and draw the maps.

        Args:
            inputs: Modality -> (B, C, H, W), or labels (B, H, W); some may be missing.
            masks: Of all tokens, or modality -> (B, N), 0 visible and 1 hidden, with as many
                visible tokens in each sample. None: drawn here.
        """
        tokens, grid = self.tokenise(inputs)
        counts = {name: x.shape[1] for name, x in tokens.items()}
        x = torch.cat(list(tokens.values()), dim=1)
        if masks is None:
            masks = self.draw_masking(counts, len(x), x.device)
        elif not isinstance(masks, Masking):
            if missing := counts.keys() - masks.keys():
                raise ConfigError(f"There is no mask for {', '.join(sorted(missing))}: give one.")
            masks = masking_of([masks[name] for name in counts])
        keep = masks.keep
        x, _ = self.encode(x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1])))
        preds = {n: draw(x, counts, keep, grid) for n, draw in self.output_adapters.items()}
        split = masks.mask.split(list(counts.values()), dim=1)
        return MultiMAEOutput(preds, dict(zip(counts, split, strict=True)))

    def draw_masking(
        self, counts: Mapping[str, int], batch: int, device: torch.device | str
    ) -> Masking:
        """Draw which tokens are visible; arguments as for `dirichlet_masking`."""
        _, masking = dirichlet_masking(
            counts,
            batch,
            self.visible_tokens,
            alphas=self.alphas,
            sample_subsets=self.sample_subsets,
            device=device,
        )
        return masking

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters of two or more axes that take no weight decay."""
        tokens = {f"output_adapters.{name}.mask_token" for name in self.output_adapters}
        return super().no_weight_decay() | tokens

    def losses(
        self, preds: Mapping[str, Tensor], maps: Mapping[str, Tensor], masks: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return decoder -> loss over hidden tokens, where the true map is known.

        Args:
            preds: Of `forward`.
            maps: Modality -> true map.
            masks: Of `forward`; a modality that was no input counts as hidden.
        """
        found = {}
        for name, pred in preds.items():
            decoder = self.output_adapters[name]
            if decoder.task not in maps:
                continue
            target = maps[decoder.task]
            if name.startswith(NORM):
                target = standardise_patches(target, decoder.patch_size)
            error = pixel_errors(decoder.modality.criterion(), pred.float(), target)
            hidden = masks.get(decoder.task)
            found[name] = masked_mean(*error, hidden, decoder.patch_size)
        return found


class MultiMAETask(Task):
    """Trains MultiMAE. Batches hold a tensor for each modality, by its name.

    Args:
        settings: Of `Task`; the network is a `MultiMAE`.
        standardise: Modalities that are standardised sample by sample (depth, temperature).
        options: Of `Task`.
    """

    model: MultiMAE

    def __init__(
        self, *settings: Any, standardise: Sequence[str] = ("depth", "thermal"), **options: Any
    ) -> None:
        """Keep the parts."""
        super().__init__(*settings, **options)
        self.standardise = tuple(standardise)

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the sum of all decoders' losses on a batch.

        Raises:
            DataError: a batch without anything to see or to draw.
        """
        maps = {name: batch[name] for name in self.model.modalities if name in batch}
        for name in self.standardise:
            if name in maps:
                maps[name] = robust_standardise(maps[name])
        found: MultiMAEOutput = self(maps, self._masking(maps))
        losses = self.model.losses(found.preds, maps, found.masks)
        if not losses:
            raise DataError(
                f"The batch holds none of the maps to draw, {', '.join(found.preds)}: add one."
            )
        return torch.stack(list(losses.values())).sum()

    def _masking(self, maps: Mapping[str, Tensor]) -> Masking:
        """Draw which tokens are visible, the same in validation each time."""
        counts = {}
        for name, adapter in self.model.input_adapters.items():
            if name in maps:
                rows, columns = adapter.grid_of(maps[name])
                counts[name] = rows * columns
        if not counts:
            raise DataError(
                f"The batch holds nothing to see: it lacks {', '.join(self.model.input_adapters)}."
            )
        first = next(iter(maps.values()))
        if self.training:
            return self.model.draw_masking(counts, len(first), first.device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_VALIDATION_SEED)
            found = self.model.draw_masking(counts, len(first), "cpu")
        return Masking(*(x.to(first.device) for x in found))
