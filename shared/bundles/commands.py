"""`crossband bundle info|check|write|run|finetune`."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from crossband.shared.bundles.config import (
    CheckConfig,
    FinetuneConfig,
    InfoConfig,
    RunConfig,
    WriteConfig,
)
from crossband.shared.bundles.folder import GIVEN, Bundle
from crossband.shared.cli.output import format_table, print_json
from crossband.shared.errors import (
    EXIT_FAILED,
    EXIT_PARTIAL,
    ConfigError,
    CrossbandError,
    MissingExtraError,
)
from crossband.shared.files import write_text
from crossband.shared.prediction import INDEX


def info(config: InfoConfig) -> None:
    """Say what a bundle is and what its configuration would import."""
    _need_monai()
    bundle = Bundle.open(config.bundle)
    meta = bundle.metadata
    found = bundle.findings()
    if config.json:
        print_json(
            {
                "metadata": meta,
                "workflows": bundle.workflows,
                "weights": str(bundle.weights) if bundle.weights else None,
                "scripts": list(map(str, bundle.scripts)),
                "targets": bundle.targets(),
                "findings": list(map(str, found)),
            }
        )
        return
    shown = ("name", "version", "task", "description", "authors", "copyright", "intended_use")
    rows = [(name, str(meta[name])) for name in shown if name in meta]
    for side, name, spec in _tensors(meta):
        shape = " x ".join(map(str, spec.get("spatial_shape", []))) or "-"
        text = f"{name}: {spec.get('num_channels', '?')} channel(s), {shape}"
        rows.append((side, f"{text}, {spec.get('modality', spec.get('format', ''))}"))
        if side == "outputs" and isinstance(spec.get("channel_def"), dict):
            rows.append(("classes", ", ".join(map(str, spec["channel_def"].values()))))
    packages = "required_packages_version", "optional_packages_version"
    for word, names in (("metrics", ("eval_metrics",)), ("needs", packages)):
        for found_name in names:
            if isinstance(meta.get(found_name), dict):
                pairs = ", ".join(f"{k} {v}" for k, v in meta[found_name].items())
                rows.append((word, pairs or "-"))
    rows.append(("workflows", ", ".join(bundle.workflows)))
    rows.append(("weights", _weights(bundle)))
    rows.append(("own code", ", ".join(map(str, bundle.scripts)) or "none"))
    print(format_table(("item", "value"), rows))
    print("\nthe configuration imports and calls:")
    print(
        textwrap.fill(", ".join(bundle.targets()), 98, initial_indent="  ", subsequent_indent="  ")
    )
    _print_findings(found)


def check(config: CheckConfig) -> int | None:
    """Compare a bundle with MONAI's specification; exit code 1 if something is wrong."""
    _need_monai()
    from crossband.shared.bundles.running import missing_ids

    bundle = Bundle.open(config.bundle)
    problems = bundle.metadata_problems()
    if bundle.weights is None:
        problems.append("models/: there are no weights (model.pt)")
    found = bundle.findings()
    safe = config.trust or not found
    for kind in ("inference", "train"):
        if kind in bundle.workflows and safe:
            problems += [f"{kind}: the id {name} is missing" for name in missing_ids(bundle, kind)]
    if "inference" not in bundle.workflows:
        problems.append("configs/: there is no inference.json")
    elif safe and not problems:
        problems += _network_problems(bundle)
    if config.json:
        print_json({"problems": problems, "findings": list(map(str, found))})
    else:
        for problem in problems:
            print(f"problem: {problem}")
        _print_findings(found)
        if not safe:
            print("not built: what would be run is not all allowed; --trust builds it.")
        elif not problems:
            print(f"{config.bundle}: metadata, ids and the network's shapes are in order")
    return EXIT_FAILED if problems or not safe else None


def write(config: WriteConfig) -> None:
    """Write a checkpoint as a bundle."""
    _need_monai()
    from crossband.shared.bundles.writing import write_bundle
    from crossband.shared.checkpoints import read_config
    from crossband.shared.cli.domain import load_object
    from crossband.shared.registry import domain_packages

    task = str(read_config(config.weights).get("task"))
    writers: dict[str, str] = {}
    for package in domain_packages().values():  # domains whose files MONAI reads otherwise
        writers |= getattr(import_module(f"{package}.catalog"), "BUNDLES", {})
    write_one = load_object(writers[task]) if task in writers else write_bundle
    folder = write_one(
        config.weights,
        config.out,
        authors=config.authors,
        copyright=config.copyright,
        data_licence=config.data_licence,
    )
    if config.json:
        print_json({"bundle": str(folder)})
    else:
        print(f"{folder}: try `crossband bundle check {folder}`")


