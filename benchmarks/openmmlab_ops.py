"""Speed of the operators that stand in for mmcv's compiled ones; prints Markdown.

The contenders are run in turn in one process on the same arrays, and must agree:

- `nms`: 5,000 boxes, against one comparison with the rest per kept box;
- `roi_align`: 1,000 boxes on four maps of a pyramid (256 channels, two images of 256 x 320),
  7 x 7 bins, forward and backward, against interpolation on the whole map box by box;
- with `--compiled`, mmcv's own CPU operators too, built from the sources in its wheel (a minute);
- with `--detector`, one training step and one prediction of mmdet's Faster R-CNN R50-FPN on two
  images of 256 x 320, random weights.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossband.shared.environment import machine
from crossband.shared.kernels.nms import nms, soft_nms
from crossband.shared.kernels.roi_align import roi_align

STRIDES = (4, 8, 16, 32)
HEIGHT, WIDTH = 256, 320

_BINDING = """
#include "pytorch_cpp_helper.hpp"
#include "pytorch_device_registry.hpp"
#include <torch/extension.h>
using T = Tensor;
T nms_impl(T b, T s, float t, int o) { return DISPATCH_DEVICE_IMPL(nms_impl, b, s, t, o); }
T softnms_impl(T b, T s, T d, float t, float g, float m, int k, int o) {
  return DISPATCH_DEVICE_IMPL(softnms_impl, b, s, d, t, g, m, k, o); }
std::vector<std::vector<int>> nms_match_impl(T d, float t) {
  return DISPATCH_DEVICE_IMPL(nms_match_impl, d, t); }
void roi_align_forward_impl(T i, T r, T o, T y, T x, int h, int w, float s, int n, int m, bool a) {
  DISPATCH_DEVICE_IMPL(roi_align_forward_impl, i, r, o, y, x, h, w, s, n, m, a); }
void roi_align_backward_impl(T g, T r, T y, T x, T o, int h, int w, float s, int n, int m, bool a) {
  DISPATCH_DEVICE_IMPL(roi_align_backward_impl, g, r, y, x, o, h, w, s, n, m, a); }
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("nms", &nms_impl);
  m.def("softnms", &softnms_impl);
  m.def("roi_align_forward", &roi_align_forward_impl);
  m.def("roi_align_backward", &roi_align_backward_impl);
}
"""


def build_compiled() -> Any:
    """Compile mmcv's CPU operators."""
    import mmcv
    from torch.utils.cpp_extension import load

    sources = Path(mmcv.__file__).parent / "ops" / "csrc"
    folder = Path(tempfile.mkdtemp())
    (folder / "binding.cpp").write_text(_BINDING, encoding="utf-8")
    parts = [sources / "pytorch" / "cpu" / f"{name}.cpp" for name in ("nms", "roi_align")]
    return load(
        "mmcv_compiled",
        [str(path) for path in (folder / "binding.cpp", *parts)],
        extra_include_paths=[str(sources / "common")],
        extra_cflags=["-O3"],
        build_directory=str(folder),
    )


def interleave(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Time the steps in turn; return median milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):  # the first round warms up
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(taken) for name, taken in times.items()}


def random_boxes(count: int, largest: float) -> tuple[Tensor, Tensor]:
    """Return boxes on a 1,000 x 1,000 image, sides up to `largest`, and scores."""
    generator = torch.Generator().manual_seed(0)
    corner = 1000 * torch.rand(count, 2, generator=generator)
    side = largest * torch.rand(count, 2, generator=generator)
    # All different, since mmcv's own operator sorts equal scores in no certain order.
    return torch.cat([corner, corner + side], 1), torch.randperm(count, generator=generator) / count


def nms_rows(compiled: Any, rounds: int) -> list[dict[str, Any]]:
    """Measure hard and soft suppression."""
    rows = []
    for largest in (100.0, 400.0):
        boxes, scores = random_boxes(5000, largest)
        steps: dict[str, Callable[[], Any]] = {
            "ours": lambda b=boxes, s=scores: nms(b, s, 0.7),
            "naive": lambda b=boxes, s=scores: nms(b, s, 0.7, implementation="reference"),
        }
        if compiled:
            steps["compiled"] = lambda b=boxes, s=scores: compiled.nms(b, s, 0.7, 0)
        assert all(torch.equal(step(), steps["ours"]()) for step in steps.values())
        kept = len(steps["ours"]())
        name = f"nms, sides up to {largest:.0f} of 1,000, {kept} kept"
        rows.append({"operator": name, **interleave(steps, rounds)})
    boxes, scores = random_boxes(5000, 100.0)
    soft: dict[str, Callable[[], Any]] = {"ours": lambda: soft_nms(boxes, scores)}
    if compiled:
        dets = torch.empty(5000, 5)
        soft["compiled"] = lambda: compiled.softnms(boxes, scores, dets, 0.3, 0.5, 1e-3, 1, 0)
        assert torch.equal(soft["ours"]()[1], soft["compiled"]())
    rows.append({"operator": "soft_nms, linear", **interleave(soft, min(rounds, 5))})
    return rows


