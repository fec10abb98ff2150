"""Where and in which number format to compute."""

from __future__ import annotations

import torch

from crossband.shared.errors import ConfigError

# Values of --precision that are run under autocast.
AUTOCAST = {"bf16": torch.bfloat16, "16": torch.float16}


def select_device(name: str) -> torch.device:
    """Return the device that `--device` names; `auto` takes the best there is.

    Raises:
        ConfigError: the device is not there.
    """
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        raise ConfigError(f"--device {name} is not available here: use --device cpu or auto.")
    return torch.device(name)
