"""mmcv's compiled operators without a compiler: a module `mmcv._ext` in PyTorch.

mmcv builds its operators for single versions of torch and CUDA, and `mmdet.models` cannot be
imported without them. `install` supplies those that detectors call (`SUPPLIED`); every other one
raises an error that names it when it is called. A compiled module is left in place if it loads.

Some scripts import detectors before they read the config that names the plugin; started by

    python -m crossband.shared.plugins.mmcv_ext mmdet:test CONFIG CHECKPOINT

(or with the path of a script) they find the operators.
"""

from __future__ import annotations

import importlib
import importlib.util
import runpy
import sys
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

from crossband.shared.errors import EXIT_USAGE, ConfigError, CrossbandError, did_you_mean
from crossband.shared.kernels import nms as kernels_nms
from crossband.shared.kernels import roi_align as kernels_roi_align
from crossband.shared.kernels.deformable_attention import deformable_attention
from crossband.shared.kernels.focal_loss import sigmoid_focal_loss

NAME = "mmcv._ext"


class MissingOperatorError(CrossbandError):
    """An operator of mmcv that was called and exists only in its compiled form."""


def install() -> bool:
    """Supply `mmcv._ext` unless a compiled one loads; call it before `mmseg.models` is imported.

    Returns:
        Whether the module is ours.
    """
    present = sys.modules.get(NAME)
    if present is not None:
        return isinstance(present, _Operators)
    if _compiled_loads():
        return False
    module = _Operators(NAME, __doc__)
    module.__spec__ = ModuleSpec(NAME, None)  # without one, importlib.util.find_spec raises
    for function in SUPPLIED:
        setattr(module, function.__name__, function)
    sys.modules[NAME] = module
    if (mmcv := sys.modules.get("mmcv")) is not None:
        mmcv._ext = module
    heads = sys.modules.get("mmseg.utils.mask_classification")
    if heads is not None and getattr(heads, "point_sample", None) is None:
        warnings.warn(
            "mmseg was imported before crossband's plugin and found no operators, so heads that "
            "classify masks cannot train: put crossband.shared.plugins.openmmlab first in "
            "custom_imports, or import it before mmseg.",
            stacklevel=2,
        )
    return True


def _compiled_loads() -> bool:
    mmcv = importlib.util.find_spec("mmcv")
    folders = list(mmcv.submodule_search_locations or ()) if mmcv else []
    if PathFinder.find_spec(NAME, folders) is None:
        return False
    try:
        importlib.import_module(NAME)
    except (ImportError, OSError) as error:
        warnings.warn(
            f"The compiled operators of mmcv do not fit this torch ({error}), so crossband's own "
            "in PyTorch are used: install an mmcv built for this torch to have the fast ones.",
            stacklevel=3,
        )
        return False
    return True


class _Operators(ModuleType):
    """Hands out raisers for the operators that are not supplied."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(f"module {NAME!r} has no attribute {name!r}")

        def missing(*args: Any, **kwargs: Any) -> NoReturn:
            raise MissingOperatorError(
                f"mmcv's operator {name!r} exists only compiled, and this mmcv has no compiled "
                "operators: install an mmcv built for this torch, or choose a model without it."
            )

        return missing


# ---------------------------------------------------------------------------------------------
# The signatures of mmcv's C++ functions. Results are written where the caller wants them.


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes to keep, by falling score."""
    return kernels_nms.nms(boxes, scores, iou_threshold, offset=offset)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Write boxes and lowered scores to the first rows of `dets` (N, 5); return the indices."""
    found, indices = kernels_nms.soft_nms(
        boxes,
        scores,
        method=("naive", "linear", "gaussian")[method],
        iou_threshold=iou_threshold,
        sigma=sigma,
        min_score=min_score,
        offset=offset,
    )
    dets[: len(found)] = found
    return indices


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the pooled boxes to `output`, and for `pool_mode` 0 where the largest points are."""
    size = (aligned_height, aligned_width)
    pooling = _pooling(size, spatial_scale, sampling_ratio, pool_mode, aligned)
    pooled, at_y, at_x = kernels_roi_align.roi_align_forward(input, rois, pooling)
    output.copy_(pooled)
    if at_y is not None:
        argmax_y.copy_(at_y)
        argmax_x.copy_(at_x)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of the features to `grad_input`."""
    size = (aligned_height, aligned_width)
    pooling = _pooling(size, spatial_scale, sampling_ratio, pool_mode, aligned)
    grad_input += kernels_roi_align.roi_align_backward(
        grad_output, rois, grad_input.shape, pooling, argmax_y, argmax_x
    )


def _pooling(
    size: tuple[int, int], spatial_scale: float, sampling_ratio: int, mode: int, aligned: bool
) -> kernels_roi_align.Pooling:
    return kernels_roi_align.Pooling(
        size, spatial_scale, sampling_ratio, ("max", "avg")[mode], aligned
    )


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of every element to `output`; an empty `weight` is none."""
    output.copy_(_focal(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of every element's loss to `grad_input`."""
    with torch.enable_grad():
        logits = input.detach().requires_grad_()
        loss = _focal(logits, target, weight, gamma, alpha)
        grad_input.copy_(torch.autograd.grad(loss.sum(), logits)[0])


def _focal(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    factors = weight if weight.numel() else None
    return sigmoid_focal_loss(logits, target, gamma=gamma, alpha=alpha, weight=factors)


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Return (B, Q, M D); level starts and the step are what the compiled form needs."""
    return deformable_attention(value, value_spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Write the three gradients; the forward pass is run again for them."""
    sources = (value, sampling_locations, attention_weights)
    with torch.enable_grad():
        fresh = [tensor.detach().requires_grad_() for tensor in sources]
        output = deformable_attention(fresh[0], value_spatial_shapes, *fresh[1:])
        found = torch.autograd.grad(output, fresh, grad_output)
    targets = (grad_value, grad_sampling_loc, grad_attn_weight)
    for target, gradient in zip(targets, found, strict=True):
        target.copy_(gradient)


SUPPLIED: tuple[Callable[..., Any], ...] = (
    nms,
    softnms,
    roi_align_forward,
    roi_align_backward,
    sigmoid_focal_loss_forward,
    sigmoid_focal_loss_backward,
    ms_deform_attn_forward,
    ms_deform_attn_backward,
)


# ---------------------------------------------------------------------------------------------


def find_tool(name: str) -> Path:
    """Return the script `mmdet:test` or `mmseg:train` of an installed library, or a given path.

    Raises:
        ConfigError: there is no such script.
    """
    library, _, tool = name.partition(":")
    if not tool:
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"The script {name} does not exist: give its path, or mmdet:test.")
        return path
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"{name}: {library} is not installed: `pip install 'crossband[openmmlab]'`."
        )
    folder = Path(spec.origin).parent / ".mim" / "tools"
    path = folder / f"{tool}.py"
    if not path.is_file():
        known = [str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.py")]
        raise ConfigError(f"{library} has no tool {tool!r}.{did_you_mean(tool, known)}")
    return path


def main() -> None:
    """Import the plugin, then run a script with the rest of the command line."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if len(sys.argv) > 1 else EXIT_USAGE)
    try:
        path = find_tool(sys.argv[1])
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    importlib.import_module("crossband.shared.plugins.openmmlab")
    sys.argv = [str(path), *sys.argv[2:]]
    runpy.run_path(str(path), run_name="__main__")


if __name__ == "__main__":
    main()
