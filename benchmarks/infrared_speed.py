"""UNIP's segmentation network against the plain formulation and mmseg's MAE + UPerNet.

    python benchmarks/infrared_speed.py --size tiny --rounds 7

One process, rounds interleaved, medians. All have the same blocks, head and auxiliary head and take
(B, 3, 512, 512). `plain`: our network with the formula of attention, PyTorch's linear layers and
the joined map before UPerHead's bottleneck. `mmseg`: its backbone MAE with Feature2Pyramid,
UPerHead and FCNHead (tables of relative positions are its own addition). A training step is
forward, both losses and backward; `floor` is the time of as many multiply-adds in one large matrix
product.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import crossband.shared.plugins.openmmlab  # noqa: F401 - before mmseg

# isort: split
import torch
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from crossband.infrared.catalog import SIZES
from crossband.shared.benchmark import interleave, peak_megabytes
from crossband.shared.config import OptimizerConfig, ScheduleConfig
from crossband.shared.environment import machine
from crossband.shared.kernels.linear import linear
from crossband.shared.layers.resize import resize
from crossband.shared.registry import create_model
from crossband.shared.tasks.segmentation import SegmentationTask

CLASSES = 9


def theirs(size: str) -> nn.Module:
    """Build mmseg's network of a size."""
    import mmseg.models  # noqa: F401 - registers

    dim, depth, heads = SIZES[size].values()
    norm = {"type": "BN", "requires_grad": True}
    head = {"num_classes": CLASSES, "norm_cfg": norm, "align_corners": False}
    config = {
        "type": "EncoderDecoder",
        "backbone": {
            "type": "MAE",
            "img_size": (512, 512),
            "embed_dims": dim,
            "num_layers": depth,
            "num_heads": heads,
            "init_values": 1.0,
            "drop_path_rate": 0.1,
            "out_indices": [depth - 1] * 4,
        },
        "neck": {
            "type": "Feature2Pyramid",
            "embed_dim": dim,
            "rescales": [4, 2, 1, 0.5],
            "norm_cfg": norm,
        },
        "decode_head": {
            "type": "UPerHead",
            "in_channels": [dim] * 4,
            "in_index": [0, 1, 2, 3],
            "channels": dim,
            "pool_scales": (1, 2, 3, 6),
            **head,
        },
        "auxiliary_head": {
            "type": "FCNHead",
            "in_channels": dim,
            "in_index": 2,
            "channels": 256,
            "num_convs": 1,
            "concat_input": False,
            "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 0.4},
            **head,
        },
        "train_cfg": {},
        "test_cfg": {"mode": "whole"},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = MODELS.build(config)
    if len(set(model.backbone.out_indices)) == 1:  # mmseg's loop gives a block's map once
        once = model.backbone.forward
        model.backbone.forward = lambda x: once(x) * 4
    return model


def samples(mask: Tensor) -> list[SegDataSample]:
    """Return mmseg's form of labels."""
    from mmengine.structures import PixelData

    size = tuple(mask.shape[1:])
    found = []
    for one in mask:
        sample = SegDataSample(metainfo={"img_shape": size, "ori_shape": size, "pad_shape": size})
        sample.gt_sem_seg = PixelData(data=one[None])
        found.append(sample)
    return found


@contextmanager
def plainly() -> Iterator[None]:
    """Have our network run as it is written in the paper."""
    from crossband.shared.backbones import vit
    from crossband.shared.heads import upernet
    from crossband.shared.kernels import attention, upsampled_conv
    from crossband.shared.kernels.linear import Linear

    def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention.attention(q, k, v, "reference")

    def joined(maps: list[Tensor], weight: Tensor) -> Tensor:
        return upsampled_conv.upsampled_conv3x3(maps, weight, implementation="reference")

    with (
        mock.patch.object(vit, "attention", formula),
        mock.patch.object(upernet, "upsampled_conv3x3", joined),
        mock.patch.object(Linear, "forward", lambda self, x: F.linear(x, self.weight, self.bias)),
    ):
        yield


def _matrix_gigaflops(device: torch.device) -> float:
    """Return what the machine does in a large matrix product, 10^9 operations per second."""
    a = torch.randn(2048, 2048, device=device)
    (taken,) = interleave([lambda: linear(a, a)], 5, device)
    return 2 * 2048**3 / statistics.median(taken) / 1e9


def _gigaflops(model: nn.Module, image: Tensor) -> float:
    """Return 10^9 operations of one image in inference, in the plain order."""
    with plainly(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image[:1])
    return counter.get_total_flops() / 1e9


def main() -> None:
    """Time inference and a training step of the three."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    arguments = {"num_classes": CLASSES}
    ours = create_model(f"unip_{options.size}_upernet", **arguments)
    ours = ours.to(device, memory_format=torch.channels_last)
    rival = theirs(options.size).to(device)
    image = torch.randn(options.batch, 3, 512, 512, device=device)
    lined = image.contiguous(memory_format=torch.channels_last)
    mask = torch.randint(0, CLASSES, (options.batch, 512, 512), device=device)
    labels = samples(mask)
    task = SegmentationTask(ours, OptimizerConfig(), ScheduleConfig(), avg_non_ignore=False)

    def inference(model: nn.Module, call: Callable[[], Tensor]) -> Callable[[], None]:
        def step() -> None:
            model.eval()
            with torch.inference_mode():
                call()

        return step

    def training(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
        def step() -> None:
            model.train()
            model.zero_grad(set_to_none=True)
            loss().backward()

        return step

    def plain(step: Callable[[], None]) -> Callable[[], None]:
        def inner() -> None:
            with plainly():
                step()

        return inner

    def rival_loss() -> Tensor:
        losses = rival.loss(image, labels)
        return losses["decode.loss_ce"] + losses["aux.loss_ce"]

    def rival_logits() -> Tensor:
        return resize(rival.encode_decode(image, [{"img_shape": (512, 512)}]), (512, 512))

    def ours_loss() -> Tensor:
        return task.loss({"image": lined, "mask": mask})

    first = inference(ours, lambda: ours(lined))
    second = training(ours, ours_loss)
    floor = _matrix_gigaflops(device)
    kinds = {
        "inference": [first, plain(first), inference(rival, rival_logits)],
        "training": [second, plain(second), training(rival, rival_loss)],
    }
    print(f"UNIP-{options.size} against plain and mmseg, batch {options.batch}, 512 x 512")
    print(f"{machine()}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    for kind, steps in kinds.items():
        taken = interleave(steps, options.rounds, device)
        medians = [statistics.median(times) for times in taken]
        ratios = [
            statistics.median(b / a for a, b in zip(taken[0], other, strict=True))
            for other in taken[1:]
        ]
        held = [peak_megabytes(step, device) for step in steps]
        flops = (1 if kind == "inference" else 3) * options.batch * _gigaflops(ours, lined)
        print(f"{kind:9} floor  {1e3 * flops / floor:8.0f} ms")
        for name, seconds, memory in zip(("ours", "plain", "mmseg"), medians, held, strict=True):
            print(f"{kind:9} {name:6} {1e3 * seconds:8.0f} ms  {memory or 0:7.0f} MB")
        print(f"{kind:9} plain / ours {ratios[0]:.2f}, mmseg / ours {ratios[1]:.2f}")


if __name__ == "__main__":
    main()
