"""Times the backbones against the plain way to write them and against their floor.

    python benchmarks/backbones.py --threads 1 --out backbones.json

- TransNeXt, ours: `crossband.shared.backbones.transnext`, shifted views and a position bias that
  is kept in eval mode. Plain: the same weights with the neighbourhood unfolded and the bias
  evaluated in every call, as the authors' code does where their CUDA package is absent.
- UniRepLKNet: the form that is trained and the merged one, same weights.
- floor: the linear and convolutional layers of ours alone, on inputs of the same sizes.

The contenders of a row are timed in turn in one process and must give the same outputs; numbers
are medians. With one thread processor time is measured, which other programs hardly disturb; with
more, wall-clock time.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.shared.backbones.transnext import AggregatedAttention, _Attention
from crossband.shared.backbones.unireplknet import reparameterize
from crossband.shared.benchmark import peak_megabytes
from crossband.shared.environment import machine
from crossband.shared.registry import create_model

WARMUP = 2
TOLERANCE = 1e-4


class Unfolded(AggregatedAttention):
    """Aggregated attention with an unfolded neighbourhood."""

    def position_bias(self, height: int, width: int) -> Tensor:
        """Evaluate the bias, every time."""
        return self._position_bias(height, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        batch, height, width, dim = x.shape
        places, cells = height * width, self.window_size**2

        def heads(y: Tensor) -> Tensor:
            return y.view(batch, -1, self.num_heads, self.head_dim).transpose(1, 2)

        def unfold(y: Tensor) -> Tensor:
            y = y.view(batch, height, width, dim).permute(0, 3, 1, 2)
            y = F.unfold(y, self.window_size, padding=self.window_size // 2)
            y = y.view(batch, self.num_heads, self.head_dim, cells, places)
            return y.permute(0, 1, 4, 2, 3)  # B, heads, N, d, L

        q = F.normalize(heads(self.q(x)), dim=-1)
        k, v = self.kv(x).flatten(1, 2).chunk(2, dim=-1)
        k = F.normalize(heads(k), dim=-1).transpose(1, 2).reshape(batch, places, dim)
        k_pool, v_pool = self._pooled(x)
        outside = self._outside(height, width, x).flatten(0, 1)
        keys = cells - outside.sum(-1, dtype=x.dtype) + k_pool.shape[2]
        scaled = (q + self.query_embedding) * F.softplus(self.temperature) * keys.log()[:, None]
        near = (scaled[:, :, :, None] @ unfold(k)).squeeze(-2)
        near = near + self.relative_pos_bias_local[:, None]
        near = near.masked_fill(outside, -math.inf)
        far = scaled @ k_pool.transpose(-2, -1) + self.position_bias(height, width)
        near, far = torch.cat((near, far), -1).softmax(-1).split((cells, far.shape[-1]), -1)
        near = near + q @ self.learnable_tokens + self.learnable_bias
        y = (near[:, :, :, None] @ unfold(v).transpose(-2, -1)).squeeze(-2) + far @ v_pool
        return self.proj(y.transpose(1, 2).reshape(batch, height, width, dim))


def unfolded(model: nn.Module) -> nn.Module:
    """Return a copy of a TransNeXt, or of one of its attentions, in the plain way."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, AggregatedAttention):
            module.__class__ = Unfolded
        elif isinstance(module, _Attention):
            module.position_bias = module._position_bias
    return model


def step_of(model: nn.Module, x: Tensor, training: bool) -> Callable[[], Tensor]:
    """Return a function that runs inference, or forward and backward."""
    model.train(training)

    def step() -> Tensor:
        if not training:
            with torch.inference_mode():
                return model(x)
        model.zero_grad(set_to_none=True)
        y = model(x)
        y.square().mean().backward()
        return y

    return step


