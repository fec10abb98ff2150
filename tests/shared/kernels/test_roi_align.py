from __future__ import annotations

import itertools
from importlib import import_module

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from crossband.shared.kernels.roi_align import roi_align

IMPLEMENTATIONS = ("reference", "cropped")


def arrays(seed: int = 0, channels: int = 3, height: int = 9, width: int = 12) -> list[Tensor]:
    """Return a map and boxes in image units (stride 4), some of them leaving the map."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    features = draw(2, channels, height, width) - 0.5
    corner = draw(12, 2) * torch.tensor([width, height]) * 5 - 10
    image = torch.arange(12.0, dtype=torch.float64)[:, None] % 2
    return [features, torch.cat([image, corner, corner + 40 * draw(12, 2)], dim=1)]


def definition(
    features: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    scale: float,
    ratio: int,
    mode: str,
    aligned: bool,
) -> Tensor:
    """Read every point off the map, one at a time."""
    height, width = features.shape[2:]

    def at(image: int, y: float, x: float) -> Tensor:
        if not (-1 <= y <= height and -1 <= x <= width):
            return features.new_zeros(features.shape[1])
        y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
        top, left = int(y), int(x)
        down, right = min(top + 1, height - 1), min(left + 1, width - 1)
        low = (1 - x + left) * features[image, :, top, left]
        low = low + (x - left) * features[image, :, top, right]
        high = (1 - x + left) * features[image, :, down, left]
        high = high + (x - left) * features[image, :, down, right]
        return (1 - y + top) * low + (y - top) * high

    pooled = features.new_zeros(len(boxes), features.shape[1], *size)
    for n, box in enumerate(boxes.tolist()):
        x1, y1, x2, y2 = (scale * value - 0.5 * aligned for value in box[1:])
        spans = [y2 - y1, x2 - x1] if aligned else [max(y2 - y1, 1.0), max(x2 - x1, 1.0)]
        bins = [span / count for span, count in zip(spans, size, strict=True)]
        counts = [ratio or -int(-b // 1) for b in bins]
        for i, j in itertools.product(*map(range, size)):
            points = [
                at(
                    int(box[0]),
                    y1 + bins[0] * (i + (a + 0.5) / counts[0]),
                    x1 + bins[1] * (j + (b + 0.5) / counts[1]),
                )
                for a, b in itertools.product(*map(range, counts))
            ]
            if points:
                stacked = torch.stack(points)
                pooled[n, :, i, j] = stacked.mean(0) if mode == "avg" else stacked.amax(0)
    return pooled


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_definition(implementation: str, aligned: bool, mode: str, ratio: int) -> None:
    features, boxes = arrays()
    expected = definition(features, boxes, (2, 3), 0.25, ratio, mode, aligned)
    found = roi_align(
        features, boxes, (2, 3), spatial_scale=0.25, sampling_ratio=ratio, mode=mode,
        aligned=aligned, implementation=implementation,
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_gradient(implementation: str, mode: str, ratio: int) -> None:
    features, boxes = arrays(1, channels=2, height=5, width=6)
    boxes = boxes[:5] / torch.tensor([1, 2, 2, 2, 2])
    features.requires_grad_()
    assert gradcheck(
        lambda x: roi_align(
            x, boxes, 2, spatial_scale=0.25, sampling_ratio=ratio, mode=mode,
            implementation=implementation,
        ),
        features,
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_both_ways_in_float32(mode: str) -> None:
    features, boxes = (t.float() for t in arrays(2, channels=16, height=40, width=50))
    boxes[:, 1:] *= 4
    results = []
    for implementation in IMPLEMENTATIONS:
        x = features.clone().requires_grad_()
        y = roi_align(x, boxes, 7, spatial_scale=0.25, mode=mode, implementation=implementation)
        y.square().sum().backward()
        results.append((y.detach(), x.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_plane_gives_the_centres_of_the_bins() -> None:
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    plane = (3 * x + 2 * y + 1)[None, None]
    box = torch.tensor([[0, 4.0, 3.0, 16.0, 11.0]])
    pooled = roi_align(plane, box, (4, 6))[0, 0]
    rows, columns = 3.0 + 2 * (torch.arange(4.0) + 0.5), 4.0 + 2 * (torch.arange(6.0) + 0.5)
    expected = 3 * (columns - 0.5) + 2 * (rows[:, None] - 0.5) + 1
    torch.testing.assert_close(pooled, expected)


@pytest.mark.parametrize("ratio", [1, 2])
def test_torchvisions_python_form_inside_the_map(ratio: int) -> None:
    """Eager, since torchvision's form in Python would be compiled for a minute."""
    plain = import_module("torchvision.ops.roi_align")._roi_align
    features, boxes = (t.float() for t in arrays(3, height=20, width=20))
    boxes[:, 1:] = (boxes[:, 1:] * 0.5 + 25).clamp(4, 70)
    boxes[:, 3:] = torch.maximum(boxes[:, 3:], boxes[:, 1:3] + 1)
    with torch.compiler.set_stance("force_eager"):
        expected = plain(features, boxes, 0.25, 3, 4, ratio, True)
    found = roi_align(features, boxes, (3, 4), spatial_scale=0.25, sampling_ratio=ratio)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_empty_boxes_and_no_boxes() -> None:
    features, _ = arrays()
    features.requires_grad_()
    box = torch.tensor([[0, 8.0, 8.0, 8.0, 8.0]], dtype=torch.float64)
    for mode in ("avg", "max"):
        pooled = roi_align(features, box, 2, spatial_scale=0.25, mode=mode)
        assert torch.equal(pooled, torch.zeros(1, 3, 2, 2, dtype=torch.float64))
        pooled.sum().backward()
        assert not features.grad.any()
    for implementation in IMPLEMENTATIONS:
        nothing = roi_align(features, box[:0], 2, implementation=implementation)
        assert nothing.shape == (0, 3, 2, 2) and nothing.requires_grad
    # Unaligned boxes are a cell wide at least.
    assert roi_align(features, box, 2, spatial_scale=0.25, aligned=False).abs().min() > 0


