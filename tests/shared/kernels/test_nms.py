from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossband.shared.kernels.nms import nms, soft_nms

IMPLEMENTATIONS = ("reference", "sweep")


def random_boxes(count: int, seed: int, *, whole: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 100
    boxes = torch.cat([corner, corner + 30 * torch.rand(count, 2, generator=generator)], dim=1)
    scores = torch.rand(count, generator=generator)
    return (boxes.round(), (8 * scores).round() / 8) if whole else (boxes, scores)


def brute_force(boxes: Tensor, scores: Tensor, threshold: float, offset: int) -> list[int]:
    """Follow the definition in plain Python, in float32 like the operators."""
    rows, one = boxes.numpy().astype(np.float32), np.float32(offset)
    kept: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: (-float(scores[i]), i)):
        for j in kept:
            a, b = rows[i], rows[j]
            width = max(np.float32(0), min(a[2], b[2]) - max(a[0], b[0]) + one)
            height = max(np.float32(0), min(a[3], b[3]) - max(a[1], b[1]) + one)
            areas = [(r[2] - r[0] + one) * (r[3] - r[1] + one) for r in (b, a)]
            shared = width * height
            union = areas[0] + areas[1] - shared
            if union and shared / union > np.float32(threshold):
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
class TestNms:
    @pytest.mark.parametrize("whole", [False, True])
    @pytest.mark.parametrize("offset", [0, 1])
    @pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 1.0])
    def test_definition(
        self, implementation: str, whole: bool, offset: int, threshold: float
    ) -> None:
        for count, seed in ((1, 0), (70, 1), (150, 2)):
            boxes, scores = random_boxes(count, seed, whole=whole)
            found = nms(boxes, scores, threshold, offset=offset, implementation=implementation)
            assert found.dtype == torch.long
            assert found.tolist() == brute_force(boxes, scores, threshold, offset)

    def test_an_overlap_of_the_threshold_is_kept(self, implementation: str) -> None:
        boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.0]])  # overlap 1/2
        scores = torch.tensor([0.9, 0.8])
        kept = [nms(boxes, scores, t, implementation=implementation) for t in (0.5, 0.49)]
        assert [k.tolist() for k in kept] == [[0, 1], [0]]

    def test_pixel_corners(self, implementation: str) -> None:
        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 2.0, 2.0]])  # share one pixel of 7
        scores = torch.tensor([0.5, 0.6])
        kept = nms(boxes, scores, 0.14, offset=1, implementation=implementation)
        assert kept.tolist() == [1]
        assert len(nms(boxes, scores, 0.0, implementation=implementation)) == 2

    def test_equal_scores_go_in_order(self, implementation: str) -> None:
        boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(40, 1)
        boxes[20:] += 100
        kept = nms(boxes, torch.full((40,), 0.5), 0.5, implementation=implementation)
        assert kept.tolist() == [0, 20]

    def test_a_chain_is_settled_from_the_best(self, implementation: str) -> None:
        start = torch.arange(300.0) * 4
        boxes = torch.stack([start, 0 * start, start + 10, 0 * start + 1], dim=1)
        scores = torch.linspace(1, 0, 300)  # each overlaps the next by 6/14, that after by 2/18
        kept = nms(boxes, scores, 0.2, implementation=implementation)
        assert kept.tolist() == list(range(0, 300, 2))

    def test_boxes_far_apart_and_odd_ones(self, implementation: str) -> None:
        nothing = torch.zeros(0, 4)
        assert nms(nothing, nothing[:, 0], 0.5, implementation=implementation).shape == (0,)
        odd = torch.tensor(
            [[0, 0, 0, 0], [0, 0, 0, 0], [5, 5, 1, 1], [0, 0, 1e30, 1e30], [torch.nan] * 4]
        )
        kept = nms(odd, torch.arange(5.0), 0.5, implementation=implementation)
        assert kept.tolist() == [4, 3, 2, 1, 0]

    def test_half_precision(self, implementation: str) -> None:
        boxes, scores = random_boxes(80, 3)
        halves = boxes.half(), scores.half()
        found = nms(*halves, 0.4, implementation=implementation)
        expected = nms(halves[0].double(), halves[1].double(), 0.4)
        assert torch.equal(found, expected)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_both_ways_keep_the_same(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 90))
    number = st.integers(0, 12)
    rows = data.draw(st.lists(st.tuples(*[number] * 5), min_size=count, max_size=count))
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    boxes = torch.cat([values[:, :2], values[:, :2] + values[:, 2:4]], dim=1)
    threshold = data.draw(st.sampled_from([0.0, 0.25, 0.5, 0.75]))
    ways = [nms(boxes, values[:, 4], threshold, implementation=way) for way in IMPLEMENTATIONS]
    assert torch.equal(*ways)


