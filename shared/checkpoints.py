"""Checkpoints are products: one safetensors file that holds weights and how to use them.

The header entry `crossband` of the file is a JSON object: `format` (version), `model` (name and
arguments), `task`, `data`, `normalisation`, `metrics` with their protocol, `versions`. A single
file can be moved without losing what it needs. Nothing here ever unpickles code.
"""

from __future__ import annotations

import json
import zipfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from crossband.shared.errors import CheckpointError
from crossband.shared.files import atomic_path

FORMAT_VERSION = 1
HEADER_KEY = "crossband"

# Brings a configuration written by format version k to version k + 1.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

# Containers that training scripts wrap around the weights, in the order they are looked for.
_CONTAINERS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "params"),
    "teacher",  # of DINO and iBOT, whose teacher is what is used
)

# Training scripts save their arguments beside the weights (MAE, DINO, iBOT); a Namespace keeps
# values and does nothing with them.
_INERT = (Namespace,)


class _LogHistory:
    """Stands in for mmengine's log history, of which weights need nothing."""


def _log_method(owner: Any, name: str) -> str:
    """Stand in for the `getattr` by which a log history names its methods; looks nothing up."""
    if owner is not _LogHistory:
        raise UnpicklingError(f"{name!r} is no method of a log history")
    return name


def numpy_parts() -> list[Any]:
    """Return what arrays and numbers of NumPy are pickled with, for `read_pickle`."""
    core = np._core if hasattr(np, "_core") else np.core
    parts = [core.multiarray.scalar, core.multiarray._reconstruct]
    # Files of NumPy 1 and 2 name the same two functions differently.
    named = [
        (part, f"numpy.{module}.multiarray.{part.__name__}")
        for part in parts
        for module in ("core", "_core")
    ]
    types = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdFD"}
    return [*named, np.ndarray, np.dtype, *types]


def _training_logs() -> list[Any]:
    """Return what mmengine saves beside the weights, with stand-ins for its own classes."""
    history = (_LogHistory, "mmengine.logging.history_buffer.HistoryBuffer")
    return [history, (_log_method, "builtins.getattr"), *numpy_parts()]


@dataclass(frozen=True)
class Checkpoint:
    """Weights and configuration read from a crossband checkpoint."""

    path: Path
    state_dict: dict[str, Tensor]
    config: dict[str, Any]


def save_checkpoint(path: str | Path, state_dict: dict[str, Tensor], config: dict) -> Path:
    """Write weights and configuration into one safetensors file, atomically.

    Args:
        path: Target; must end in `.safetensors`.
        state_dict: Parameters and persistent buffers.
        config: JSON-able description; `format` and the library versions are added.

    Raises:
        CrossbandError: the file cannot be written (full disk, no permission).
    """
    from crossband.shared.environment import versions

    path = Path(path)
    config = {"format": FORMAT_VERSION, "versions": versions(), **config}
    # Copies, since safetensors refuses tensors that share memory (tied weights).
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state_dict.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={HEADER_KEY: json.dumps(config)})
        except SafetensorError as error:  # the writer wraps the operating system's error
            raise OSError(None, str(error)) from error
    return path