def test_a_box_outside_the_map_gives_zero() -> None:
    features, _ = arrays()
    box = torch.tensor([[1, 500.0, 8.0, 540.0, 20.0]], dtype=torch.float64)
    assert not roi_align(features, box, 3, spatial_scale=0.25).any()


def test_equal_points_send_the_gradient_to_the_first() -> None:
    features = torch.ones(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    box = torch.tensor([[0, 0.5, 0.5, 2.5, 2.5]], dtype=torch.float64)
    for implementation in IMPLEMENTATIONS:
        features.grad = None
        roi_align(
            features, box, 1, sampling_ratio=2, mode="max", implementation=implementation
        ).sum().backward()
        expected = torch.zeros(4, 4, dtype=torch.float64)
        expected[:2, :2] = 0.25  # the point (0.5, 0.5) lies between four cells
        torch.testing.assert_close(features.grad[0, 0], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_pooled_in_single(dtype: torch.dtype) -> None:
    features, boxes = arrays()
    halves = features.to(dtype)
    found = roi_align(halves, boxes.float(), 3, spatial_scale=0.25)
    expected = roi_align(halves.float(), boxes.float(), 3, spatial_scale=0.25)
    assert found.dtype == dtype
    assert torch.equal(found, expected.to(dtype))


def test_channels_last_and_slices() -> None:
    features, boxes = arrays()
    expected = roi_align(features, boxes, 3, spatial_scale=0.25)
    last = features.contiguous(memory_format=torch.channels_last)
    wide = torch.cat([features, features], dim=1)[:, :3]
    for same in (last, wide):
        torch.testing.assert_close(roi_align(same, boxes, 3, spatial_scale=0.25), expected)


def test_the_same_bits_each_time() -> None:
    features, boxes = (t.float() for t in arrays())
    grads = []
    for _ in range(2):
        x = features.clone().requires_grad_()
        roi_align(x, boxes, 7, spatial_scale=0.25).square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)
