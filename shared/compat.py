"""Import this before lightning, torchmetrics, timm, open_clip, mmseg or torchvision.

A CUDA build of torchvision beside a CPU build of torch cannot load its compiled operators, and
its import then dies with "operator torchvision::nms does not exist". Declaring the two schemas
that the import looks up is enough for everything but those operators (nms, roi_align), for which
crossband has its own.
"""

from __future__ import annotations

import sys
import warnings
from importlib.machinery import PathFinder
from importlib.util import find_spec

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: torch.library.Library | None = None  # the schemas live as long as this object


def _compiled_operators_load() -> bool:
    """Whether torchvision's compiled operators fit this torch; loads them if so."""
    spec = find_spec("torchvision")
    folder = list(spec.submodule_search_locations or ()) if spec else []
    extension = PathFinder.find_spec("torchvision._C", folder)
    if extension is None or extension.origin is None:
        return False
    try:
        torch.ops.load_library(extension.origin)
    except OSError:
        return False
    return True


def _declare_missing_operators() -> None:
    """Declare the schemas of `nms` and `qnms` unless they exist."""
    global _library
    if "torchvision" in sys.modules or find_spec("torchvision") is None:
        return
    if _compiled_operators_load():
        return
    # A FRAGMENT, so that another package doing the same does not collide with us.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + _SCHEMA)
    _library = library


_declare_missing_operators()
# Lightning 2.6 with torch 2.13 warns about its own use of `LeafSpec`; nobody here can act on it.
warnings.filterwarnings("ignore", message=".*LeafSpec.*")
warnings.filterwarnings("ignore", message="Failed to load image Python extension.*")
