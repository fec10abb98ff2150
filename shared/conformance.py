"""Golden numbers: run an adapter on a fixture file and compare every output with the file's.

A fixture is a safetensors file with `weights.*`, `input.*` and `output.*` tensors and, in its
header, `system`, `case`, `config` and `tolerance`. Header entries that are JSON objects count as
outputs too: `video` = {"mse": 1.0} is compared as `video.mse`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from crossband.shared.cli.domain import load_object
from crossband.shared.errors import CrossbandError, DataError, did_you_mean
from crossband.shared.registry import conformance_adapters

_HEADER = ("system", "case", "config", "tolerance", "note")


@dataclass(frozen=True)
class OutputCheck:
    """One output: its largest errors and whether they are within the tolerance."""

    name: str
    absolute: float | None  # None when there is nothing to compare
    relative: float | None  # largest |a-b|/|b| where |b| > 0; gradients: max|a-b| / max|b|
    passed: bool
    note: str = ""


@dataclass(frozen=True)
class FixtureReport:
    """All outputs of one fixture, or the reason why it could not be run."""

    path: str
    system: str
    case: str
    checks: tuple[OutputCheck, ...] = ()
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether the adapter ran and every output is within its tolerance."""
        return not self.problem and bool(self.checks) and all(c.passed for c in self.checks)


@dataclass(frozen=True)
class Fixture:
    """A golden file taken apart."""

    path: Path
    system: str
    case: str
    config: dict[str, Any]
    tolerance: dict[str, Any]
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def verify(paths: Iterable[str | Path], *, debug: bool = False) -> list[FixtureReport]:
    """Check every fixture; one that cannot be read or run is reported, the others go on.

    With `debug` the first exception of an adapter is raised instead.
    """
    return [verify_file(path, debug=debug) for path in _files(paths)]


def verify_file(path: str | Path, *, debug: bool = False) -> FixtureReport:
    """Check one fixture with the adapter of its system."""
    system = case = "?"
    try:
        fixture = read_fixture(path)
        system, case = fixture.system, fixture.case
        adapters = conformance_adapters()
        if system not in adapters:
            known = did_you_mean(system, adapters) or f" There are: {', '.join(sorted(adapters))}."
            raise DataError(f"no adapter checks the system {system!r}.{known}")
        adapter = load_object(adapters[system])
        config = {**fixture.config, "system": system, "case": case}
        config["fixture_dir"] = fixture.path.parent
        found = adapter(config, fixture.weights, fixture.inputs)
        return FixtureReport(str(path), system, case, compare(fixture, found))
    except CrossbandError as error:
        return FixtureReport(str(path), system, case, problem=str(error))
    except Exception as error:  # an adapter may fail in any way; the other fixtures go on
        if debug:
            raise
        reason = " ".join(str(error).split())[:300]
        return FixtureReport(
            str(path), system, case, problem=f"the adapter raised {type(error).__name__}: {reason}"
        )


def read_fixture(path: str | Path) -> Fixture:
    """Read a golden file, with the weights of the file(s) it refers to.

    Raises:
        DataError: not a readable fixture.
    """
    path = Path(path)
    tensors, header = _read(path)
    try:
        config, tolerance = json.loads(header["config"]), json.loads(header["tolerance"])
        system, case = header["system"], header.get("case", "")
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{path} is not a fixture: its header lacks a readable {error}. A fixture names "
            "system, config and tolerance."
        ) from error
    outputs = _part(tensors, "output.")
    for name, text in header.items():
        if name not in _HEADER:
            outputs |= _numbers(name, text)
    weights = _part(tensors, "weights.")
    source = config.get("weights_from")
    if isinstance(source, str):
        weights |= _weights(path.parent / source)
    elif isinstance(source, dict):  # several networks: keys become "<name>.<key>"
        for name, file in source.items():
            weights |= {f"{name}.{key}": v for key, v in _weights(path.parent / file).items()}
    inputs = _part(tensors, "input.")
    return Fixture(path, system, case, config, tolerance, weights, inputs, outputs)


