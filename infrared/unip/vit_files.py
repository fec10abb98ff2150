"""Opens the file of any plain ViT: its size is read off the tensors' shapes."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossband.infrared.unip.model import UNIPViT
from crossband.shared.backbones.vit import ViTTrunk
from crossband.shared.backbones.vit_keys import load_vit, translate
from crossband.shared.checkpoints import HEADER_KEY, load_state, read_state_dict
from crossband.shared.errors import CheckpointError, ConfigError, did_you_mean
from crossband.shared.pretraining.mae import MAE, is_decoder
from crossband.shared.registry import get_entry
from crossband.shared.tuning.low_rank import shape_like

# Names of sizes: channels, blocks, heads.
SIZES = {
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_huge": (1280, 32, 16),
}
_HEAD_DIM, _DECODER_HEAD_DIM = 64, 32
_KNOWN_HEADS = {1280: 16}  # ViT-H
_RELATIVE = re.compile(r"rel_pos|relative_pos")
_HEADS = re.compile(r"^(norm|fc_norm|head)\.")


@dataclass(frozen=True)
class OpenedViT:
    """A network from a file.

    Attributes:
        model: In evaluation mode.
        arguments: What it was built with.
        source: The file, or what else it is.
        report: What became of the file's keys, in a line.
    """

    model: UNIPViT
    arguments: dict[str, Any]
    source: str
    report: str


def open_vit(path: str | Path, size: str | None = None) -> OpenedViT:
    """Read a ViT of timm, MAE, DINO, iBOT, CLIP or UNIP, or one of ours.

    Args:
        path: File of weights.
        size: Name of its size; None: channels and blocks from the shapes, heads of 64 channels,
            or what our own checkpoint says.

    Raises:
        ConfigError: a size that is not known.
        CheckpointError: no plain ViT, or one that is not of that size.
    """
    raw, header = read_state_dict(path)
    state, _, layout = translate(raw)
    if "patch_embed.proj.weight" not in state or "blocks.0.norm1.weight" not in state:
        raise CheckpointError(
            f"{path} holds no plain vision transformer: its first key is {min(raw)!r}; give a file "
            "of timm, MAE, DINO, iBOT, CLIP or UNIP, or a checkpoint of `pretrain`."
        )
    if layout == "sam" or any(_RELATIVE.search(key) for key in raw):
        raise CheckpointError(
            f"{path} has relative positions in its attention, which the plain ViT lacks: give a "
            "file of a network without."
        )
    factored = any(key.endswith(".u") for key in state)
    arguments = shape_arguments(dense_state(state), layout)
    if HEADER_KEY in header:
        arguments |= _stored_arguments(header[HEADER_KEY])
    if size is not None:
        arguments |= size_arguments(size)
    model = UNIPViT(**arguments)
    if factored:
        ranks = shape_like(model, state)
        load_state(model, state, path)
        said = f"{len(state)} tensors loaded from {path}, {len(ranks)} layers of low rank"
        return OpenedViT(model.eval(), arguments, str(path), said)
    report = load_vit(model, path)
    if wrong := [key for key in report.missing if not _HEADS.match(key)]:
        raise CheckpointError(f"{path} lacks {wrong[0]}: it is not a whole vision transformer.")
    return OpenedViT(model.eval(), arguments, str(path), str(report))


def dense_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with the products of low-rank layers (`u`, `v`) in place of their factors."""
    dense = {k: v for k, v in state.items() if not k.endswith((".u", ".v"))}
    for key, u in state.items():
        if key.endswith(".u"):
            name = key.removesuffix(".u")
            dense[f"{name}.weight"] = u @ state[f"{name}.v"]
    return dense


