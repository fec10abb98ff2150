"""Timing models against each other fairly: interleaved rounds in one process, medians."""

from __future__ import annotations

import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

_WARMUP_ROUNDS = 2


@dataclass(frozen=True)
class Case:
    """One thing to time."""

    name: str
    model: nn.Module
    sample: Tensor  # (B, ...)
    training: bool = False


@dataclass(frozen=True)
class Measurement:
    """What one case costs."""

    name: str
    batch: int
    milliseconds: float  # median of the rounds
    samples_per_second: float
    parameters: int
    gigaflops: float  # per sample and forward pass, two per multiply-add
    peak_megabytes: float | None  # above what was held before the call; None if not measurable


def measure(cases: Sequence[Case], repeats: int) -> list[Measurement]:
    """Time the cases in turn, `repeats` times each after two rounds of warm-up.

    Interleaving spreads whatever else the machine does over all cases alike.
    """
    steps = [_step(case) for case in cases]
    times = interleave(steps, repeats, cases[0].sample.device)
    return [
        _summary(case, step, taken) for case, step, taken in zip(cases, steps, times, strict=True)
    ]


def interleave(
    steps: Sequence[Callable[[], Any]], repeats: int, device: torch.device
) -> list[list[float]]:
    """Run the steps in turn; return the seconds of each call after two rounds of warm-up."""
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(_WARMUP_ROUNDS + repeats):
        for step, taken in zip(steps, times, strict=True):
            _synchronise(device)
            start = time.perf_counter()
            step()
            _synchronise(device)
            taken.append(time.perf_counter() - start)
    return [taken[_WARMUP_ROUNDS:] for taken in times]


def _step(case: Case) -> Callable[[], Any]:
    model = case.model.train(case.training)
    if not case.training:
        inference = torch.inference_mode()
        return inference(lambda: model(case.sample))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(case.sample).square().mean().backward()

    return step


def _summary(case: Case, step: Callable[[], Any], times: list[float]) -> Measurement:
    batch = len(case.sample)
    median = statistics.median(times)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        getattr(case.model, "_orig_mod", case.model)(case.sample[:1])
    return Measurement(
        name=case.name,
        batch=batch,
        milliseconds=1e3 * median,
        samples_per_second=batch / median,
        parameters=sum(p.numel() for p in case.model.parameters()),
        gigaflops=counter.get_total_flops() / 1e9,
        peak_megabytes=peak_megabytes(step, case.sample.device),
    )


def _synchronise(device: torch.device) -> None:
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def peak_megabytes(step: Callable[[], Any], device: torch.device) -> float | None:
    """Return what one call holds at most above what was held before; None if not measurable.

    On the CPU memory that the allocator kept from earlier calls is not seen: for exact numbers
    call it in a fresh process.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return None
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    except OSError:
        return None
    before = _status_kilobytes("VmRSS")
    step()
    return (_status_kilobytes("VmHWM") - before) / 2**10


def _status_kilobytes(name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1])
