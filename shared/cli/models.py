"""`crossband models ...`: what there is, what it costs, and whether it is right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossband.shared.cli.config import (
    BenchConfig,
    ConvertConfig,
    InfoConfig,
    ListConfig,
    VerifyConfig,
)
from crossband.shared.cli.domain import Domain, Verb, load_object
from crossband.shared.cli.output import format_table, print_json
from crossband.shared.errors import (
    EXIT_FAILED,
    EXIT_OK,
    CheckpointError,
    ConfigError,
    did_you_mean,
)
from crossband.shared.registry import (
    OTHER_LIBRARIES,
    catalog,
    create_model,
    get_entry,
    list_models,
    missing_arguments,
    model_info,
    read_weights,
)

if TYPE_CHECKING:
    from torch import Tensor

_HERE = "crossband.shared.cli.models"
_CONFIG = "crossband.shared.cli.config"

MODELS = Domain(
    name="models",
    summary="list, describe, convert, verify and time models",
    verbs={
        "list": Verb(
            config=f"{_CONFIG}:ListConfig",
            run=f"{_HERE}:list_",
            summary="names of the models, with task, input and licence",
            examples=('crossband models list "predformer*"', "crossband models list --json"),
            positional="pattern",
        ),
        "info": Verb(
            config=f"{_CONFIG}:InfoConfig",
            run=f"{_HERE}:info",
            summary="a model's size, cost, paper, licence and weights; or what a checkpoint holds",
            examples=(
                "crossband models info predformer_triplet_sts_taxibj",
                "crossband models info runs/weather/best.safetensors",
            ),
            positional="name",
        ),
        "convert": Verb(
            config=f"{_CONFIG}:ConvertConfig",
            run=f"{_HERE}:convert",
            summary="authors' weights to a crossband checkpoint, or back",
            examples=(
                "crossband models convert taxibj.pth taxibj.safetensors "
                "--model predformer_fac_ts_taxibj",
                "crossband models convert best.safetensors best.pth --to official",
            ),
            positional=("source", "out"),
        ),
        "verify": Verb(
            config=f"{_CONFIG}:VerifyConfig",
            run=f"{_HERE}:verify",
            summary="compare with the authors' code by golden files; exit 1 beyond their tolerance",
            examples=("crossband models verify fixtures/predformer_*.safetensors",),
            positional="fixtures",
        ),
        "bench": Verb(
            config=f"{_CONFIG}:BenchConfig",
            run=f"{_HERE}:bench",
            summary="latency, throughput, memory, training step, FLOPs; interleaved medians",
            examples=(
                "crossband models bench predformer_full_taxibj predformer_fac_ts_taxibj "
                "--batch 1 8",
                "crossband models bench timm:convnext_tiny transnext_tiny --batch 1 8 "
                "--size 224 512",
            ),
            positional="names",
        ),
    },
)


def list_(config: ListConfig) -> None:
    """Print the models that match a pattern.

    Raises:
        ConfigError: none does.
    """
    names = _matching(config.pattern)
    entries = [catalog()[name] for name in names]
    if config.json:
        print_json(
            [
                {**asdict(entry), "input_shape": list(entry.input_shape or ()) or None}
                for entry in entries
            ]
        )
        return
    rows = [(e.name, e.task, _shape(e.input_shape), e.licence) for e in entries]
    print(format_table(("name", "task", "input", "licence"), rows))


def info(config: InfoConfig) -> None:
    """Describe a model of the catalog or a checkpoint file."""
    if config.name not in catalog() and (Path(config.name).suffix or "/" in config.name):
        from crossband.shared.checkpoints import read_config

        facts = read_config(config.name)
    else:
        facts = model_info(config.name, **config.arguments)
    if config.json:
        print_json(facts)
    else:
        print(format_table(("item", "value"), list(_rows(facts))))


def convert(config: ConvertConfig) -> int:
    """Convert a file of weights and report how its keys fit the model.

    Raises:
        ConfigError: no model given or found.
        CheckpointError: the source cannot be read.
    """
    from crossband.shared.checkpoints import read_state_dict, save_checkpoint
    from crossband.shared.files import atomic_path

    if config.to == "official":
        state, facts = _ours(config)
        name = facts["name"]
        official = get_entry(name).official
        if official is None:
            raise ConfigError(f"the authors of {name!r} published no format: use ours.")
        module, _, _ = official.partition(":")
        state = load_object(f"{module}:to_official")(state)
        with atomic_path(config.out) as temporary:
            _save_plain(state, temporary)
        print(f"{config.out}: {len(state)} tensors under the authors' names.")
        return EXIT_OK

    if not config.model:
        raise ConfigError("--model is missing: name the model these weights belong to.")
    if Path(config.out).suffix != ".safetensors":
        raise ConfigError(f"--out {config.out}: a crossband checkpoint ends in .safetensors.")
    entry = get_entry(config.model)
    if entry.official:
        state = read_weights(config.source, entry.official)
    else:
        state, _ = read_state_dict(config.source)
    expected = _meta_model(config.model, config.arguments).state_dict()
    report = {
        "matched": [k for k in expected if k in state and state[k].shape == expected[k].shape],
        "other_shape": [
            f"{k}: file {_shape(state[k].shape)}, model {_shape(expected[k].shape)}"
            for k in expected
            if k in state and state[k].shape != expected[k].shape
        ],
        "missing": [k for k in expected if k not in state],
        "unexpected": [k for k in state if k not in expected],
    }
    fits = len(report["matched"]) == len(expected) == len(state)
    if config.json:
        print_json({"written": config.out if fits else None, **report})
    else:
        for kind, keys in report.items():
            print(f"{kind.replace('_', ' ')}: {len(keys)}")
            if kind != "matched":
                print("".join(f"  {key}\n" for key in keys), end="")
    if not fits:
        raise CheckpointError(
            f"{config.source} does not fit {config.model}, nothing was written: choose the model "
            "and --arguments that these weights were made with."
        )
    arguments = entry.arguments | entry.head | config.arguments
    model = {"name": config.model, "arguments": arguments}
    facts = {"model": model, "task": entry.task, "source": Path(config.source).name}
    save_checkpoint(config.out, state, facts)
    if not config.json:
        print(f"wrote {config.out}")
    return EXIT_OK


def verify(config: VerifyConfig) -> int:
    """Compare with golden files; exit code 1 when anything differs or cannot be run."""
    from crossband.shared import conformance

    reports = conformance.verify(config.fixtures, debug=config.debug)
    passed = bool(reports) and all(report.passed for report in reports)
    if config.json:
        results = [{**asdict(report), "passed": report.passed} for report in reports]
        print_json({"passed": passed, "fixtures": results})
    else:
        for report in reports:
            print(_report_text(report, quiet=config.quiet))
        failed = sum(not report.passed for report in reports)
        print(f"{len(reports) - failed} of {len(reports)} fixtures passed")
    return EXIT_OK if passed else EXIT_FAILED


def bench(config: BenchConfig) -> None:
    """Time models against each other in one process."""
    import torch

    from crossband.shared.benchmark import Case, measure
    from crossband.shared.devices import select_device

    names = [name for pattern in config.names for name in _matching(pattern)]
    if config.threads:
        torch.set_num_threads(config.threads)
    device = select_device(config.device)
    cases = []
    for name in names:
        torch.manual_seed(0)
        shapes = _input_shapes(name, config)
        model = create_model(name, **config.arguments).to(device)
        if config.compile:
            model = torch.compile(model)
        for shape in shapes:
            for batch in config.batch:
                sample = torch.randn(batch, *shape, device=device)
                _check_takes(name, model, sample)
                cases.append(Case(name, model, sample, config.training))
    results = measure(cases, config.repeats, config.seconds)
    if config.json:
        print_json([asdict(result) for result in results])
        return
    headers = ("model", "input", "batch", "ms", "samples/s", "peak MB", "train ms", "train MB")
    rows = [
        (
            *(r.name, _shape(r.shape), r.batch, r.milliseconds, r.samples_per_second),
            *(r.peak_megabytes, r.training_milliseconds, r.training_peak_megabytes),
            *(r.parameters / 1e6, r.gigaflops),
        )
        for r in results
    ]
    print(format_table((*headers, "M params", "GFLOPs"), rows))
    print(
        f"Medians of up to {config.repeats} interleaved rounds, {device}, "
        f"{torch.get_num_threads()} threads. ms, samples/s, peak MB: inference; train: forward "
        "and backward. GFLOPs: forward pass of one sample, two per multiply-add, no transforms."
    )
    if config.training and any(result.training_milliseconds is None for result in results):
        print("- under train: the step needs more memory than is free; give a smaller --batch.")


def _check_takes(name: str, model: Any, sample: Tensor) -> None:
    import torch

    try:
        with torch.inference_mode():
            model.eval()(sample[:1])
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{name} cannot take an input of {_shape(sample.shape[1:])} ({reason}): give another "
            "--size or --shape."
        ) from error


def _input_shapes(name: str, config: BenchConfig) -> list[tuple[int, ...]]:
    """Return the shapes of one sample to time a model at."""
    if config.shape and config.size:
        raise ConfigError("--shape and --size are two ways to say one thing: give one of them.")
    if config.shape:
        return [tuple(config.shape)]
    known = None
    if not name.startswith(OTHER_LIBRARIES):
        known = get_entry(name).input_shape
    if known is None:
        raise ConfigError(f"{name} takes any size: give --shape and, if it asks, --arguments.")
    if not config.size:
        return [known]
    if len(known) != 3:
        raise ConfigError(f"--size: {name} takes {_shape(known)}, not an image: give --shape.")
    channels = config.arguments.get("in_chans", known[0])
    return [(channels, side, side) for side in config.size]


def _matching(pattern: str) -> list[str]:
    if ":" in pattern:  # of another library, which knows its names
        return [pattern]
    names = list_models(pattern)
    if not names:
        hint = did_you_mean(pattern.strip("*"), catalog()) or " `crossband models list` shows all."
        raise ConfigError(f"no model is called {pattern!r}.{hint}")
    return names


def _shape(shape: Any) -> str:
    return "x".join(map(str, shape)) if shape else "any"


def _rows(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield one row per fact; those of groups as `group.name`."""
    for key, value in facts.items():
        if isinstance(value, dict) and value and key != "arguments":
            yield from _rows(value, f"{prefix}{key}.")
        else:
            yield prefix + key, _fact(value)


