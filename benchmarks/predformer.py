"""Times PredFormer against a plain transcription of its description and against its floor.

    python benchmarks/predformer.py --threads 2 --out predformer.json

- ours: `crossband.spatiotemporal.predformer`, dropout and drop path as published.
- plain: the same weights in the layout of the description: tokens are copied to (B T, N, d) and
  (B N, T, d), attention is an explicit softmax, Linear layers are PyTorch's. Its outputs must
  equal ours to 1e-4.
- floor: the matrix products of the Linear layers alone, by the faster of PyTorch's two libraries
  and over the whole batch or sample by sample, whichever is faster; for a training step also both
  products of the backward pass.

All three are timed in turn in one process; the numbers are medians. With one thread processor time
is measured, which other programs hardly disturb; with more, wall-clock time.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from crossband.shared.benchmark import peak_megabytes as peak_of_call
from crossband.shared.environment import machine
from crossband.shared.kernels.linear import ONEDNN_AVAILABLE, Linear, linear
from crossband.shared.registry import create_model, get_entry
from crossband.spatiotemporal.predformer.model import FACTORISED, INTERLEAVED, PredFormer

SHAPES = ("taxibj", "mmnist", "t2m")
VARIANTS = ("fac_ts", "triplet_sts", "quadruplet_tsst", "full")
MODES = ("inference", "training")
SECONDS_PER_CELL = 12.0
# What the profiler's operators belong to.
PARTS = {
    "products": ("addmm", "mm", "linear_pointwise"),
    "attention": ("bmm", "baddbmm", "softmax", "scaled_dot_product", "flash_attention"),
    "LayerNorm": ("native_layer_norm",),
    "activation": ("silu", "mul"),
    "copies": ("copy", "clone", "cat", "contiguous"),
    "dropout": ("bernoulli", "native_dropout", "div"),
    "optimiser": (),  # everything inside its step
}


class Plain(nn.Module):
    """A transcription of the description, with copies of another network's parameters."""

    def __init__(self, model: PredFormer) -> None:
        """Take the parameters over."""
        super().__init__()
        self.model = copy.deepcopy(model)
        for module in self.modules():
            if isinstance(module, Linear):
                module.__class__ = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C, H, W) to the same shape."""
        net = self.model
        batch, frames, channels, height, width = x.shape
        p = net.patch_size
        rows, columns = height // p, width // p
        x = x.reshape(batch, frames, channels, rows, p, columns, p)
        x = x.permute(0, 1, 3, 5, 4, 6, 2).reshape(batch, frames, rows * columns, -1)
        x = net.to_patch_embedding[1](x) + net.pos_embedding
        if net.variant in INTERLEAVED:
            order = [
                (block[n], axis) for block in net.blocks for n, axis in INTERLEAVED[net.variant]
            ]
        else:
            order = [(net.get_submodule(n), axis) for n, axis in FACTORISED[net.variant]]
        for transformer, axis in order:
            if axis == "F":
                y = x.reshape(batch, -1, x.shape[-1])
            elif axis == "S":
                y = x.reshape(batch * frames, -1, x.shape[-1])
            else:
                y = x.permute(0, 2, 1, 3).reshape(-1, frames, x.shape[-1])
            y = self._transform(transformer, y)
            if axis == "T":
                x = y.reshape(batch, -1, frames, x.shape[-1]).permute(0, 2, 1, 3).contiguous()
            else:
                x = y.reshape(x.shape)
        x = net.mlp_head(x).reshape(batch, frames, rows, columns, -1, p, p)
        return x.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, frames, -1, height, width)

    def _transform(self, transformer: nn.Module, x: Tensor) -> Tensor:
        for attend, mlp, path in transformer.layers:
            x = x + self._drop_path(self._attend(attend.fn, attend.norm(x)), path.rate)
            y, fn = mlp.norm(x), mlp.fn
            y = fn.drop(fn.fc2(fn.drop(F.silu(fn.fc1_g(y)) * fn.fc1_x(y))))
            x = x + self._drop_path(y, path.rate)
        return transformer.norm(x)

    def _attend(self, fn: nn.Module, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        q, k, v = (
            t.reshape(rows, length, fn.heads, -1).permute(0, 2, 1, 3).contiguous()
            for t in fn.to_qkv(x).chunk(3, dim=-1)
        )
        weights = torch.softmax(torch.matmul(q, k.transpose(-1, -2)) * q.shape[-1] ** -0.5, dim=-1)
        return fn.to_out(torch.matmul(weights, v).permute(0, 2, 1, 3).reshape(rows, length, -1))

    def _drop_path(self, x: Tensor, rate: float) -> Tensor:
        if not self.training or rate == 0.0:
            return x
        keep = x.new_empty(len(x), 1, 1).bernoulli_(1 - rate).div_(1 - rate)
        return x * keep


def floor_step(model: PredFormer, batch: int, training: bool) -> Callable[[], None]:
    """Return a function that runs the products of all Linear layers of a pass."""
    _, frames, sites, _ = model.pos_embedding.shape
    tokens = batch * frames * sites
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    arrays: dict[Any, Tensor] = {}

    def array(*shape: int) -> Tensor:
        if shape not in arrays:
            arrays[shape] = torch.randn(shape)
        return arrays[shape]

    @torch.no_grad()
    def run(library: str, rows: int) -> None:
        for _ in range(0, tokens, rows):
            for layer in layers:
                linear(array(rows, layer.in_features), layer.weight, None, library)
            if training:
                for layer in reversed(layers):
                    x, y = array(rows, layer.in_features), array(rows, layer.out_features)
                    linear(y, layer.weight.t(), None, library)
                    linear(y.t(), x.t(), None, library)

    libraries = ("reference", "onednn") if ONEDNN_AVAILABLE else ("reference",)
    chunks = sorted({tokens, tokens // batch})
    ways = [(library, rows) for library in libraries for rows in chunks]
    fastest = min(ways, key=lambda way: median_time(lambda: run(*way), 3))
    return lambda: run(*fastest)


def median_time(step: Callable[[], Any], repeats: int) -> float:
    """Return the median seconds of a few calls."""
    return statistics.median(_seconds(step) for _ in range(repeats))


def _seconds(step: Callable[[], Any]) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    step()
    return clock() - start


def network_step(
    network: nn.Module, x: Tensor, training: bool, bf16: bool = False
) -> Callable[[], Any]:
    """Return a function that runs one forward pass, or one whole training step."""
    network.train(training)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
    if not training:

        def infer() -> Tensor:
            with torch.inference_mode(), autocast:
                return network(x)

        return infer
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    target = torch.randn_like(x)

    def train() -> None:
        optimiser.zero_grad(set_to_none=True)
        with autocast:
            loss = F.mse_loss(network(x).float(), target)
        loss.backward()
        optimiser.step()

    return train


def interleave(
    steps: dict[str, Callable[[], Any]], repeats: int, seconds: float
) -> tuple[dict[str, float], int]:
    """Time the steps in turn; return median milliseconds and the rounds that were made.

    Rounds end at `repeats`, or when `seconds` are spent and at least three were made.
    """
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    start, rounds = time.perf_counter(), 0
    while rounds < repeats and (rounds < 3 or time.perf_counter() - start < seconds):
        for name, step in steps.items():
            times[name].append(_seconds(step))
        rounds += 1
    return {name: 1e3 * statistics.median(taken) for name, taken in times.items()}, rounds


def breakdown(step: Callable[[], Any]) -> dict[str, float]:
    """Return the share of each part of a step in its operators' own time, in percent."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    events = profiler.events()
    updates = [e.time_range for e in events if e.name.startswith("Optimizer.step")]
    shares: dict[str, float] = defaultdict(float)
    for event in events:
        name = event.name.split("::")[-1].lstrip("_")
        part = next((p for p, names in PARTS.items() if name.startswith(names)), "other")
        if any(span.start <= event.time_range.start < span.end for span in updates):
            part = "optimiser"
        shares[part] += event.self_cpu_time_total
    total = sum(shares.values())
    return {part: 100 * shares[part] / total for part in (*PARTS, "other")}


