"""UPerHead and FCNHead in training against mmseg's own: the same weights, the same input."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

for library in ("mmengine", "mmcv", "mmseg"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: extra openmmlab", allow_module_level=True)

import crossband.shared.plugins.openmmlab  # noqa: E402, F401, I001 - before mmseg
from mmseg.models.decode_heads import FCNHead as TheirFCN  # noqa: E402
from mmseg.models.decode_heads import UPerHead as TheirUPer  # noqa: E402

from crossband.shared.config import OptimizerConfig, ScheduleConfig  # noqa: E402
from crossband.shared.heads import FCNHead, UPerHead  # noqa: E402
from crossband.shared.tasks.segmentation import SegmentationTask  # noqa: E402

WIDTHS = (6, 8, 10, 12)
CLASSES = 5
COMMON: dict[str, Any] = {
    "num_classes": CLASSES, "align_corners": False, "norm_cfg": {"type": "BN"},
}  # fmt: skip


def uper(dropout: float) -> tuple[nn.Module, nn.Module]:
    ours = UPerHead(WIDTHS, CLASSES, channels=9, pool_scales=(1, 2, 3, 6), dropout=dropout)
    theirs = TheirUPer(
        in_channels=WIDTHS, in_index=(0, 1, 2, 3), pool_scales=(1, 2, 3, 6), channels=9,
        dropout_ratio=dropout, **COMMON,
    )  # fmt: skip
    return ours, theirs


def fcn(dropout: float) -> tuple[nn.Module, nn.Module]:
    ours = FCNHead(WIDTHS, CLASSES, in_index=(2,), channels=7, dropout=dropout)
    theirs = TheirFCN(
        in_channels=WIDTHS[2], in_index=2, channels=7, num_convs=1, concat_input=False,
        dropout_ratio=dropout, **COMMON,
    )  # fmt: skip
    return ours, theirs


def probe(dropout: float) -> tuple[nn.Module, nn.Module]:
    ours = FCNHead(WIDTHS, CLASSES, in_index=(0, 1, 2, 3), num_convs=0, dropout=dropout)
    theirs = TheirFCN(
        in_channels=WIDTHS, in_index=(0, 1, 2, 3), input_transform="resize_concat",
        channels=sum(WIDTHS), num_convs=0, concat_input=False, dropout_ratio=dropout, **COMMON,
    )  # fmt: skip
    return ours, theirs


def maps(sides: tuple[tuple[int, int], ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(3, width, *side, generator=generator)
        for width, side in zip(WIDTHS, sides, strict=True)
    ]


POWERS = ((32, 48), (16, 24), (8, 12), (4, 6))
ODD = ((29, 35), (15, 18), (7, 9), (3, 4))


@pytest.mark.parametrize("sides", [POWERS, ODD], ids=["halves", "odd"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("build", [uper, fcn, probe])
def test_outputs_gradients_and_statistics(build: Any, dropout: float, sides: Any) -> None:
    ours, theirs = build(dropout)
    generator = torch.Generator().manual_seed(0)
    state = {
        key: torch.rand(value.shape, generator=generator) - (0.0 if "var" in key else 0.5)
        if value.is_floating_point()
        else value
        for key, value in theirs.state_dict().items()
    }
    theirs.load_state_dict(state)
    ours.load_state_dict(state)  # strict: the same names
    results = []
    for head in (ours.train(), theirs.train()):
        inputs = [x.clone().requires_grad_() for x in maps(sides)]
        torch.manual_seed(7)
        logits = head(inputs)
        weight = torch.linspace(-1, 1, logits.numel()).view_as(logits)
        (logits * weight).sum().backward()
        results.append((logits, inputs, head))
    (a, inputs_a, _), (b, inputs_b, _) = results
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for x, y in zip(inputs_a, inputs_b, strict=True):
        assert (x.grad is None) == (y.grad is None)
        if x.grad is not None:
            scale = float(y.grad.abs().max())
            torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-4 * scale)
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        wanted = gradients[name].grad
        scale = float(wanted.abs().max())
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-3, atol=2e-4 * scale, msg=name)
    for key, value in theirs.state_dict().items():  # running means, variances, counts of batches
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-4, atol=1e-6, msg=key)
    changed = [
        k for k in state if "running" in k and not torch.equal(state[k], ours.state_dict()[k])
    ]
    assert len(changed) == sum("running" in key for key in state)


@pytest.mark.parametrize("avg_non_ignore", [False, True])
def test_the_loss(avg_non_ignore: bool) -> None:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    theirs = TheirFCN(
        in_channels=WIDTHS[2], in_index=2, channels=7, num_convs=1, concat_input=False,
        loss_decode={
            "type": "CrossEntropyLoss", "loss_weight": 0.4, "avg_non_ignore": avg_non_ignore,
        },
        **COMMON,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, CLASSES, 6, 8, generator=generator)
    mask = torch.randint(0, CLASSES, (2, 24, 32), generator=generator)
    mask[:, :9] = 255
    samples = [SegDataSample(gt_sem_seg=PixelData(data=one[None])) for one in mask]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = theirs.loss_by_feat(logits, samples)["loss_ce"]
    task = SegmentationTask(
        nn.Identity(), OptimizerConfig(), ScheduleConfig(), avg_non_ignore=avg_non_ignore
    )
    torch.testing.assert_close(0.4 * task.cross_entropy(logits, mask), wanted)


def test_both_draw_the_same_dropout() -> None:
    """Dropout is of whole channels, at the same place of the network."""
    ours, theirs = fcn(0.5)
    state = theirs.state_dict()
    ours.load_state_dict(state)
    found = []
    for head in (ours.train(), theirs.train()):
        torch.manual_seed(3)
        found.append(head(maps(POWERS)))
    torch.manual_seed(4)
    other = ours(maps(POWERS))
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0], other)
