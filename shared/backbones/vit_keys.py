"""Weights of vision transformers under others' keys, to ours and back, with a report.

| layout | whose | what differs from our (timm's) keys |
|---|---|---|
| `timm` | timm, MAE, UNIP | nothing; MAE's decoder is left out |
| `dino` | DINO, iBOT, DINOv2 | prefixes (`teacher.`, `backbone.`, ...), heads, register tokens |
| `beit` | UNIP's segmentation models | `gamma_1`, `gamma_2` for the layer scale |
| `clip` | OpenAI's visual tower | all names; the projection becomes the head |
| `sam` | Segment Anything, LVM-Med | `lin1`, `lin2`; a table (1, rows, columns, D) |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from crossband.shared.checkpoints import HEADER_KEY, read_state_dict
from crossband.shared.errors import CheckpointError

Layout = Literal["auto", "timm", "dino", "beit", "clip", "sam"]
LAYOUTS = ("timm", "dino", "beit", "clip", "sam")
_PREFIXES = (
    *("module.", "_orig_mod.", "teacher.", "student.", "encoder.", "backbone.", "model."),
    *("image_encoder.", "visual."),
)
# Parts that training puts around the encoder: left out, and named in the report.
_AROUND = re.compile(
    r"^(decoder|encoderfeature_pred|mask_token|masked_embed|fpn\d|neck\.|decode_head"
    r"|auxiliary_head|rel_pos|relative_position|head\.(mlp|last_layer)|prototypes|logit_scale|text_|transformer\."
    r"|positional_embedding|token_embedding|ln_final|blocks\.\d+\.attn\.(rel_pos|relative_pos))"
)
# Parts that a network may have of its own, or a file without use for this network.
_OPTIONAL = re.compile(r"^(head|fc_norm|norm|pool)\.")
_LAYER_SCALE = re.compile(r"^blocks\.\d+\.ls[12]\.")
_CHUNKED = re.compile(r"^blocks\.\d+\.(\d+)\.")  # DINOv2: blocks.<chunk>.<number>.

_BLOCK = {
    "beit": (("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma")),
    "sam": (("mlp.lin1.", "mlp.fc1."), ("mlp.lin2.", "mlp.fc2.")),
    "clip": (
        ("ln_1.", "norm1."),
        ("ln_2.", "norm2."),
        ("attn.in_proj_weight", "attn.qkv.weight"),
        ("attn.in_proj_bias", "attn.qkv.bias"),
        ("attn.out_proj.", "attn.proj."),
        ("mlp.c_fc.", "mlp.fc1."),
        ("mlp.c_proj.", "mlp.fc2."),
    ),
}
_TOP = {
    "dino": (("register_tokens", "reg_token"),),
    "clip": (
        ("conv1.weight", "patch_embed.proj.weight"),
        ("class_embedding", "cls_token"),
        ("positional_embedding", "pos_embed"),
        ("ln_pre.", "norm_pre."),
        ("ln_post.", "norm."),
        ("transformer.resblocks.", "blocks."),
        ("proj", "head.weight"),
    ),
}


@dataclass(frozen=True)
class LoadReport:
    """What became of every key.

    Attributes:
        source: File.
        layout: Whose keys the file has.
        matched: Keys that were loaded.
        missing: Keys of the network that the file lacks; they keep their values.
        unexpected: Keys of the file that the network has no use for.
        resampled: Keys that were interpolated to another size.
    """

    source: str
    layout: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    resampled: tuple[str, ...]

    def __str__(self) -> str:
        """Return one line."""
        parts = [f"{len(self.matched)} tensors loaded from {self.source} ({self.layout} keys)"]
        for word, keys in (("missing", self.missing), ("left out", self.unexpected)):
            if keys:
                more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
                parts.append(f"{len(keys)} {word} ({', '.join(keys[:3])}{more})")
        if self.resampled:
            parts.append(f"interpolated: {', '.join(self.resampled)}")
        return "; ".join(parts)


def load_vit(model: nn.Module, path: str | Path, layout: Layout = "auto") -> LoadReport:
    """Load weights of any known layout into a ViT; nothing is left unsaid.

    Heads and final norms may be missing or left over, and layer scales missing (UNIP has none in
    pre-training). Everything else must fit. Tables of positions are taken to be of square grids,
    but for those of our own checkpoints, which fit a network of the same grid as they are.

    Args:
        model: `ViT`, `ViTClassifier` or a network that has their keys.
        path: File: safetensors or a PyTorch file that holds nothing but tensors.
        layout: Whose keys the file has.

    Raises:
        CheckpointError: unreadable, of an unknown layout, or of another size.
    """
    raw, header = read_state_dict(path)
    state, left, found = translate(raw, layout)
    if not any(key.startswith("blocks.") for key in state):
        raise CheckpointError(
            f"{path} holds no vision transformer that is known ({', '.join(LAYOUTS)} keys): its "
            f"first key is {min(raw)!r}."
        )
    own = model.state_dict()
    before = state
    if HEADER_KEY not in header:
        state = getattr(model, "adapt_official", dict)(state)
    state = model.adapt_state(state)
    resampled = tuple(k for k, v in state.items() if k in before and v is not before[k])
    if "head.weight" in own and state.get("head.weight", own["head.weight"]).shape != (
        own["head.weight"].shape
    ):  # another number of classes
        left += [key for key in ("head.weight", "head.bias") if state.pop(key, None) is not None]
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    wrong = [k for k in missing if not _OPTIONAL.match(k) and not _LAYER_SCALE.match(k)]
    wrong += [k for k in unexpected if not _OPTIONAL.match(k)]
    other = sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)
    if wrong or other:
        key = (wrong or other)[0]
        sizes = "" if wrong else f", {tuple(state[key].shape)} against {tuple(own[key].shape)}"
        scaled = all(_LAYER_SCALE.match(k) for k in wrong) and not other
        remedy = "Choose the size of network that these weights were made with."
        if scaled:
            remedy = "Build the network with layer_scale_init: the file has a layer scale."
        raise CheckpointError(
            f"{path} does not fit {type(model).__name__}: {len(wrong)} keys missing or left over, "
            f"{len(other)} of another shape (first: {key}{sizes}). {remedy}"
        )
    matched = sorted(own.keys() & state.keys())
    model.load_state_dict({key: state[key] for key in matched}, strict=False)
    left = sorted([*left, *unexpected])
    return LoadReport(str(path), found, tuple(matched), tuple(missing), tuple(left), resampled)


def translate(
    state: Mapping[str, Tensor], layout: Layout = "auto"
) -> tuple[dict[str, Tensor], list[str], str]:
    """Rename a file's keys to ours.

    Returns:
        Weights under our keys, the file's keys that were left out, and the layout.

    Raises:
        CheckpointError: a layout that is not known.
    """
    if layout not in ("auto", *LAYOUTS):
        raise CheckpointError(f"There is no layout {layout!r}: {', '.join(LAYOUTS)}.")
    inner, left = _unwrap(dict(state))
    found = detect(inner) if layout == "auto" else layout
    result: dict[str, Tensor] = {}
    for key, value in inner.items():
        name = _rename(key, found)
        if _AROUND.match(name):
            left.append(key)
            continue
        if found == "clip":
            value = _from_clip(name, value)
        elif name == "pos_embed" and value.dim() == 4:  # SAM's, without a class row
            value = value.flatten(1, 2)
        result[name] = value
    return result, left, found


def detect(state: Mapping[str, Tensor]) -> str:
    """Say whose keys these are."""
    keys = state.keys()
    if "class_embedding" in keys:
        return "clip"
    if any(".mlp.lin1." in key for key in keys):
        return "sam"
    if any(key.endswith(".gamma_1") for key in keys):
        return "beit"
    if any(_CHUNKED.match(key) for key in keys):
        return "dino"
    dino = ("register_tokens", "masked_embed", "head.last_layer.weight_v", "head.mlp.0.weight")
    return "dino" if any(key in keys for key in dino) else "timm"


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return our keys of any known layout; parts around the encoder are left out."""
    return translate(state)[0]


