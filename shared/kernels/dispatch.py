"""What every dispatcher of operators asks."""

from __future__ import annotations

import torch


def exporting() -> bool:
    """Whether the network is being exported, scripted by a trace or turned into ONNX.

    The file must then hold PyTorch's own operators only, so the reference form is taken.
    """
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()