class TestSoftNms:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 0, 30, 10], [0, 0, 10, 8]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])

    @pytest.mark.parametrize(
        ("method", "order", "lowered"),
        [
            # Overlaps with box 0: 0.5, 0 and 0.8; of 1 and 3: 5/8.
            ("naive", [0, 2], [0.9, 0.7]),
            ("linear", [0, 2, 1, 3], [0.9, 0.7, 0.8 * 0.5, 0.6 * 0.2 * 0.375]),
            (
                "gaussian",
                [0, 2, 1, 3],
                [0.9, 0.7, 0.8 * np.exp(-0.5), 0.6 * np.exp(-1.28 - 0.78125)],
            ),
        ],
    )
    def test_scores(self, method: str, order: list[int], lowered: list[float]) -> None:
        dets, index = soft_nms(self.boxes, self.scores, method=method, min_score=1e-3)
        assert index.tolist() == order
        assert torch.equal(dets[:, :4], self.boxes[order])
        np.testing.assert_allclose(dets[:, 4], lowered, rtol=1e-6)

    def test_the_lowest_are_dropped(self) -> None:
        _, index = soft_nms(self.boxes, self.scores, method="linear", min_score=0.1)
        assert index.tolist() == [0, 2, 1]

    @pytest.mark.parametrize("seed", range(5))
    def test_naive_is_hard(self, seed: int) -> None:
        boxes, scores = random_boxes(120, seed)
        _, index = soft_nms(boxes, scores + 0.1, method="naive", iou_threshold=0.4)
        assert torch.equal(index, nms(boxes, scores, 0.4))

    @pytest.mark.parametrize("method", ["linear", "gaussian"])
    def test_each_step_by_the_definition(self, method: str) -> None:
        boxes, scores = random_boxes(60, 7)
        boxes, scores = boxes.double(), scores.double()
        dets, index = soft_nms(boxes, scores, method=method, min_score=0.05)
        left, current, taken = set(range(60)), scores.clone(), []
        while left:
            best = max(left, key=lambda i: float(current[i]))
            if current[best] < 0.05:
                break
            taken.append((best, float(current[best])))
            left.discard(best)
            for i in left:
                a, b = boxes[best], boxes[i]
                sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0)
                areas = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()
                overlap = sides.prod() / (areas - sides.prod())
                if method == "gaussian":
                    current[i] *= torch.exp(-(overlap**2) / 0.5)
                elif overlap >= 0.3:
                    current[i] *= 1 - overlap
        assert index.tolist() == [i for i, _ in taken]
        np.testing.assert_allclose(dets[:, 4], [s for _, s in taken], rtol=1e-12)

    def test_empty_boxes_do_not_overlap(self) -> None:
        boxes = torch.zeros(3, 4)
        dets, index = soft_nms(boxes, torch.tensor([0.5, 0.9, 0.7]), method="gaussian")
        assert index.tolist() == [1, 2, 0]
        assert dets[:, 4].tolist() == pytest.approx([0.9, 0.7, 0.5])

    def test_no_boxes(self) -> None:
        dets, index = soft_nms(torch.zeros(0, 4), torch.zeros(0))
        assert dets.shape == (0, 5) and index.shape == (0,)
