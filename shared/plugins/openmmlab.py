"""The plugin for OpenMMLab, for stock configs of mmseg and mmdet.

All that a config needs is

    custom_imports = dict(imports=["crossband.shared.plugins.openmmlab"])

and `type="crossband.UniRepLKNet"` (docs/openmmlab.md). Importing it

- declares torchvision's operators where they cannot be loaded (`shared/compat.py`);
- supplies `mmcv._ext` in PyTorch unless a compiled one loads (`mmcv_ext.py`);
- makes a child of each of mmengine's registries, scope `crossband`; what is in them
  (`openmmlab_parts/`) is imported when the first name is looked up;
- has every checkpoint file read without running what is in it.

A script imports it before `mmseg.apis` or `mmdet.apis`.
"""

from __future__ import annotations

import inspect
import json
import os.path
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import crossband.shared.compat  # noqa: F401 - before mmseg, which imports torchvision

from crossband.shared.plugins import mmcv_ext

# Before anything imports mmseg.models, which looks for operators once and remembers.
mmcv_ext.install()

import torch  # noqa: E402
from mmengine import registry as roots  # noqa: E402
from mmengine.dist import barrier, get_rank  # noqa: E402
from mmengine.logging import HistoryBuffer  # noqa: E402
from mmengine.registry import Registry  # noqa: E402
from mmengine.runner import checkpoint  # noqa: E402

from crossband.shared.checkpoints import (  # noqa: E402
    HEADER_KEY,
    numpy_parts,
    read_pickle,
    read_state_dict,
)
from crossband.shared.errors import CheckpointError, ConfigError, did_you_mean  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor, nn

_PARTS = ["crossband.shared.plugins.openmmlab_parts"]


def _child(name: str, root: Registry) -> Registry:
    return Registry(name, parent=root, scope="crossband", locations=_PARTS)


MODELS = _child("model", roots.MODELS)
DATASETS = _child("dataset", roots.DATASETS)
TRANSFORMS = _child("transform", roots.TRANSFORMS)
METRICS = _child("metric", roots.METRICS)
HOOKS = _child("hook", roots.HOOKS)
DATA_SAMPLERS = _child("data sampler", roots.DATA_SAMPLERS)
OPTIM_WRAPPER_CONSTRUCTORS = _child(
    "optimizer wrapper constructor", roots.OPTIM_WRAPPER_CONSTRUCTORS
)
VISUALIZERS = _child("visualizer", roots.VISUALIZERS)


def build(name: str, **arguments: Any) -> nn.Module:
    """Build a model of mmseg or mmdet by `mmseg:Name` or `mmdet:Name`.

    Raises:
        ConfigError: no model has that name, or it does not take the arguments.
        ModuleNotFoundError: the library is not installed.
    """
    library, _, wanted = name.partition(":")
    import_module(f"{library}.models")
    models = import_module(f"{library}.registry").MODELS
    if wanted not in models.module_dict:
        hint = did_you_mean(wanted, models.module_dict)
        raise ConfigError(f"{library} has no model {wanted!r}.{hint}")
    model_class = models.module_dict[wanted]
    try:
        inspect.signature(model_class).bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{name} does not take these arguments: {error}.") from error
    return models.build({"type": f"{library}.{wanted}", **arguments})


# ---------------------------------------------------------------------------------------------
# Checkpoints. mmengine unpickles whatever its safe mode refuses, its safe mode may call `getattr`,
# and what it downloads it unpickles without any.

_STATISTICS = ("min", "max", "current", "mean")


def _statistic(owner: Any, name: str) -> Any:
    """Stand in for the `getattr` by which a log history names its four methods."""
    if owner is HistoryBuffer and name in _STATISTICS:
        return getattr(HistoryBuffer, name)
    raise UnpicklingError(f"{name!r} is no method of a log history")


# By the task in a checkpoint of ours: a domain's function from our keys to those of its models
# in OpenMMLab.
TRANSLATORS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {}

# What mmengine's checkpoints hold besides tensors and plain containers.
ALLOWED: tuple[Any, ...] = (HistoryBuffer, (_statistic, "builtins.getattr"), *numpy_parts())


def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint file: safetensors, or PyTorch's through the restricted unpickler.

    Raises:
        CheckpointError: missing or corrupt, or a pickle that would run code.
    """
    path = os.path.expanduser(filename)
    if path.endswith(".safetensors"):
        tensors, header = read_state_dict(path)
        task = json.loads(header.get(HEADER_KEY, "{}")).get("task")
        return {"state_dict": TRANSLATORS.get(task, dict)(tensors), "meta": dict(header)}
    return read_pickle(path, allowed=ALLOWED, map_location=map_location)


def load_from_http(
    filename: str, map_location: Any = None, progress: bool = True
) -> dict[str, Any]:
    """Download a checkpoint into torch's cache, unless it is there, and read it as a local one.

    Raises:
        CheckpointError: it cannot be downloaded, or as `load_from_local`.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / Path(urlparse(filename).path).name
    for turn in ("first", "others"):  # then the others find it, if they share the folder
        if (get_rank() == 0) == (turn == "first") and not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(filename, str(path), progress=progress)
            except OSError as error:
                raise CheckpointError(
                    f"{filename} cannot be downloaded ({error}): copy it to {path} by other means."
                ) from error
        barrier()
    return load_from_local(str(path), map_location)


def load_from_openmmlab(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a file of the model zoo; a local one that the user's list names is read like any."""
    target = checkpoint.get_external_models().get(filename.partition("://")[2], "")
    if target and not target.startswith(("http://", "https://")):
        path = os.path.join(checkpoint._get_mmengine_home(), target)
        return load_from_local(path, map_location)
    return _from_zoo(filename, map_location=map_location)


def load_from_elsewhere(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Refuse storage whose files mmengine would unpickle."""
    raise CheckpointError(
        f"{filename} would be read without a check of what is in it: copy it to a local file and "
        "give that path."
    )


_from_zoo = checkpoint.load_from_openmmlab
for _prefixes, _loader in (
    ("", load_from_local),
    (["http://", "https://"], load_from_http),
    (["open-mmlab://", "openmmlab://"], load_from_openmmlab),
    (["pavi://", r"(\S+\:)?s3://", r"(\S+\:)?petrel://"], load_from_elsewhere),
):
    checkpoint.CheckpointLoader.register_scheme(_prefixes, _loader, force=True)
# torchvision://, mmcls:// and the model zoo find an address and then call this by name.
checkpoint.load_from_http = load_from_http