def left_out(state: Mapping[str, Tensor]) -> list[str]:
    """Return the keys of a file that `from_official` leaves out."""
    return translate(state)[1]


def to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict as it is: our keys are timm's and MAE's."""
    return dict(state)


def to_layout(state: Mapping[str, Tensor], layout: Literal["beit", "clip", "sam"]) -> dict:
    """Rename our keys to another layout's, as `translate` reads them."""
    result = {}
    for key, value in state.items():
        name = key
        pairs = (*_TOP.get(layout, ()), *_BLOCK.get(layout, ()))
        for theirs, ours in pairs:
            if ours in name and (ours.startswith(("mlp", "attn", "ls", "norm1", "norm2"))):
                name = name.replace(ours, theirs)
            elif name == ours or (ours.endswith(".") and name.startswith(ours)):
                name = theirs + name[len(ours) :]
        if layout == "clip":
            if key == "head.bias":
                continue
            value = _to_clip(key, value)
        result[name] = value
    return result


def _unwrap(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Take off the prefixes under which trainers keep an encoder, one after the other."""
    left: list[str] = []
    for _ in range(len(_PREFIXES)):
        for prefix in _PREFIXES:
            inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if any(_is_encoder(key) for key in inside):
                left += [key for key in state if not key.startswith(prefix)]
                state = inside
                break
        else:
            break
    return state, left


def _is_encoder(key: str) -> bool:
    return bool(re.search(r"(^|\.)(patch_embed\.proj|conv1)\.weight$", key))


def _rename(key: str, layout: str) -> str:
    for theirs, ours in _TOP.get(layout, ()):
        if key == theirs or (theirs.endswith(".") and key.startswith(theirs)):
            key = ours + key[len(theirs) :]
            break
    if key.startswith("blocks."):
        if layout == "dino":
            key = _CHUNKED.sub(r"blocks.\1.", key)
        for theirs, ours in _BLOCK.get(layout, ()):
            key = key.replace(f".{theirs}", f".{ours}")
    return key


def _from_clip(name: str, value: Tensor) -> Tensor:
    if name == "cls_token":
        return value.view(1, 1, -1)
    if name == "pos_embed":
        return value[None]
    return value.t().contiguous() if name == "head.weight" else value


def _to_clip(key: str, value: Tensor) -> Tensor:
    if key == "cls_token":
        return value.flatten()
    if key == "pos_embed":
        return value[0]
    return value.t().contiguous() if key == "head.weight" else value
