"""What a bundle says of itself after it was fine-tuned: nothing of the old weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

from crossband.shared.bundles.folder import Bundle
from crossband.shared.files import json_text, write_text

if TYPE_CHECKING:
    from monai.bundle import ConfigWorkflow

# Of the old weights.
_STALE = ("eval_protocol", "data_source", "data_license")
_LICENCE = "docs/data_license.txt"


def describe_retrained(bundle: Bundle, run: ConfigWorkflow, images: Mapping[str, int]) -> None:
    """Rewrite metadata, temperature and licence of the data, and remove other forms of the weights.

    Args:
        bundle: The new one.
        run: That made its weights.
        images: Counts of training and validation.
    """
    for name in ("model.ts", "model.onnx"):
        (bundle.root / "models" / name).unlink(missing_ok=True)
    old = bundle.metadata
    version = _next(str(old["version"]))
    told = ", ".join(f"{count} {part}" for part, count in images.items())
    note = f"fine-tuned on other data ({told} images) on {date.today().isoformat()}"
    new = {key: value for key, value in old.items() if key not in _STALE}
    new |= {"version": version, "eval_metrics": _best(run)}
    new["changelog"] = {**old.get("changelog", {}), version: note}
    if new["eval_metrics"]:
        chosen = "images that the best epoch was chosen on: its score is too good"
        new["eval_protocol"] = {"images": dict(images), "scored_on": chosen}
    _write(bundle, "metadata", new)
    inference = bundle.configs[bundle.config_file("inference").name]
    if "temperature" in inference:  # it was fitted to the old weights
        _write(bundle, "inference", inference | {"temperature": 1.0})
    if (bundle.root / _LICENCE).is_file():
        before = (bundle.root / _LICENCE).read_text(encoding="utf-8")
        write_text(
            bundle.root / _LICENCE, f"Not stated for the data of version {version}.\n\n{before}"
        )


def _best(run: ConfigWorkflow) -> dict[str, float]:
    """Return the metric by which weights were chosen, where there is one as in our bundles."""
    config = run.parser.get()
    if not isinstance(config.get("validate"), dict) or "evaluator" not in config["validate"]:
        return {}
    state = run.parser.get_parsed_content("validate::evaluator").state
    if not getattr(state, "key_metric_name", None):
        return {}
    return {state.key_metric_name: float(state.best_metric)}


def _next(version: str) -> str:
    parts = version.split(".")
    if len(parts) < 2 or not parts[1].isdigit():
        return f"{version}.1"
    return ".".join([parts[0], str(int(parts[1]) + 1), *("0" for _ in parts[2:])])


def _write(bundle: Bundle, stem: str, content: dict[str, Any]) -> None:
    path = bundle.config_file(stem)
    if path.suffix == ".json":
        write_text(path, json_text(content) + "\n")
        return
    import yaml

    write_text(path, yaml.safe_dump(json.loads(json_text(content)), sort_keys=False))
