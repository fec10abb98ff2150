"""Timing models against each other fairly: interleaved rounds in one process, medians."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

_WARMUP_ROUNDS = 2
_MOST_MEMORY = 0.9  # part of the free memory that a training step may take


@dataclass(frozen=True)
class Case:
    """One thing to time: inference, and with `training` a training step too."""

    name: str
    model: nn.Module  # gives a tensor
    sample: Tensor  # (B, ...)
    training: bool = False


@dataclass(frozen=True)
class Measurement:
    """What one case costs. Memory is above what was held before; None if not measurable."""

    name: str
    shape: list[int]  # of one sample
    batch: int
    milliseconds: float  # of inference, median of the rounds
    samples_per_second: float
    peak_megabytes: float | None
    training_milliseconds: float | None  # forward and backward; None: not asked for or no room
    training_peak_megabytes: float | None
    parameters: int
    gigaflops: float  # per sample and forward pass, two per multiply-add
    rounds: int  # timed ones of inference


def measure(cases: Sequence[Case], repeats: int, seconds: float = math.inf) -> list[Measurement]:
    """Time the cases in turn, `repeats` times each after two rounds of warm-up.

    Interleaving spreads whatever else the machine does over all cases alike. First inference,
    then training steps.

    Args:
        cases: What to time.
        repeats: Timed rounds.
        seconds: Start no round that would end later than this after the first; one warm-up and
            one timed round are run in any case.
    """
    device = cases[0].sample.device
    inference = [_inference_step(case) for case in cases]
    taken = interleave(inference, repeats, device, seconds)
    held = [peak_megabytes(step, device) for step in inference]
    flops = [_gigaflops(case) for case in cases]
    chosen = [index for index, case in enumerate(cases) if case.training and _fits(case)]
    training = [_training_step(cases[index]) for index in chosen]
    trained = dict(zip(chosen, interleave(training, repeats, device, seconds), strict=True))
    trained_held = {}
    for index, step in zip(chosen, training, strict=True):
        cases[index].model.zero_grad(set_to_none=True)  # gradients are part of what a step holds
        trained_held[index] = peak_megabytes(step, device)
    return [
        Measurement(
            name=case.name,
            shape=list(case.sample.shape[1:]),
            batch=len(case.sample),
            milliseconds=1e3 * statistics.median(taken[index]),
            samples_per_second=len(case.sample) / statistics.median(taken[index]),
            peak_megabytes=held[index],
            training_milliseconds=1e3 * statistics.median(trained[index])
            if index in trained
            else None,
            training_peak_megabytes=trained_held.get(index),
            parameters=sum(p.numel() for p in case.model.parameters()),
            gigaflops=flops[index],
            rounds=len(taken[index]),
        )
        for index, case in enumerate(cases)
    ]


def interleave(
    steps: Sequence[Callable[[], Any]],
    repeats: int,
    device: torch.device,
    seconds: float = math.inf,
) -> list[list[float]]:
    """Run the steps in turn; return the seconds of each call after two rounds of warm-up.

    No round is started that would end later than `seconds` after the first, but for one of
    warm-up and a timed one.
    """
    times: list[list[float]] = [[] for _ in steps]
    begin = time.perf_counter()
    for rounds in range(_WARMUP_ROUNDS + repeats):
        before = time.perf_counter()
        if rounds > 1 and before - begin + sum(taken[-1] for taken in times) > seconds:
            break
        for step, taken in zip(steps, times, strict=True):
            _synchronise(device)
            start = time.perf_counter()
            step()
            _synchronise(device)
            taken.append(time.perf_counter() - start)
    return [taken[min(_WARMUP_ROUNDS, len(taken) - 1) :] for taken in times]


def _inference_step(case: Case) -> Callable[[], Any]:
    @torch.inference_mode()
    def step() -> None:
        if case.model.training:
            case.model.eval()
        case.model(case.sample)

    return step


def _training_step(case: Case) -> Callable[[], Any]:
    def step() -> None:
        if not case.model.training:
            case.model.train()
        case.model.zero_grad(set_to_none=True)
        case.model(case.sample).square().mean().backward()

    return step


def _fits(case: Case) -> bool:
    """Whether a training step will find memory, by what steps of one and two samples take.

    Only where a CPU's memory can be told; there a system out of memory ends the process.
    """
    batch, device = len(case.sample), case.sample.device
    if batch <= 2 or device.type != "cpu" or not sys.platform.startswith("linux"):
        return True
    held = []
    for size in (1, 2):
        case.model.zero_grad(set_to_none=True)
        try:
            held.append(
                peak_megabytes(_training_step(replace(case, sample=case.sample[:size])), device)
            )
        except ValueError:  # batch norm of a single value
            return True
    if None in held:
        return True
    needed = held[1] + (batch - 2) * (held[1] - held[0])
    return needed < _MOST_MEMORY * _available_megabytes()


def _available_megabytes() -> float:
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) / 2**10 if found else math.inf


def _gigaflops(case: Case) -> float:
    case.model.eval()  # which also drops what a network has cached
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        getattr(case.model, "_orig_mod", case.model)(case.sample[:1])
    return counter.get_total_flops() / 1e9


def _synchronise(device: torch.device) -> None:
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def peak_megabytes(step: Callable[[], Any], device: torch.device) -> float | None:
    """Return what one call holds at most above what was held before; None if not measurable.

    On the CPU memory that the allocator kept from earlier calls is given back first; where it
    cannot be, only a fresh process gives exact numbers.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return None
    _give_memory_back()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    except OSError:
        return None
    before = _status_kilobytes("VmRSS")
    step()
    return (_status_kilobytes("VmHWM") - before) / 2**10


def _give_memory_back() -> None:
    """Return free heap memory to the system, where the C library is glibc."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status_kilobytes(name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1])