def peak_megabytes(shape: str, variant: str, batch: int, mode: str, who: str) -> float:
    """Return what one step needs on top of the loaded network, measured in a fresh process."""
    command = [sys.executable, __file__, "--peak", shape, variant, str(batch), mode, who]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(shape: str, variant: str, batch: str, mode: str, who: str) -> None:
    """Print the peak memory of one step; the process that `peak_megabytes` starts."""
    torch.set_num_threads(1)
    model, x = network_and_input(shape, variant, int(batch))
    network = model if who == "ours" else Plain(model)
    step = network_step(network, x, mode == "training")
    F.linear(x.new_ones(1024, 64), x.new_ones(64, 64))  # the first products load libraries
    linear(x.new_ones(1024, 64), x.new_ones(64, 64))
    print(peak_of_call(step, x.device))


def network_and_input(shape: str, variant: str, batch: int) -> tuple[PredFormer, Tensor]:
    """Return the published network with random weights and a random input."""
    torch.manual_seed(0)
    name = f"predformer_{variant}_{shape}"
    return create_model(name), torch.randn(batch, *get_entry(name).input_shape)


def measure(shape: str, variant: str, batch: int, mode: str, options: argparse.Namespace) -> dict:
    """Measure one row of the table."""
    model, x = network_and_input(shape, variant, batch)
    plain, training = Plain(model), mode == "training"
    with torch.no_grad():
        error = (model.eval()(x) - plain.eval()(x)).abs().max().item()
    assert error < 1e-4, f"plain and ours differ by {error}"
    steps = {
        "ours": network_step(model, x, training),
        "plain": network_step(plain, x, training),
        "floor": floor_step(model, batch, training),
    }
    extra = {}
    if options.compile:
        extra["compile"] = (torch.compile(copy.deepcopy(model)), False)
    if options.bf16:
        extra["bf16"] = (copy.deepcopy(model), True)
    for name, (network, bf16) in extra.items():
        steps[name] = network_step(network, x, training, bf16)
    milliseconds, rounds = interleave(steps, options.repeats, options.seconds)
    row: dict[str, Any] = {
        "shape": shape, "variant": variant, "batch": batch, "mode": mode, "rounds": rounds,
        "milliseconds": milliseconds,
        "plain_to_ours": milliseconds["plain"] / milliseconds["ours"],
        "ours_to_floor": milliseconds["ours"] / milliseconds["floor"],
        "error_to_plain": error,
        "breakdown_percent": breakdown(steps["ours"]),
    }  # fmt: skip
    if options.memory:
        row["peak_megabytes"] = {
            who: peak_megabytes(shape, variant, batch, mode, who) for who in ("ours", "plain")
        }
    for name, (network, bf16) in extra.items():
        reference = network_step(model, x, False)()
        if training:  # the weights moved apart
            getattr(network, "_orig_mod", network).load_state_dict(model.state_dict())
        output = network_step(network, x, False, bf16)()
        row[name] = {
            "ours_to_it": milliseconds["ours"] / milliseconds[name],
            "max_error": (output.float() - reference).abs().max().item(),
        }
    return row


