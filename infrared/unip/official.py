"""Keys of UNIP's segmentation files, and of mmseg's runs with our parts, to ours and back.

| ours | the authors' | mmseg with `crossband.ViT` and `crossband.LLFPN` |
|---|---|---|
| `backbone.vit.blocks.0.ls1.gamma` | `backbone.blocks.0.gamma_1` | `backbone.blocks.0.ls1.gamma` |
| `backbone.vit.*` | `backbone.*` | `backbone.*` |
| `backbone.fpn.fpn1.*` | `backbone.fpn1.*` | `neck.fpn1.*` |
| `decode_head.*`, `auxiliary_head.*` | the same | the same |
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_SCALE = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
_BLOCK = re.compile(r"^(blocks\.\d+\.)(gamma_[12])$")
_OURS = re.compile(r"^(blocks\.\d+\.)ls([12])\.gamma$")


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our keys of the authors' or of mmseg's; relative position tables are left out."""
    return {new: value for key, value in state.items() if (new := _ours(key))}


def left_out(state: Mapping[str, Tensor]) -> list[str]:
    """Return the keys of a file that `from_official` has no use for."""
    return [key for key in state if _ours(key) is None]


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the authors' keys of ours."""
    result = {}
    for key, value in state.items():
        if key.startswith("backbone.vit."):
            key = "backbone." + _OURS.sub(r"\1gamma_\2", key.removeprefix("backbone.vit."))
        elif key.startswith("backbone.fpn."):
            key = "backbone." + key.removeprefix("backbone.fpn.")
        result[key] = value
    return result


def to_mmseg(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the keys of mmseg's EncoderDecoder with `crossband.ViT` and `crossband.LLFPN`."""
    result = {}
    for key, value in state.items():
        key = key.replace("backbone.vit.", "backbone.", 1)
        result[key.replace("backbone.fpn.", "neck.", 1)] = value
    return result


def _ours(key: str) -> str | None:
    key = key.removeprefix("module.")
    if key.startswith("neck."):
        return "backbone.fpn." + key.removeprefix("neck.")
    if not key.startswith("backbone."):
        return key
    inner = key.removeprefix("backbone.")
    if inner.startswith(("vit.", "fpn.", "detail.")):
        return key
    if "rel_pos" in inner or "relative_position" in inner:
        return None
    if re.match(r"fpn\d\.", inner):
        return f"backbone.fpn.{inner}"
    return "backbone.vit." + _BLOCK.sub(lambda m: m[1] + _SCALE[m[2]], inner)
