"""Weights of plain ViTs for MultiMAE's encoder, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from crossband.shared.backbones.vit_keys import translate
from crossband.shared.checkpoints import read_state_dict
from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.pretraining.multimae import MultiModalEncoder

_PATCHES = "patch_embed.proj."
_TWICE = re.compile(r"\.(act_\d_postprocess|scratch\.layer\d_rn)\.")
_SECOND_NAMES = (
    (re.compile(r"(.*\.)act_postprocess\.(\d)(\..*)"), "act_{}_postprocess"),
    (re.compile(r"(.*\.scratch\.)layer_rn\.(\d)(\..*)"), "layer{}_rn"),
)


def from_vit(
    state: Mapping[str, Tensor],
    channels: Mapping[str, int],
    *,
    grid: tuple[int, int] | None = None,
) -> dict[str, Tensor]:
    """Rename a ViT's weights to those of an encoder of several kinds of images.

    The class token, with its place, becomes the global token; every modality gets the patches'
    projection and the table of positions. A projection for one channel is the sum over those of the
    file, as if a grey image were fed to all of them. Final norm and head are left out.

    Args:
        state: Under timm's keys, with a class token.
        channels: Modality -> its channels.
        grid: Rows and columns of the table; None: a square.

    Raises:
        CheckpointError: no ViT, or one without class token.
        ConfigError: channels other than 1 and those of the file.
    """
    if "cls_token" not in state or f"{_PATCHES}weight" not in state:
        raise CheckpointError(
            "The weights are not those of a ViT with a class token and positions: give a file that "
            "`vit_base_patch16` takes."
        )
    table, kernel = state["pos_embed"], state[f"{_PATCHES}weight"]
    side = round((table.shape[1] - 1) ** 0.5)
    rows, columns = grid or (side, side)
    if rows * columns != table.shape[1] - 1:
        raise CheckpointError(
            f"The table of {table.shape[1] - 1} positions is not of {rows} x {columns}: give the "
            "grid it was made for."
        )
    places = table[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))
    found = {"global_tokens": state["cls_token"] + table[:, :1]}
    for name, count in channels.items():
        if count not in (1, kernel.shape[1]):
            raise ConfigError(
                f"The file's patches have {kernel.shape[1]} channels, {name} has {count}: one "
                "channel or as many can start from them."
            )
        own = kernel if count == kernel.shape[1] else kernel.sum(1, keepdim=True)
        found[f"input_adapters.{name}.proj.weight"] = own
        found[f"input_adapters.{name}.proj.bias"] = state[f"{_PATCHES}bias"]
        found[f"input_adapters.{name}.pos_emb"] = places
    for key, value in state.items():
        if key.startswith("blocks."):
            found["encoder." + key.removeprefix("blocks.")] = value
    return found


def to_vit(state: Mapping[str, Tensor], modality: str = "rgb") -> dict[str, Tensor]:
    """Rename the encoder's weights to a plain ViT's, for `load_vit`; the final norm is missing.

    The first global token becomes the class token. It stood last, here it stands first: attention
    does not see the order of tokens.

    Raises:
        ConfigError: no such image-like modality.
    """
    prefix = f"input_adapters.{modality}."
    if f"{prefix}proj.weight" not in state or f"{prefix}class_emb.weight" in state:
        raise ConfigError(f"The weights have no image-like input {modality!r}: name another one.")
    token = state["global_tokens"][:, :1]
    places = state[f"{prefix}pos_emb"].flatten(2).transpose(1, 2)
    found = {
        "cls_token": token,
        "pos_embed": torch.cat([torch.zeros_like(token), places], dim=1),
        f"{_PATCHES}weight": state[f"{prefix}proj.weight"],
        f"{_PATCHES}bias": state[f"{prefix}proj.bias"],
    }
    for key, value in state.items():
        if key.startswith("encoder."):
            found["blocks." + key.removeprefix("encoder.")] = value
    return found


def load_encoder(model: MultiModalEncoder, path: str | Path) -> list[str]:
    """Start an encoder from a file of MultiMAE, or of a ViT of any layout that `load_vit` knows.

    Decoders and heads of the file are left out. Image-like inputs that the file does not know start
    from its `rgb`, as `from_vit` says.

    Returns:
        The network's keys that the file says nothing of; they keep their values.

    Raises:
        CheckpointError: no such file, or of another size.
    """
    raw, _ = read_state_dict(path)
    channels = {
        name: adapter.modality.channels
        for name, adapter in model.input_adapters.items()
        if not adapter.modality.labels
    }
    if "global_tokens" in raw:
        state = _own_parts(raw, model, channels)
    else:
        state = from_vit(translate(raw)[0], channels)
    state, own = model.adapt_state(state), model.state_dict()
    wrong = [k for k, v in state.items() if k not in own or own[k].shape != v.shape]
    wrong += [k for k in own if k.startswith("encoder.") and k not in state]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit {type(model).__name__}: {len(wrong)} keys are missing, left over "
            f"or of another shape (first: {wrong[0]}). Choose the size of network that these "
            "weights were made with."
        )
    model.load_state_dict(state, strict=False)
    return sorted(own.keys() - state.keys())


def _own_parts(
    raw: Mapping[str, Tensor], model: MultiModalEncoder, channels: Mapping[str, int]
) -> dict[str, Tensor]:
    """Return what a file of MultiMAE holds of an encoder."""
    kept = ("global_tokens", "encoder.", *(f"input_adapters.{n}." for n in model.input_adapters))
    state = {key: value for key, value in raw.items() if key.startswith(kept)}
    new = {n: c for n, c in channels.items() if f"input_adapters.{n}.proj.weight" not in raw}
    if new and "input_adapters.rgb.proj.weight" in raw:
        state = {**from_vit(to_vit(raw), new), **state}
    return state


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the authors' weights; their DPT heads hold some tensors under two names."""
    return {key: value for key, value in state.items() if not _TWICE.search(key)}


def to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return our weights with the second names of the authors' DPT heads."""
    found = dict(state)
    for key, value in state.items():
        for ours, theirs in _SECOND_NAMES:
            if second := ours.fullmatch(key):
                before, number, after = second.groups()
                found[before + theirs.format(int(number) + 1) + after] = value
    return found
