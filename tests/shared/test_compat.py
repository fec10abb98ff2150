from __future__ import annotations

import subprocess
import sys

import pytest

LIBRARIES = ("torchvision", "timm", "lightning", "torchmetrics")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


def test_libraries_import_first_after_compat() -> None:
    imports = "; ".join(f"import {name}" for name in LIBRARIES)
    done = run(
        f"import crossband.shared.compat; {imports}; import torch; "
        "from torchvision.transforms import v2; "
        "assert v2.Resize(4)(torch.zeros(3, 8, 8)).shape == (3, 4, 4)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_a_second_definer_does_not_collide() -> None:
    schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    other = f"import torch; lib = torch.library.Library('torchvision', 'FRAGMENT'); " \
            f"lib.define('nms{schema}')\n"  # fmt: skip
    if run("import torchvision").returncode == 0:
        pytest.skip("torchvision's own operators fit this torch")
    done = run(other + "import crossband.shared.compat, torchvision")
    assert done.returncode == 0, done.stderr