def floor_step(model: nn.Module, x: Tensor, training: bool) -> Callable[[], None]:
    """Return a function that runs the linear and convolutional layers alone."""
    seen: list[tuple[nn.Module, Tensor]] = []
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    hooks = [m.register_forward_pre_hook(lambda m, x: seen.append((m, x[0]))) for m in layers]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    inputs = [(layer, torch.randn_like(y, requires_grad=training)) for layer, y in seen]

    def step() -> None:
        with torch.set_grad_enabled(training):
            for layer, y in inputs:
                z = layer(y)
                if training:
                    z.backward(z.detach())
                    y.grad = layer.weight.grad = None

    return step


def medians(steps: dict[str, Callable[[], Any]], rounds: int, threads: int) -> dict[str, float]:
    """Run the steps in turn; return the median milliseconds of each."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(WARMUP + rounds):
        for name, step in steps.items():
            start = clock()
            step()
            taken[name].append(1e3 * (clock() - start))
    return {name: statistics.median(times[WARMUP:]) for name, times in taken.items()}


def measure(
    what: str, ours: nn.Module, plain: nn.Module, x: Tensor, mode: str, options: Any
) -> dict[str, Any]:
    """Measure one row of the table."""
    training = mode == "training"
    with torch.no_grad():
        expected = plain.eval()(x)
        error = ((ours.eval()(x) - expected).abs().max() / expected.abs().max()).item()
    assert error < TOLERANCE, f"{what}: outputs differ by {error:.1e} of the largest"
    steps = {"ours": step_of(ours, x, training), "plain": step_of(plain, x, training)}
    floor = floor_step(ours, x, training)
    row = medians({**steps, "floor": floor}, options.rounds, options.threads)
    for name, step in steps.items():
        for model in (ours, plain):
            model.zero_grad(set_to_none=True)
        row[f"{name} MB"] = peak_megabytes(step, x.device)
    return {"what": what, "batch": len(x), "side": x.shape[-2], "mode": mode, **row, "error": error}


def rows_of(options: Any) -> list[dict[str, Any]]:
    """Measure all rows."""
    rows = []
    torch.manual_seed(0)
    transnext = create_model("transnext_tiny")
    # Layer scales start at 1e-6, with which all networks would give the same.
    trained = create_model("unireplknet_t", layer_scale_init_value=0.1)
    merged = reparameterize(copy.deepcopy(trained))
    for batch in options.batches:
        for mode in options.modes:
            tokens = torch.randn(batch, 56, 56, 72)
            image = torch.randn(batch, 3, 224, 224)
            first = copy.deepcopy(transnext.block1[0].attn)
            contenders = [("attention of stage 1", first, unfolded(first), tokens)]
            contenders += [("transnext_tiny", transnext, unfolded(transnext), image)]
            if mode == "inference":
                contenders += [("unireplknet_t merged", merged, trained, image)]
            for what, ours, plain, x in contenders:
                rows.append(measure(what, ours, plain, x, mode, options))
                print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| what | batch | step | ours ms | plain ms | floor ms | plain/ours | ours/floor "
        "| peak MB ours / plain | difference |",
        "|" + "---|" * 10,
    ]
    for row in rows:
        ours, plain, floor = row["ours"], row["plain"], row["floor"]
        held = [row[f"{name} MB"] for name in ("ours", "plain")]
        cells = [row["what"], row["batch"], row["mode"], f"{ours:.1f}", f"{plain:.1f}"]
        cells += [f"{floor:.1f}", f"{plain / ours:.2f}", f"{ours / floor:.2f}"]
        cells += [" / ".join("-" if mb is None else f"{mb:.0f}" for mb in held)]
        cells += [f"{row['error']:.0e}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure what the options ask for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 4))
    parser.add_argument(
        "--modes", nargs="+", choices=("inference", "training"), default=("inference", "training")
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    protocol = {
        "machine": machine(), "torch": torch.__version__, "threads": options.threads,
        "rounds": options.rounds,
    }  # fmt: skip
    rows = rows_of(options)
    if options.out:
        text = json.dumps({"protocol": protocol, "rows": rows}, indent=1)
        options.out.write_text(text, encoding="utf-8")
    print(", ".join(f"{name}: {value}" for name, value in protocol.items()), "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