def table(rows: Iterable[dict]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| shape | variant | batch | step | ours ms | plain ms | floor ms | plain/ours "
        "| ours/floor | peak MB ours / plain | compile: times faster, error "
        "| bf16: times faster, error "
        f"| {' / '.join((*PARTS, 'other'))} % |",
        "|" + "---|" * 13,
    ]
    for row in rows:
        ms, peak = row["milliseconds"], row.get("peak_megabytes")
        cells = [row["shape"], row["variant"], str(row["batch"]), row["mode"]]
        cells += [f"{ms[name]:.1f}" for name in ("ours", "plain", "floor")]
        cells += [f"{row['plain_to_ours']:.2f}", f"{row['ours_to_floor']:.2f}"]
        cells += [f"{peak['ours']:.0f} / {peak['plain']:.0f}" if peak else "-"]
        for name in ("compile", "bf16"):
            got = row.get(name)
            cells += [f"{got['ours_to_it']:.2f}, {got['max_error']:.0e}" if got else "-"]
        cells += [" / ".join(f"{share:.0f}" for share in row["breakdown_percent"].values())]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure what the options ask for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 8))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=25, help="rounds at most")
    parser.add_argument("--seconds", type=float, default=SECONDS_PER_CELL, help="aim for each row")
    parser.add_argument("--quick", action="store_true", help="TaxiBJ, batch 1, three rounds")
    parser.add_argument("--compile", action="store_true", help="also torch.compile")
    parser.add_argument("--bf16", action="store_true", help="also bfloat16 autocast")
    parser.add_argument("--memory", action="store_true", help="also peak memory")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--peak", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print_peak(*options.peak)
        return
    if options.quick:
        options.shapes, options.batches, options.repeats = ("taxibj",), (1,), 3
    torch.set_num_threads(options.threads)
    protocol = {
        "machine": machine(), "torch": torch.__version__, "threads": options.threads,
        "repeats": options.repeats, "seconds": options.seconds,
    }  # fmt: skip
    rows = []
    for shape in options.shapes:
        for variant in options.variants:
            for batch in options.batches:
                for mode in options.modes:
                    rows.append(measure(shape, variant, batch, mode, options))
                    print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
                    if options.out:
                        text = json.dumps({"protocol": protocol, "rows": rows}, indent=1)
                        options.out.write_text(text, encoding="utf-8")
    print(", ".join(f"{name}: {value}" for name, value in protocol.items()), "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