def pyramid(count: int) -> list[tuple[Tensor, Tensor, float]]:
    """Return map, boxes (log-uniform sides, 12 to 200 px) and scale of each level."""
    generator = torch.Generator().manual_seed(0)
    shape = torch.rand(count, 2, generator=generator) * 0.6 + 0.7
    side = torch.exp(2.5 + 2.8 * torch.rand(count, 1, generator=generator)) * shape
    limit = torch.tensor([WIDTH, HEIGHT], dtype=torch.float32)
    centre = torch.rand(count, 2, generator=generator) * limit
    low, high = (centre - side / 2).clamp(min=0), torch.minimum(centre + side / 2, limit)
    boxes = torch.cat([(torch.arange(count) % 2)[:, None], low, high], dim=1)
    sizes = (high - low).prod(dim=1).sqrt()
    levels = torch.log2(sizes / 56 + 1e-6).floor().clamp(0, 3)  # the rule of mmdet's extractors
    maps = [torch.randn(2, 256, HEIGHT // s, WIDTH // s, generator=generator) for s in STRIDES]
    return [
        (m, boxes[levels == i], 1 / s) for i, (m, s) in enumerate(zip(maps, STRIDES, strict=True))
    ]


def roi_align_rows(compiled: Any, rounds: int) -> list[dict[str, Any]]:
    """Measure pooling and its gradient."""

    class Compiled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, features: Tensor, boxes: Tensor, scale: float) -> Tensor:
            pooled, none = features.new_zeros(len(boxes), 256, 7, 7), features.new_zeros(0)
            ctx.rest = (boxes, none, none, features.shape, (7, 7, scale, 0, 1, True))
            compiled.roi_align_forward(features, boxes, pooled, none, none, *ctx.rest[-1])
            return pooled

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
            boxes, at_y, at_x, shape, options = ctx.rest
            found = grad.new_zeros(shape)
            compiled.roi_align_backward(grad.contiguous(), boxes, at_y, at_x, found, *options)
            return found, None, None

    levels = pyramid(1000)

    def step(pool: Callable[[Tensor, Tensor, float], Tensor], train: bool) -> list[Tensor]:
        results = []
        for features, boxes, scale in levels:
            x = features.clone().requires_grad_(train)
            y = pool(x, boxes, scale)
            results.append(y.detach())
            if train:
                y.square().sum().backward()
                results.append(x.grad)
        return results

    pools: dict[str, Callable[..., Tensor]] = {
        "ours": lambda x, b, s: roi_align(x, b, 7, spatial_scale=s),
        "naive": lambda x, b, s: roi_align(x, b, 7, spatial_scale=s, implementation="reference"),
    }
    if compiled:
        pools["compiled"] = Compiled.apply
    expected = step(pools["naive"], True)
    for pool in pools.values():
        for a, b in zip(step(pool, True), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    rows = []
    for name, train in (("forward", False), ("forward and backward", True)):
        steps = {who: lambda p=pool, t=train: step(p, t) for who, pool in pools.items()}
        rows.append({"operator": f"roi_align, {name}", **interleave(steps, max(3, rounds // 3))})
    return rows


def detector_text(rounds: int) -> str:
    """Measure a step and a prediction of a whole detector."""
    import_module("crossband.shared.plugins.openmmlab")  # before mmdet

    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    folder = Path(find_spec("mmdet").origin).parent / ".mim" / "configs" / "_base_" / "models"
    settings = Config.fromfile(folder / "faster-rcnn_r50_fpn.py").model
    settings.backbone.init_cfg = None
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(settings)
        batch = demo_mm_inputs(2, image_shapes=[(3, HEIGHT, WIDTH)] * 2, num_classes=80)

        def train() -> None:
            model.train().zero_grad(set_to_none=True)
            data = model.data_preprocessor(batch, training=True)
            loss, _ = model.parse_losses(model.loss(data["inputs"], data["data_samples"]))
            loss.backward()

        @torch.no_grad()
        def predict() -> None:
            model.eval()
            data = model.data_preprocessor(batch, training=False)
            model.predict(data["inputs"], data["data_samples"])

        milliseconds = interleave({"train": train, "predict": predict}, max(3, rounds // 4))
    return (
        f"Faster R-CNN R50-FPN, two images {HEIGHT} x {WIDTH}: loss and backward "
        f"{milliseconds['train']:.0f} ms, prediction {milliseconds['predict']:.0f} ms."
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compiled", action="store_true", help="build mmcv's own operators too")
    parser.add_argument("--detector", action="store_true", help="also a whole detector")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    compiled = build_compiled() if options.compiled else None
    rows = nms_rows(compiled, options.rounds) + roi_align_rows(compiled, options.rounds)
    print(f"{machine()}, torch {torch.__version__}, threads: {options.threads}\n")
    print("| operator | ours ms | naive ms | compiled ms | naive / ours | compiled / ours |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        cells = [f"{row[who]:.1f}" if who in row else "-" for who in ("ours", "naive", "compiled")]
        ratios = [f"{row[w] / row['ours']:.1f}" if w in row else "-" for w in ("naive", "compiled")]
        print("| " + " | ".join([row["operator"], *cells, *ratios]) + " |")
    if options.detector:
        print("\n" + detector_text(options.rounds))


if __name__ == "__main__":
    main()