def compare(fixture: Fixture, found: Mapping[str, Any]) -> tuple[OutputCheck, ...]:
    """Compare what an adapter returned with every output the fixture wants compared."""
    flat: dict[str, Tensor] = {}
    for name, value in found.items():
        if isinstance(value, Mapping):
            numbers = {f"{name}.{k}": torch.as_tensor(v).double() for k, v in value.items()}
            flat |= numbers
        else:
            flat[name] = torch.as_tensor(value)
    only = fixture.tolerance.get("only")
    wanted = [n for n in fixture.outputs if only is None or any(_matches(n, o) for o in only)]
    return tuple(
        compare_output(name, flat.get(name), fixture.outputs[name], fixture.tolerance)
        for name in sorted(wanted)
    )


def compare_output(
    name: str, found: Tensor | None, expected: Tensor, tolerance: Mapping[str, Any]
) -> OutputCheck:
    """Compare one output.

    Values: |a-b| <= atol + rtol |b|. Gradients (a part of the name is `grad`):
    max|a-b| <= grad_rtol max|b|. Integers and booleans: equal. `per_output` overrides all three.
    NaN where the fixture has none fails.
    """
    if found is None:
        return OutputCheck(name, None, None, False, "not returned by the adapter")
    if found.shape != expected.shape:
        shapes = f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
        return OutputCheck(name, None, None, False, shapes)
    own = [rule for key, rule in tolerance.get("per_output", {}).items() if _matches(name, key)]
    limits = {**tolerance, **(own[0] if own else {})}
    is_gradient = "grad" in name.split(".")
    exact = not (expected.is_floating_point() or expected.is_complex()) and not own
    wide = torch.complex128 if expected.is_complex() or found.is_complex() else torch.float64
    a, b = found.detach().cpu().to(wide), expected.to(wide)
    same = (a == b) | (a.isnan() & b.isnan())  # equal infinities have no difference either
    error = torch.where(same, 0.0, (a - b).abs())
    size = torch.where(b.isfinite(), b.abs(), 0.0)  # infinities and NaN must be the same
    largest = float(error.max()) if error.numel() else 0.0
    if is_gradient:
        peak = float(size.max()) if size.numel() else 0.0
        relative = largest / peak if peak > 0 else largest
    else:
        ratio = (error / size)[size > 0]
        relative = float(ratio.max()) if ratio.numel() else 0.0
    if exact:
        passed = bool(same.all())
    elif is_gradient and not (own and "grad_rtol" not in own[0]):
        passed = largest <= limits.get("grad_rtol", 0.0) * peak
    else:
        allowed = limits.get("atol", 0.0) + limits.get("rtol", 0.0) * size
        passed = bool((same | (error <= allowed)).all())
    wrong_nan = bool((a.isnan() & ~b.isnan()).any())
    return OutputCheck(name, largest, relative, passed, "NaN" if wrong_nan else "")


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern.removeprefix("output."))


def _files(paths: Iterable[str | Path]) -> Iterable[Path]:
    for path in map(Path, paths):
        if path.is_dir():
            yield from sorted(path.rglob("*.safetensors"))
        else:
            yield path


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise DataError(f"{path} does not exist: give the path of a .safetensors fixture.")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path} is not a readable safetensors file ({error}): fetch it again."
        ) from error


def _weights(path: Path) -> dict[str, Tensor]:
    tensors, _ = _read(path)
    return _part(tensors, "weights.") or tensors  # a fixture, or a plain file of weights


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _numbers(name: str, text: str) -> dict[str, Tensor]:
    """Flatten a JSON object of numbers in the header to scalar outputs; anything else is none."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(content, dict):
        return {}
    return {
        f"{name}.{key}": torch.tensor(value, dtype=torch.float64) for key, value in content.items()
    }