def read_config(path: str | Path) -> dict[str, Any]:
    """Return the configuration of a checkpoint without reading its weights.

    Raises:
        CheckpointError: not a checkpoint written by crossband, or a newer format.
    """
    path = _existing(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is not a crossband checkpoint (.safetensors): convert the authors' file "
            f"first with `crossband models convert {path} OUT.safetensors --model NAME`."
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER_KEY)
    except (SafetensorError, OSError) as error:
        raise _corrupt(path, error) from error
    if header is None:
        raise CheckpointError(
            f"{path} holds weights but no crossband configuration: convert it first with "
            f"`crossband models convert {path} OUT.safetensors --model NAME`."
        )
    try:
        config = json.loads(header)
        version = int(config["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise _corrupt(path, error) from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {version}, this crossband reads up to "
            f"{FORMAT_VERSION}: update crossband."
        )
    while version < FORMAT_VERSION:
        config = MIGRATIONS[version](config)
        version += 1
    return config


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint that crossband wrote.

    Raises:
        CheckpointError: missing, foreign, corrupt or newer than this version.
    """
    config = read_config(path)
    state_dict, _ = read_state_dict(path)
    return Checkpoint(Path(path), state_dict, config)


def read_state_dict(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the weights of any checkpoint file safely.

    Reads safetensors, and PyTorch files, mmengine's with their logs as well, through the restricted
    unpickler. Containers such as `{"state_dict": ...}` are opened.

    Returns:
        The tensors by name, and what else the file says (safetensors header or the non-tensor
        entries of a PyTorch file).

    Raises:
        CheckpointError: missing or corrupt file, a pickle that would run code, or no tensors.
    """
    path = _existing(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise _corrupt(path, error) from error
    return find_state_dict(read_pickle(path, allowed=_training_logs()), path)


def read_pickle(path: str | Path, *, allowed: Sequence[Any] = (), map_location: Any = "cpu") -> Any:
    """Read all of a PyTorch file through the restricted unpickler.

    Args:
        path: File that `torch.save` wrote.
        allowed: What may be built besides tensors, plain containers and `argparse.Namespace`, as
            for `torch.serialization.safe_globals`. Anything here is called with arguments that the
            file chooses, so nothing general (`getattr`) belongs here.
        map_location: As for `torch.load`.

    Raises:
        CheckpointError: missing or corrupt file, or a pickle that would run code.
    """
    path = _existing(path)
    if not _is_pickle(path):
        raise CheckpointError(
            f"{path} is no file of weights (its first bytes are not those of a PyTorch file): give "
            "a .safetensors file, or one that torch.save wrote."
        )
    try:
        with torch.serialization.safe_globals([*_INERT, *allowed]):
            return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # the unpickler raises many kinds on damaged files
        if "weights_only" in str(error).lower() and not _damaged_archive(path):
            raise CheckpointError(
                f"{path} is a pickle that would run code or build unknown objects when opened, "
                "so it is refused: ask its author for a safetensors file or plain tensors."
            ) from error
        raise _corrupt(path, error) from error


def find_state_dict(content: Any, source: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Open the containers that training scripts wrap around weights.

    Returns:
        The tensors by name, and the other entries of the outer container.

    Raises:
        CheckpointError: no tensors.
    """
    extra: dict[str, Any] = {}
    if isinstance(content, dict):
        extra = {k: v for k, v in content.items() if not isinstance(v, (Tensor, dict))}
        for name in _CONTAINERS:
            if isinstance(content.get(name), dict):
                content = content[name]
                break
    tensors = (
        {k: v for k, v in content.items() if isinstance(v, Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        raise CheckpointError(f"{source} holds no tensors: it is not a file of weights.")
    return tensors, extra


def load_state(model: nn.Module, state_dict: dict[str, Tensor], source: str | Path) -> None:
    """Load weights that must fit exactly; say what does not.

    Raises:
        CheckpointError: missing or unexpected keys, or other shapes.
    """
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state_dict.items()}
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    other = sorted(k for k in expected.keys() & found.keys() if expected[k] != found[k])
    if missing or unexpected or other:
        matched = len(expected) - len(missing) - len(other)
        parts = [f"{matched} of {len(expected)} tensors match"]
        if missing:
            parts.append(f"{len(missing)} missing (first: {missing[0]})")
        if unexpected:
            parts.append(f"{len(unexpected)} unexpected (first: {unexpected[0]})")
        if other:
            key = other[0]
            parts.append(
                f"{len(other)} of another shape (first: {key}, file {found[key]}, "
                f"model {expected[key]})"
            )
        raise CheckpointError(
            f"{source} does not fit {type(model).__name__}: {'; '.join(parts)}. Choose the model "
            "and arguments that these weights were made with."
        )
    model.load_state_dict(state_dict)


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise CheckpointError(f"The checkpoint {path} {what}: give the path of its weights file.")
    return path


def _is_pickle(path: Path) -> bool:
    """Whether a file begins as those of `torch.save` do: an archive, or a pickle of protocol 2."""
    with path.open("rb") as file:
        start = file.read(4)
    return start == b"PK\x03\x04" or start[:1] == b"\x80"


def _damaged_archive(path: Path) -> bool:
    """Whether a PyTorch archive is truncated rather than unsafe."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04" and not zipfile.is_zipfile(path)


def _corrupt(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return CheckpointError(
        f"{path} cannot be read as weights ({reason[:120]}): it is truncated or not a "
        "checkpoint; copy or download it again."
    )
