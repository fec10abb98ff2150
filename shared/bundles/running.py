"""Running and fine-tuning bundles, through MONAI's own workflow, in this process."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossband.shared.bundles.folder import Bundle
from crossband.shared.bundles.listing import Labels, dataset_json, listing_text
from crossband.shared.bundles.quiet import quiet_monai
from crossband.shared.bundles.retrained import describe_retrained
from crossband.shared.checkpoints import read_pickle
from crossband.shared.devices import select_device
from crossband.shared.errors import ConfigError, CrossbandError
from crossband.shared.files import write_text

if TYPE_CHECKING:
    from monai.bundle import ConfigWorkflow


def run_inference(
    bundle: Bundle,
    images: Sequence[Path],
    out: Path,
    *,
    device: str = "auto",
    settings: dict[str, Any] | None = None,
    trust: bool = False,
) -> None:
    """Run inference.json on images; results go to `out` as the bundle writes them.

    Raises:
        UnsafeBundleError: a configuration that is not all on the allow-list, untrusted.
        CrossbandError: the workflow failed.
    """
    bundle.require_safe(trust=trust)
    config = bundle.config_file("inference")
    content = bundle.configs[config.name]
    overrides = _common(bundle, content, device)
    out.mkdir(parents=True, exist_ok=True)
    overrides["output_dir"] = str(out.resolve())
    overrides["dataset_dir"] = str(images[0].resolve().parent)
    dataset = content.get("dataset")
    if not isinstance(dataset, dict) or "data" not in dataset:
        raise CrossbandError(
            f"{config} has no dataset#data, so images cannot be given to it: run it by "
            "`python -m monai.bundle run` with its own data."
        )
    key = image_key(content)
    overrides["dataset#data"] = [{key: str(path.resolve())} for path in images]
    run_workflow(bundle, [config], "inference", overrides | (settings or {}), trust=trust)


def finetune(
    bundle: Bundle,
    data: Path,
    out: Path,
    *,
    overrides: dict[str, Any],
    device: str = "auto",
    val_fraction: float = 0.2,
    seed: int = 0,
    trust: bool = False,
) -> Path:
    """Run train.json on new data in a copy of the bundle, whose model.pt becomes the best found.

    Args:
        bundle: To start from; it is left as it is.
        data: Folder of images and labels, see `listing.dataset_json`.
        out: Folder of the new bundle.
        overrides: Settings of train.json to change; ids that it does not have are refused.
        device: Where to compute.
        val_fraction: Part that is held back to validate, where the data do not say.
        seed: Of that choice.
        trust: Run whatever the configuration says.

    Raises:
        UnsafeBundleError: a configuration that is not all on the allow-list, untrusted.
        ConfigError: `out` exists, or settings that train.json does not have.
        DataError: no data found.
        CrossbandError: the workflow failed, or left no weights.
    """
    import torch

    bundle.require_safe(trust=trust)
    config = bundle.config_file("train")
    content = bundle.configs[config.name]
    require_settings(bundle, "train", overrides)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty: name a new folder for the fine-tuned bundle.")
    listing = dataset_json(data, val_fraction, seed, Labels.of(bundle))
    part = out.with_name(f".{out.name}.part")  # a run that fails leaves nothing under the name
    shutil.rmtree(part, ignore_errors=True)
    try:
        shutil.copytree(bundle.root, part)
        copy = Bundle(part, part)
        if not (data / "dataset.json").is_file():
            write_text(part / "dataset.json", listing_text(listing))
        given = {"dataset_dir": str(data.resolve()), "output_dir": str((part / "eval").resolve())}
        given |= {**_common(copy, content, device), **overrides}
        if _has(content, "data_list_file_path"):
            path = data if (data / "dataset.json").is_file() else part
            given["data_list_file_path"] = str((path / "dataset.json").resolve())
        before = {p: p.stat().st_mtime_ns for p in (part / "models").glob("*.pt")}
        done = run_workflow(copy, [copy.config_file("train")], "train", given, trust=trust)
        made = [p for p in (part / "models").glob("*.pt") if p.stat().st_mtime_ns != before.get(p)]
        if not made:
            raise CrossbandError(
                "Training ended but wrote no weights to models/: its train.json has no "
                "CheckpointSaver there."
            )
        best = max(made, key=lambda p: ("best" in p.name, p.stat().st_mtime_ns))
        state = read_pickle(best)
        torch.save(state.get("model", state), part / "models" / "model.pt")
        (part / "dataset.json").unlink(missing_ok=True)  # its paths are of this machine
        describe_retrained(copy, done, {name: len(items) for name, items in listing.items()})
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out / "models" / "model.pt"


def require_settings(bundle: Bundle, kind: str, names: Iterable[str]) -> None:
    """Refuse settings that a workflow does not have.

    Raises:
        ConfigError: naming the first.
    """
    config = bundle.config_file(kind)
    for name in names:
        if not _has(bundle.configs[config.name], name):
            raise ConfigError(f"{config.name} has no setting {name!r}: change one that it has.")


def run_workflow(
    bundle: Bundle,
    configs: Sequence[Path],
    kind: str,
    overrides: dict[str, Any],
    *,
    trust: bool = False,
) -> ConfigWorkflow:
    """Run configuration files of a bundle by MONAI's ConfigWorkflow; return it.

    The bundle's logging.conf is not applied: its format can run code.

    Raises:
        CrossbandError: the workflow failed; its last cause is told.
    """
    from monai.bundle import ConfigWorkflow

    with quiet_monai(), _importable(bundle.root if trust else None):
        try:
            workflow = ConfigWorkflow(
                config_file=[str(path) for path in configs],
                meta_file=str(bundle.config_file("metadata")),
                logging_file=False,
                workflow_type=kind,
                **overrides,
            )
            workflow.initialize()
            workflow.run()
            workflow.finalize()
            return workflow
        except (KeyboardInterrupt, CrossbandError):
            raise
        except Exception as error:  # a configuration can fail in any way
            raise CrossbandError(f"{configs[0]} failed: {cause_of(error)}") from error


def missing_ids(bundle: Bundle, kind: str) -> list[str]:
    """Return the ids that MONAI wants in a workflow and that are not there; nothing is built."""
    from monai.bundle.properties import InferProperties, TrainProperties
    from monai.utils.enums import BundleProperty, BundlePropertyConfig

    wanted = {"inference": InferProperties, "train": TrainProperties}[kind]
    content = {**bundle.configs[bundle.config_file(kind).name], "_meta_": bundle.metadata}
    ids = [
        rule[BundlePropertyConfig.ID] for rule in wanted.values() if rule[BundleProperty.REQUIRED]
    ]
    return [name for name in ids if not _has(content, name)]


def image_key(config: dict[str, Any]) -> str:
    """Return the key under which a workflow reads its image."""
    for node in _nodes(config):
        name = str(node.get("_target_", "")).rpartition(".")[2]
        if name in ("LoadImaged", "LoadImageDict", "LoadImageD"):
            keys = node.get("keys", "image")
            key = keys if isinstance(keys, str) else keys[0]
            return "image" if key.startswith(("@", "$")) else key
    return "image"


def _nodes(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, dict):
        return [node, *(n for value in node.values() for n in _nodes(value))]
    if isinstance(node, list):
        return [n for value in node for n in _nodes(value)]
    return []


def _has(config: dict[str, Any], name: str) -> bool:
    node: Any = config
    for part in name.replace("#", "::").split("::"):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _common(bundle: Bundle, content: dict[str, Any], device: str) -> dict[str, Any]:
    chosen: dict[str, Any] = {"bundle_root": str(bundle.root.resolve())}
    if "device" in content and device != "auto":
        chosen["device"] = f"$torch.device('{select_device(device).type}')"
    return chosen


def cause_of(error: BaseException) -> str:
    """Return the sentence of the first exception in a chain: MONAI wraps it several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())[:300] or "no message"
    return f"{type(error).__name__}: {text}"


@contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    """Make a trusted bundle's scripts/ importable for the time of a run."""
    if folder is None:
        yield
        return
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
