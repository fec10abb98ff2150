"""What this machine and installation are, for checkpoints, reports and `crossband env`."""

from __future__ import annotations

import os
import platform
from importlib import metadata

from crossband import __version__

_PACKAGES = (
    "torch", "torchvision", "lightning", "timm", "numpy", "xarray", "netCDF4", "zarr", "monai",
    "mmengine", "onnx", "onnxruntime",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of crossband, Python and the libraries that are installed."""
    found = {"crossband": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """Return the processor, the number of usable cores and the accelerator in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = f"{platform.system()} {platform.machine()}, {processor()}, {cores} cores"
    import torch

    if torch.cuda.is_available():
        words += f", {torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return words


def processor() -> str:
    """Return the processor's model name, or its architecture where that is all there is."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