def network_facts(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return name and arguments under which a checkpoint names a network of `open_vit`."""
    names = {SIZES[f"vit_{size}"][0]: f"unip_{size}" for size in ("tiny", "small", "base")}
    name = names.get(arguments["embed_dim"], "unip_small")
    return {"name": name, "arguments": {"last_heads": arguments["num_heads"], **arguments}}


def random_vit(size: str, img_size: int, seed: int) -> OpenedViT:
    """Build a ViT of random weights, for experiments only."""
    arguments = {"img_size": img_size, **size_arguments(size)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UNIPViT(**arguments)
    return OpenedViT(model.eval(), arguments, "random weights", "random weights")


def size_arguments(size: str) -> dict[str, int]:
    """Return channels, blocks and heads of a named size.

    Raises:
        ConfigError: not known.
    """
    if size not in SIZES:
        hint = did_you_mean(size, SIZES) or f" There are: {', '.join(SIZES)}."
        raise ConfigError(f"there is no size of ViT {size!r}.{hint}")
    return dict(zip(("embed_dim", "depth", "num_heads"), SIZES[size], strict=True))


def shape_arguments(state: Mapping[str, Tensor], layout: str = "timm") -> dict[str, Any]:
    """Return the arguments of `ViTTrunk` that the shapes of weights tell.

    Heads are taken to be of 64 channels, but for widths known to differ, tables of positions to be
    of square grids.
    """
    patches = state["patch_embed.proj.weight"]
    dim, channels, patch_size, _ = patches.shape
    numbers = {int(key.split(".")[1]) for key in state if key.startswith("blocks.")}
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    found: dict[str, Any] = {
        "pos_embed": "learn",
        "drop_path_rate": 0.0,
        "embed_dim": dim,
        "depth": max(numbers) + 1,
        "num_heads": _KNOWN_HEADS.get(dim, max(1, dim // _HEAD_DIM)),
        "patch_size": patch_size,
        "in_chans": channels,
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / dim,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "class_token": "cls_token" in state,
        "reg_tokens": registers,
        "pre_norm": "norm_pre.weight" in state,
        "patch_bias": "patch_embed.proj.bias" in state,
    }
    if "blocks.0.ls1.gamma" in state:
        found["layer_scale_init"] = 1.0
    if layout == "clip":
        found |= {"act": "quick_gelu", "norm_eps": 1e-5}
    if "pos_embed" in state:
        places = state["pos_embed"].shape[1]
        rows = [n for n in (places, places - 1) if round(n**0.5) ** 2 == n]
        if rows:
            found["img_size"] = patch_size * round(rows[0] ** 0.5)
    return found


def mae_arguments(path: str | Path) -> dict[str, Any]:
    """Return the arguments of the `MAE` in a file; the authors' decoders have heads of 32 channels.

    Raises:
        CheckpointError: no masked autoencoder with its decoder.
    """
    raw, header = read_state_dict(path)
    if HEADER_KEY in header:
        stored = json.loads(header[HEADER_KEY]).get("model", {})
        known = inspect.signature(MAE.__init__).parameters
        arguments = model_arguments(stored["name"], stored.get("arguments", {}))
        return {name: value for name, value in arguments.items() if name in known}
    if "decoder_embed.weight" not in raw or "patch_embed.proj.weight" not in raw:
        raise CheckpointError(
            f"{path} is no whole masked autoencoder: it has no decoder_* weights; take the full "
            "file (mae_pretrain_vit_base_full.pth and its like)."
        )
    encoder = shape_arguments({k: v for k, v in raw.items() if not is_decoder(k)})
    names = ("embed_dim", "depth", "num_heads", "patch_size", "in_chans", "mlp_ratio", "img_size")
    width = raw["decoder_embed.weight"].shape[0]
    blocks = {int(key.split(".")[1]) for key in raw if key.startswith("decoder_blocks.")}
    return {name: encoder[name] for name in names if name in encoder} | {
        "decoder_embed_dim": width,
        "decoder_depth": max(blocks, default=-1) + 1,
        "decoder_num_heads": max(1, width // _DECODER_HEAD_DIM),
    }


def model_arguments(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of a named model: the catalog's, and what overrides them."""
    entry = get_entry(name)
    return {**entry.arguments, **entry.head, **given}


def trunk_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return those arguments that `ViTTrunk` takes."""
    known = inspect.signature(ViTTrunk.__init__).parameters
    return {name: value for name, value in arguments.items() if name in known}


def _stored_arguments(header: str) -> dict[str, Any]:
    """Return what our own checkpoint says of its network."""
    stored = json.loads(header).get("model", {})
    try:
        arguments = model_arguments(stored["name"], stored.get("arguments", {}))
    except (KeyError, ConfigError):
        return {}
    found = trunk_arguments(arguments)
    if isinstance(found.get("img_size"), list):
        found["img_size"] = tuple(found["img_size"])
    return found | {"drop_path_rate": 0.0}