def run(config: RunConfig) -> int | None:
    """Run a bundle on images; broken ones are listed and left out."""
    _need_monai()
    if not config.inputs:
        raise ConfigError("bundle run needs images after the bundle: files or folders.")
    from crossband.shared.bundles.images import find_images, loader_of, readable_images
    from crossband.shared.bundles.running import require_settings, run_inference

    bundle = Bundle.open(config.bundle)
    bundle.require_safe(trust=config.trust)
    require_settings(bundle, "inference", config.set)
    loader = loader_of(bundle, config.set)
    images = find_images(config.inputs, loader.reads)
    out = Path(config.out)
    if any(path.resolve().is_relative_to(out.resolve()) for path in images):
        raise ConfigError(f"--out {out} is where the images lie: name another folder.")
    good, broken, notes = readable_images(images, loader)
    place = sys.stderr if config.json else sys.stdout
    for line in (*(f"left out: {problem}" for problem in broken.values()), *notes):
        print(line, file=place, flush=True)
    if not good:
        raise CrossbandError(f"None of the {len(images)} images can be read; see above.")
    run_inference(bundle, good, out, device=config.device, settings=config.set, trust=config.trust)
    written = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    entries: list[dict[str, Any]] = [{"input": loader.name(path)} for path in good]
    entries += [{"input": loader.name(path), "error": text} for path, text in broken.items()]
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    write_text(out / INDEX, lines)
    if config.json:
        print_json({"written": written, "inputs": entries})
    elif not config.quiet:
        shown = ", ".join(written[:6]) + (" ..." if len(written) > 6 else "")
        print(f"{len(good)} image(s) done; in {out}: {shown}")
    return EXIT_PARTIAL if broken else None


def finetune(config: FinetuneConfig) -> None:
    """Fine-tune a bundle on new data into a new bundle."""
    _need_monai()
    from crossband.shared.bundles import running

    bundle = Bundle.open(config.bundle)
    bundle.require_safe(trust=config.trust)
    train = bundle.configs[bundle.config_file("train").name]
    overrides: dict[str, Any] = dict(config.set)
    for name in ("learning_rate", "batch_size"):
        if name in train:
            overrides.setdefault(name, getattr(config, name))
    length = "epochs" if "epochs" in train else "train::trainer::max_epochs"
    overrides.setdefault(length, config.epochs)
    weights = running.finetune(
        bundle,
        Path(config.data),
        Path(config.out),
        overrides=overrides,
        device=config.device,
        val_fraction=config.val_fraction,
        seed=config.seed,
        trust=config.trust,
    )
    if config.json:
        print_json({"bundle": config.out, "weights": str(weights)})
    else:
        print(f"fine-tuned: {weights}; `crossband bundle run {config.out} images/` uses it")


def _network_problems(bundle: Bundle) -> list[str]:
    """Build the network and run it once on the shape that the metadata promises."""
    from monai.bundle import verify_net_in_out

    from crossband.shared.bundles.quiet import quiet_monai
    from crossband.shared.bundles.running import cause_of

    try:
        with quiet_monai():
            verify_net_in_out(
                "network_def",
                meta_file=str(bundle.config_file("metadata")),
                config_file=str(bundle.config_file("inference")),
                device="cpu",
                **{name: str(bundle.root) for name in GIVEN},
            )
    except Exception as error:  # whatever the network raises is the finding
        return [f"network: {cause_of(error)}"]
    return []


def _tensors(meta: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield side, name and description of what goes in and out; what is malformed is left out."""
    formats = meta.get("network_data_format")
    for side in ("inputs", "outputs"):
        tensors = formats.get(side) if isinstance(formats, dict) else None
        for name, spec in tensors.items() if isinstance(tensors, dict) else ():
            if isinstance(spec, dict):
                yield side, name, spec


def _weights(bundle: Bundle) -> str:
    path = bundle.weights
    if path is None:
        return "none"
    return f"{path.relative_to(bundle.root)}, {path.stat().st_size / 2**20:.1f} MB"


def _print_findings(found: list[Any]) -> None:
    if found:
        print("\nnot on the allow-list (would need --trust):")
        for item in found:
            print(f"  {item}")
    else:
        print("\neverything that the configuration runs is on the allow-list")


def _need_monai() -> None:
    for package in ("monai", "ignite", "jsonschema"):
        try:
            __import__(package)
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or package, "medical") from error
