from __future__ import annotations

import importlib.util
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from crossband.shared.errors import ConfigError
from crossband.shared.kernels.roi_align import roi_align
from crossband.shared.plugins import mmcv_ext

for library in ("mmengine", "mmcv", "cv2"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: extra openmmlab", allow_module_level=True)

if not mmcv_ext.install():
    pytest.skip("this mmcv has compiled operators", allow_module_level=True)

import mmcv.ops as ops  # noqa: E402


def boxes_and_scores(count: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    corner = 80 * torch.rand(count, 2, generator=generator)
    boxes = torch.cat([corner, corner + 30 * torch.rand(count, 2, generator=generator)], dim=1)
    return boxes, torch.rand(count, generator=generator)


class TestModule:
    def test_is_found_where_mmcv_looks(self) -> None:
        assert isinstance(sys.modules["mmcv._ext"], ModuleType)
        assert importlib.util.find_spec("mmcv._ext") is not None
        if hasattr(pkgutil, "find_loader"):  # gone from Python 3.14 on
            pkgutil.find_loader("mmcv._ext")
        assert mmcv_ext.install()  # again: nothing changes

    def test_other_operators_are_named_when_called(self) -> None:
        layer = ops.DeformConv2d(2, 2, 3)
        x = torch.zeros(1, 2, 8, 8)
        with pytest.raises(mmcv_ext.MissingOperatorError, match="'deform_conv_forward'.*install"):
            layer(x, torch.zeros(1, 18, 6, 6))

    def test_dunders_are_no_operators(self) -> None:
        with pytest.raises(AttributeError):
            sys.modules["mmcv._ext"].__path__  # noqa: B018

    def run(self, code: str) -> str:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def test_a_compiled_module_stays(self, tmp_path: Path) -> None:
        (tmp_path / "mmcv").mkdir()
        (tmp_path / "mmcv" / "__init__.py").touch()
        compiled = tmp_path / "mmcv" / "_ext.py"
        code = (
            f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
            "from crossband.shared.plugins import mmcv_ext\n"
            "print(mmcv_ext.install())\nimport mmcv._ext\nprint(mmcv._ext.__file__ is not None)"
        )
        compiled.write_text("nms = None")
        assert self.run(code).split() == ["False", "True"]
        compiled.write_text("raise ImportError('undefined symbol: _ZN3c10')")
        text = self.run(code.replace("__file__ is not None", "nms"))
        assert "do not fit this torch (undefined symbol: _ZN3c10)" in text
        assert "True" in text.split()


class TestTools:
    def test_are_found_by_name_or_path(self, tmp_path: Path) -> None:
        pytest.importorskip("mmseg")
        assert mmcv_ext.find_tool("mmseg:train").parts[-3:] == (".mim", "tools", "train.py")
        (tmp_path / "x.py").touch()
        assert mmcv_ext.find_tool(str(tmp_path / "x.py")) == tmp_path / "x.py"

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("mmseg:trian", "Did you mean 'train'"),
            ("mmnothing:train", "mmnothing is not installed"),
            ("absent.py", "does not exist"),
        ],
    )
    def test_mistakes(self, name: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            mmcv_ext.find_tool(name)

    def test_a_script_finds_the_operators(self, tmp_path: Path) -> None:
        script = tmp_path / "script.py"
        script.write_text("import sys\nfrom mmcv.ops import nms\nprint(sys.argv[1:], __name__)")
        command = [sys.executable, "-m", "crossband.shared.plugins.mmcv_ext", str(script), "--x"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert "['--x'] __main__" in done.stdout, done.stderr


class TestBoxes:
    def test_nms(self) -> None:
        boxes, scores = boxes_and_scores()
        dets, kept = ops.nms(boxes, scores, 0.3, score_threshold=0.2, max_num=10)
        assert dets.shape == (10, 5) and torch.equal(dets[:, :4], boxes[kept])
        assert dets[:, 4].diff().le(0).all() and dets[:, 4].min() > 0.2
        arrays = ops.nms(boxes.numpy(), scores.numpy(), 0.3)
        assert isinstance(arrays[0], np.ndarray)

    @pytest.mark.parametrize("kind", ["nms", "soft_nms"])
    def test_batched_by_class(self, kind: str) -> None:
        boxes, scores = boxes_and_scores()
        classes = torch.arange(len(boxes)) % 3
        options = {"type": kind, "iou_threshold": 0.3}
        dets, kept = ops.batched_nms(boxes, scores, classes, options)
        single = [
            getattr(ops, kind)(boxes[classes == c], scores[classes == c], 0.3) for c in range(3)
        ]
        expected = {
            int((classes == c).nonzero()[i]): float(found[n, 4])
            for c, (found, index) in enumerate(single)
            for n, i in enumerate(index)
        }
        assert {int(i) for i in kept} == expected.keys()
        for i, score in zip(kept.tolist(), dets[:, 4].tolist(), strict=True):
            assert score == pytest.approx(expected[i], abs=2e-5)  # shifted boxes round

    def test_soft_nms(self) -> None:
        boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 0, 30, 10]])
        dets, kept = ops.soft_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), method="linear")
        assert kept.tolist() == [0, 2, 1]
        assert dets[:, 4].tolist() == pytest.approx([0.9, 0.7, 0.4])


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align(mode: str, aligned: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 4, 12, 16, generator=generator)
    boxes, _ = boxes_and_scores(10)
    rois = torch.cat([torch.arange(10.0)[:, None] % 2, boxes], dim=1)
    results = []
    for ours in (True, False):
        x = features.clone().requires_grad_()
        if ours:
            y = roi_align(x, rois, (3, 4), spatial_scale=0.125, mode=mode, aligned=aligned)
        else:
            y = ops.RoIAlign((3, 4), 0.125, 0, mode, aligned)(x, rois)
        y.square().sum().backward()
        results.append((y.detach(), x.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("weighted", [False, True])
def test_sigmoid_focal_loss(weighted: bool) -> None:
    """By the operators that mmcv calls on accelerators; on a CPU mmdet has its own formula."""
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.arange(8) % 4
    p = logits.sigmoid()
    positive = torch.nn.functional.one_hot(target, 4)[:, :3].bool()
    expected = torch.where(positive, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log())
    weight = torch.tensor([1.0, 2.0, 3.0]) if weighted else None
    if weighted:
        expected = expected * torch.tensor([1.0, 2.0, 3.0, 1.0])[target][:, None]
    found = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, "sum")
    torch.testing.assert_close(found, expected.sum())
    grads = [torch.autograd.grad(loss, logits)[0] for loss in (found, expected.sum())]
    torch.testing.assert_close(*grads)


def test_deformable_attention() -> None:
    """The operator of accelerators against mmcv's own form in PyTorch."""
    from mmcv.ops.multi_scale_deform_attn import (
        MultiScaleDeformableAttnFunction,
        multi_scale_deformable_attn_pytorch,
    )

    generator = torch.Generator().manual_seed(0)
    shapes = torch.tensor([[4, 5], [2, 3]])
    start = torch.tensor([0, 20])
    value = torch.randn(2, 26, 2, 4, generator=generator, dtype=torch.float64)
    locations = 1.2 * torch.rand(2, 7, 2, 2, 3, 2, generator=generator, dtype=torch.float64) - 0.1
    weights = torch.rand(2, 7, 2, 2, 3, generator=generator, dtype=torch.float64)
    sources = [t.requires_grad_() for t in (value, locations, weights)]
    found = MultiScaleDeformableAttnFunction.apply(value, shapes, start, locations, weights, 64)
    expected = multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(y.square().sum(), sources) for y in (found, expected)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


# ---------------------------------------------------------------------------------------------
# mmcv's own operators, compiled from the sources in its wheel

_BINDING = """
#include "pytorch_cpp_helper.hpp"
#include "pytorch_device_registry.hpp"
#include <torch/extension.h>
Tensor nms_impl(Tensor b, Tensor s, float t, int o) {
  return DISPATCH_DEVICE_IMPL(nms_impl, b, s, t, o);
}
Tensor softnms_impl(Tensor b, Tensor s, Tensor d, float t, float g, float m, int k, int o) {
  return DISPATCH_DEVICE_IMPL(softnms_impl, b, s, d, t, g, m, k, o);
}
std::vector<std::vector<int>> nms_match_impl(Tensor d, float t) {
  return DISPATCH_DEVICE_IMPL(nms_match_impl, d, t);
}
void roi_align_forward_impl(Tensor i, Tensor r, Tensor o, Tensor y, Tensor x, int h, int w,
                            float s, int n, int m, bool a) {
  DISPATCH_DEVICE_IMPL(roi_align_forward_impl, i, r, o, y, x, h, w, s, n, m, a);
}
void roi_align_backward_impl(Tensor g, Tensor r, Tensor y, Tensor x, Tensor o, int h, int w,
                             float s, int n, int m, bool a) {
  DISPATCH_DEVICE_IMPL(roi_align_backward_impl, g, r, y, x, o, h, w, s, n, m, a);
}
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("nms", &nms_impl);
  m.def("softnms", &softnms_impl);
  m.def("roi_align_forward", &roi_align_forward_impl);
  m.def("roi_align_backward", &roi_align_backward_impl);
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from torch.utils.cpp_extension import load

    sources = Path(ops.__file__).parent / "csrc"
    if not (sources / "pytorch" / "cpu" / "nms.cpp").is_file():
        pytest.skip("this mmcv carries no sources")
    if shutil.which("g++") is None or shutil.which("ninja") is None:
        pytest.skip("no compiler: install g++ and ninja")
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "binding.cpp").write_text(_BINDING)
    files = [
        folder / "binding.cpp",
        *(sources / "pytorch" / "cpu" / f"{n}.cpp" for n in ("nms", "roi_align")),
    ]
    return load(
        "mmcv_compiled", list(map(str, files)), extra_include_paths=[str(sources / "common")],
        extra_cflags=["-O2"], build_directory=str(folder),
    )  # fmt: skip


@pytest.mark.slow
class TestCompiled:
    """Same results as mmcv's compiled operators, which take a minute to build."""

    @pytest.mark.parametrize("seed", range(8))
    def test_nms(self, compiled: Any, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        corner = 200 * torch.rand(300, 2, generator=generator)
        boxes = torch.cat([corner, corner + 1 + 40 * torch.rand(300, 2, generator=generator)], 1)
        scores = torch.rand(300, generator=generator)
        if seed % 2:  # ties of overlaps and, in the soft form, of scores
            boxes, scores = boxes.round(), (8 * scores).round() / 8
        # The compiled form sorts unstably, so it gets distinct scores of the same order.
        distinct = torch.empty(300)
        distinct[scores.sort(descending=True, stable=True).indices] = torch.arange(300.0, 0, -1)
        for offset in (0, 1):
            for threshold in (0.0, 0.3, 0.5, 0.9):
                expected = compiled.nms(boxes, distinct, threshold, offset)
                assert torch.equal(mmcv_ext.nms(boxes, scores, threshold, offset), expected)
            for method in range(3):
                found, expected = torch.zeros(300, 5), torch.zeros(300, 5)
                options = (0.3, 0.5, 1e-3, method, offset)
                index = mmcv_ext.softnms(boxes, scores, found, *options)
                assert torch.equal(index, compiled.softnms(boxes, scores, expected, *options))
                expected = expected[: len(index)]
                torch.testing.assert_close(found[: len(index)], expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("mode", [0, 1])
    @pytest.mark.parametrize("aligned", [True, False])
    @pytest.mark.parametrize("ratio", [0, 1, 3])
    def test_roi_align(self, compiled: Any, mode: int, aligned: bool, ratio: int) -> None:
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(2, 5, 13, 17, generator=generator, dtype=torch.float64)
        corner = 160 * torch.rand(60, 2, generator=generator, dtype=torch.float64) - 10
        side = 90 * torch.rand(60, 2, generator=generator, dtype=torch.float64)
        image = torch.arange(60.0)[:, None] % 2
        rois = torch.cat([image, corner, corner + side], dim=1)
        grad = torch.randn(60, 5, 3, 4, generator=generator, dtype=torch.float64)
        results = []
        for module in (mmcv_ext, compiled):
            pooled = torch.zeros(60, 5, 3, 4, dtype=torch.float64)
            at_y, at_x = torch.zeros_like(pooled), torch.zeros_like(pooled)
            options = (3, 4, 0.125, ratio, mode, aligned)
            module.roi_align_forward(features, rois, pooled, at_y, at_x, *options)
            found = torch.zeros_like(features)
            module.roi_align_backward(grad, rois, at_y, at_x, found, *options)
            results.append((pooled, found))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
