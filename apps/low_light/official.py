"""The authors' checkpoints, to ours and back; and two of them joined into one.

State-dict keys are the authors' throughout; wrappers' prefixes are taken off.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from crossband.apps.low_light.config import PackConfig
from crossband.apps.low_light.model import TML
from crossband.shared.checkpoints import load_state, read_state_dict, save_checkpoint
from crossband.shared.cli.output import print_json
from crossband.shared.errors import CheckpointError, ConfigError

_PREFIX = "module."


def from_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return our state dict: DataParallel's prefix is taken off."""
    if all(key.startswith(_PREFIX) for key in state_dict):
        return {key.removeprefix(_PREFIX): value for key, value in state_dict.items()}
    return dict(state_dict)


def to_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the authors' state dict, with DataParallel's prefix."""
    return {_PREFIX + key: value for key, value in state_dict.items()}


def network_part(state_dict: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return the keys of one network: `part` (pm, em, tm) of a pair, or a network alone."""
    state_dict = from_official(state_dict)
    inner = {
        key.removeprefix(f"{part}."): value
        for key, value in state_dict.items()
        if key.startswith(f"{part}.")
    }
    return inner or state_dict


def stem_of(state_dict: dict[str, Tensor], source: str) -> int:
    """Return the stem of a UGDC by its first layer.

    Raises:
        CheckpointError: not a UGDC.
    """
    key = "inc.double_conv.0.weight"
    if key not in state_dict:
        raise CheckpointError(
            f"{source} holds no UGDC (there is no {key}): give the weights of PM and of EM."
        )
    return len(state_dict[key])


def pack(config: PackConfig) -> None:
    """Join PM's and EM's weights into a checkpoint that predict takes.

    Raises:
        ConfigError: the result would replace one of the files.
        CheckpointError: weights that do not fit.
    """
    out = Path(config.out).resolve()
    if out in {Path(name).resolve() for name in (config.predictor, config.enhancer) if name}:
        raise ConfigError(f"--out {config.out} is one of the files to join: name another.")
    parts = {"pm": network_part(read_state_dict(config.predictor)[0], "pm")}
    pair = read_state_dict(config.predictor)[0]
    if config.enhancer is None and any(key.startswith("em.") for key in pair):
        parts["em"] = network_part(pair, "em")  # a pair already
    elif config.enhancer:
        parts["em"] = network_part(read_state_dict(config.enhancer)[0], "em")
    arguments = {
        "height": config.size[0],
        "width": config.size[-1],
        "stem": stem_of(parts["pm"], config.predictor),
        "enhancer_stem": stem_of(parts["em"], str(config.enhancer)) if "em" in parts else 0,
        "resize_patch_grid": config.resize_patch_grid,
    }
    model = TML(**arguments)
    load_state(model.pm, parts["pm"], config.predictor)
    if model.em is not None:
        load_state(model.em, parts["em"], str(config.enhancer))
    description = {
        "task": "enhancement",
        "model": {"name": "tml", "arguments": arguments},
        "source": [config.predictor, config.enhancer],
    }
    save_checkpoint(config.out, model.state_dict(), description)
    if config.json:
        print_json({"path": config.out, "arguments": arguments})
    else:
        print(
            f"{config.out}: PM with stem {arguments['stem']}, EM with stem "
            f"{arguments['enhancer_stem']}, {config.size[0]} x {config.size[-1]}"
        )
