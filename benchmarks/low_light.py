"""Times TML against the published order of evaluation, and shows what any size costs.

    python benchmarks/low_light.py --threads 2
    python benchmarks/low_light.py --threads 2 --weights runs/night/best.safetensors  # sizes too

- reference: the same weights; GDC as published, a grouped 1x1 convolution with one group per
  image, then `conv1`; batch norms apart from their convolutions, NCHW.
- ours: GDC in the cheaper order, batch norms folded, channels last, as `predict` runs it.
- floor: the convolutions of ours alone, on the tensors that they see.

All are timed in turn in one process; the numbers are medians. Outputs must be equal to 1e-3 of
their largest value.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.apps.low_light.enhance import Enhancer
from crossband.apps.low_light.gdc import GDC
from crossband.apps.low_light.model import TML, UGDC, fuse_for_inference
from crossband.shared.benchmark import interleave, peak_megabytes
from crossband.shared.environment import machine

HEIGHT, WIDTH = 400, 640
BLOCKS = {
    "down3": (256, 50, 80),
    "down4": (512, 25, 40),
    "up1": (1024, 50, 80),
    "up2": (512, 100, 160),
}
SIZES = ((600, 400), (1200, 800), (2400, 1600), (4000, 3000))  # width, height


class PublishedGDC(GDC):
    """The block as published: a grouped convolution, one group per image of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        batch, channels, height, width = x.shape
        queries = self.patch(x) + self.diff
        queries = self.lnnorm(queries.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        kernels = F.gelu(queries).flatten(2).transpose(1, 2).reshape(-1, channels, 1, 1)
        keys = self.convk(x).reshape(1, batch * channels, height, width)
        bias = self.bias.expand(len(kernels))
        mixed = F.conv2d(keys, kernels, bias, groups=batch)
        return x + self.conv1(mixed.reshape(batch, -1, height, width))


def published(network: nn.Module) -> nn.Module:
    """Return a copy that runs as the authors' code does."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, GDC):
            module.__class__ = PublishedGDC
    return network.eval()


def floor_of(network: nn.Module, x: Tensor) -> Callable[[], None]:
    """Return a step that runs the convolutions of a forward pass on what they would see."""
    calls: list[tuple[nn.Module, tuple[Any, ...]]] = []
    hooks = [
        module.register_forward_pre_hook(lambda m, inputs: calls.append((m, inputs)))
        for module in network.modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
    ]
    with torch.inference_mode():
        network(x)
    for hook in hooks:
        hook.remove()

    def step() -> None:
        for module, inputs in calls:
            module(*inputs)

    return torch.inference_mode()(step)


def compare(name: str, plain: nn.Module, ours: nn.Module, x: Tensor, rounds: int) -> None:
    """Print one row."""
    fast = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        a, b = plain(x), ours(fast)
        error = float((a - b).abs().max() / a.abs().max())
        assert error < 1e-3, (name, error)
    infer = torch.inference_mode()
    steps = [infer(lambda: plain(x)), infer(lambda: ours(fast))]
    network = name in NETWORKS
    if network:
        steps.append(floor_of(ours, fast))
    slow, quick, *floor = (statistics.median(t) for t in interleave(steps, rounds, x.device))
    cells = [name, len(x), f"{1e3 * slow:.1f}", f"{1e3 * quick:.1f}", f"{slow / quick:.2f}"]
    if network:
        pixels = len(x) * HEIGHT * WIDTH / 1e6
        cells += [f"{1e3 * floor[0]:.1f}", f"{quick / floor[0]:.2f}"]
        cells += [f"{pixels / slow:.3f}", f"{pixels / quick:.3f}"]
    else:
        cells += ["-"] * 4
    print("| " + " | ".join(map(str, [*cells, f"{error:.0e}"])) + " |", flush=True)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "PM (stem 64)": lambda: UGDC(HEIGHT, WIDTH, 64),
    "EM (stem 32)": lambda: UGDC(HEIGHT, WIDTH, 32),
    "PM and EM": lambda: TML(HEIGHT, WIDTH),
    "stem 8 and 8": lambda: TML(HEIGHT, WIDTH, 8, 8),
}


def orders(rounds: int) -> None:
    """Print blocks and networks in both orders."""
    print("| what | batch | published ms | ours ms | published / ours | floor ms | ours / floor | "
          "MP/s published | MP/s ours | error |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    torch.manual_seed(0)
    for name, (channels, height, width) in BLOCKS.items():
        block = GDC(channels, (height, width)).eval()
        for batch in (1, 4):
            x = torch.randn(batch, channels, height, width)
            compare(f"GDC {name}", published(block), block, x, rounds)
    for name, make in NETWORKS.items():
        network = make().eval()
        ours = fuse_for_inference(copy.deepcopy(network))
        ours = ours.to(memory_format=torch.channels_last)
        for batch in (1, 4):
            x = torch.rand(batch, 3, HEIGHT, WIDTH)
            compare(name, published(network), ours, x, rounds)


def one_size(weights: str, width: int, height: int) -> None:
    """Print one row: a photograph of one size through `predict`."""
    rows = torch.linspace(0, 80, height)[:, None, None]
    image = (rows + torch.linspace(0, 40, width)[None, :, None]).expand(-1, -1, 3)
    pixels = np.ascontiguousarray(image.byte().numpy())
    method = Enhancer.load(weights, device="cpu")
    method.predict(pixels[:400, :400])
    (times,) = interleave([lambda: method.predict(pixels)], 3, torch.device("cpu"))
    middle = statistics.median(times)
    peak = peak_megabytes(lambda: method.predict(pixels), torch.device("cpu"))
    size = width * height / 1e6
    print(f"| {width} x {height} | {size:.2f} | {middle:.2f} | {size / middle:.3f} | {peak:.0f} |")


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", help="checkpoint to measure photographs of several sizes with")
    parser.add_argument("--one", type=int, nargs=2, help="width and height; in this process")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.one:
        one_size(given.weights, *given.one)
        return
    print(f"{machine()}, torch {torch.__version__}, {given.threads} thread(s)\n")
    orders(given.rounds)
    if given.weights:
        print("\n| photograph | MP | s | MP/s | peak MB above the loaded network |")
        print("|---|---|---|---|---|")
        for size in SIZES:  # a process each, so that memory kept from before does not hide
            words = ["--threads", given.threads, "--weights", given.weights, "--one", *size]
            sys.stdout.flush()
            subprocess.run([sys.executable, __file__, *map(str, words)], check=True)


if __name__ == "__main__":
    main()
