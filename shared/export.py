"""Export to ONNX and torch.export's .pt2, checked against PyTorch, with the configuration inside.

The batch size is dynamic. An exported file is a product like a checkpoint: `predict` takes it.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossband.shared.errors import CheckpointError, CrossbandError, MissingExtraError
from crossband.shared.files import atomic_path

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2"}
TOLERANCE = 1e-4
_KEY = "crossband"


def is_exported(path: str | Path) -> bool:
    """Whether a path names an exported file."""
    return Path(path).suffix in SUFFIXES.values()


def export_model(
    model: nn.Module, inputs: dict[str, Tensor], path: str | Path, config: dict[str, Any]
) -> float:
    """Write a network as ONNX or .pt2, by the path's suffix, and check it.

    The file is run at the inputs' batch size and at another one, and compared with PyTorch,
    before it gets its name.

    Args:
        model: Network in eval mode.
        inputs: Its inputs by argument name; the first axis is the batch, of 2 items or more.
        path: Target, `.onnx` or `.pt2`.
        config: JSON-able description to store inside.

    Returns:
        The largest absolute difference from PyTorch.

    Raises:
        CrossbandError: the exported network differs by more than 1e-4, or cannot be written.
        MissingExtraError: ONNX packages are not installed.
    """
    path = Path(path)
    batch = torch.export.Dim("batch", min=1)
    shapes = {name: {0: batch} for name in inputs}
    with atomic_path(path) as temporary, torch.no_grad():
        if path.suffix == ".onnx":
            _write_onnx(model, inputs, shapes, temporary, config)
        else:
            program = torch.export.export(
                model, (), kwargs=inputs, dynamic_shapes=shapes, strict=False
            )
            torch.export.save(program, temporary, extra_files={_KEY: json.dumps(config)})
        run, _ = load_exported(temporary)
        worst = 0.0
        for size in (len(next(iter(inputs.values()))), 1):
            part = {name: value[:size] for name, value in inputs.items()}
            expected = model(**part)
            worst = max(worst, float((run(*part.values()) - expected).abs().max()))
        if not worst <= TOLERANCE:
            raise CrossbandError(
                f"The exported network differs from PyTorch by {worst:.2g} (allowed "
                f"{TOLERANCE:g}), so it was not kept: try the other --format."
            )
    return worst


def load_exported(path: str | Path) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    """Load an exported network.

    Returns:
        A function from input tensors to the output tensor, and the stored configuration.

    Raises:
        CheckpointError: missing, damaged, or not exported by crossband.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"The exported file {path} does not exist: give its path.")
    try:
        run, stored = (_load_onnx if path.suffix == ".onnx" else _load_pt2)(path)
    except CrossbandError:
        raise
    except Exception as error:  # both runtimes raise many kinds on damaged files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} cannot be read ({reason[:100]}): it is damaged; export it again."
        ) from error
    if not stored:
        raise CheckpointError(
            f"{path} holds no crossband configuration: export it with `crossband ... export`."
        )
    return run, json.loads(stored)


def _write_onnx(
    model: nn.Module,
    inputs: dict[str, Tensor],
    shapes: dict[str, Any],
    path: Path,
    config: dict[str, Any],
) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401 - the exporter needs it
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "onnx", "export") from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (),
            kwargs=inputs,
            dynamo=True,
            dynamic_shapes=shapes,
            output_names=["output"],
            verbose=False,
        )
    proto = program.model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = _KEY, json.dumps(config)
    onnx.save(proto, str(path))


def _load_onnx(path: Path) -> tuple[Callable[..., Tensor], str | None]:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtraError("onnxruntime", "export") from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        feed = {name: value.cpu().numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run, session.get_modelmeta().custom_metadata_map.get(_KEY)


def _load_pt2(path: Path) -> tuple[Callable[..., Tensor], str | None]:
    extra = {_KEY: ""}
    program = torch.export.load(path, extra_files=extra)
    names = program.graph_signature.user_inputs
    module = program.module()

    def run(*inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return module(**dict(zip(names, inputs, strict=True)))

    return run, extra[_KEY]