def _fact(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, list):
        shown = value if len(value) <= 6 else [*value[:2], "...", value[-1], f"({len(value)})"]
        return " ".join(map(str, shown))
    return f"{value:,}" if type(value) is int else value


def _ours(config: ConvertConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from crossband.shared.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(config.source)
    return checkpoint.state_dict, checkpoint.config["model"]


def _meta_model(name: str, arguments: dict[str, Any]) -> Any:
    import torch

    if missing := missing_arguments(name, arguments):
        raise ConfigError(
            f"{name} takes any size: give --arguments {' '.join(f'{m}=...' for m in missing)}."
        )
    with torch.device("meta"):
        return create_model(name, **arguments)


def _save_plain(state: dict[str, Tensor], path: Path) -> None:
    """Write a bare state dict: safetensors by suffix, else a PyTorch file of tensors only."""
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        # safetensors refuses tensors that share memory or are not contiguous.
        layout = torch.contiguous_format
        save_file({k: v.clone(memory_format=layout) for k, v in state.items()}, path)
    else:
        torch.save(state, path)


def _report_text(report: Any, *, quiet: bool) -> str:
    verdict = "PASS" if report.passed else "FAIL"
    head = f"{verdict}  {report.path}  ({report.system}, {report.case})"
    if report.problem:
        return f"{head}\n  {report.problem}"
    shown = [check for check in report.checks if not (quiet and check.passed)]
    if not shown:
        return head
    rows = [("PASS" if c.passed else "FAIL", c.name, c.absolute, c.relative, c.note) for c in shown]
    table = format_table(("", "output", "abs error", "rel error", "note"), rows)
    return head + "\n" + "".join(f"  {line}\n" for line in table.splitlines())
