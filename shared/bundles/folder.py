"""A bundle on disk, read without running anything of it."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from crossband.shared.bundles.safety import Finding, findings, raw_problems, targets
from crossband.shared.checkpoints import read_pickle
from crossband.shared.errors import CrossbandError, DataError

SCHEMA = Path(__file__).with_name("metadata_schema.json")
_CONFIGS = (".json", ".yaml", ".yml")
# Ids that every command sets itself, so that what stands in the file does not matter.
GIVEN = ("bundle_root", "dataset_dir", "output_dir")


class UnsafeBundleError(CrossbandError):
    """A bundle that would run code or reach files which an allow-list does not cover."""


@dataclass
class Bundle:
    """A bundle's folder.

    Attributes:
        root: Folder that holds `configs/`.
        source: What was opened: the folder, or the archive it was taken from.
    """

    root: Path
    source: Path
    _keep: Any = field(default=None, repr=False)  # a temporary folder lives as long as the bundle

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open a folder, or a zip archive of one.

        Raises:
            DataError: missing, or no bundle.
        """
        source = Path(path)
        if source.is_dir():
            return cls(_root_in(source, source), source)
        if not source.is_file():
            raise DataError(f"The bundle {source} does not exist: give its folder or zip archive.")
        if not zipfile.is_zipfile(source):
            raise DataError(f"{source} is no bundle: give a folder or a zip archive of one.")
        keep = tempfile.TemporaryDirectory(prefix="crossband-bundle-")
        with zipfile.ZipFile(source) as archive:
            for name in archive.namelist():
                if name.startswith(("/", "\\")) or ".." in Path(name).parts:
                    raise DataError(f"{source} holds {name!r}, which leaves its folder: refused.")
            archive.extractall(keep.name)
        return cls(_root_in(Path(keep.name), source), source, keep)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Content of metadata.json (or .yaml).

        Raises:
            DataError: missing or unreadable.
        """
        return read_config(self._file("metadata"))

    @cached_property
    def configs(self) -> dict[str, dict[str, Any]]:
        """Workflow configurations by file name, metadata left out."""
        found = sorted(p for p in (self.root / "configs").iterdir() if p.suffix in _CONFIGS)
        return {p.name: read_config(p) for p in found if p.stem != "metadata"}

    def config_file(self, stem: str) -> Path:
        """Return the file of a workflow: `inference`, `train`, ...

        Raises:
            DataError: the bundle has none.
        """
        return self._file(stem)

    @property
    def workflows(self) -> list[str]:
        """Names of the configurations."""
        return [Path(name).stem for name in self.configs]

    @property
    def weights(self) -> Path | None:
        """File of the weights, if it is there."""
        for name in ("model.pt", "model.ts", "model.onnx"):
            if (self.root / "models" / name).is_file():
                return self.root / "models" / name
        return None

    @property
    def scripts(self) -> list[Path]:
        """Python files that come with the bundle."""
        return sorted(p.relative_to(self.root) for p in self.root.rglob("*.py"))

    def targets(self) -> list[str]:
        """Everything that the configurations would import and call."""
        return sorted(set().union(*(targets(config) for config in self.configs.values())))

    def findings(self) -> list[Finding]:
        """What the configurations would do that is not on the allow-list; nothing of them runs."""
        files = {**self.configs, "metadata": self.metadata}
        found = [Finding(n, problem) for n, c in files.items() for problem in raw_problems(c)]
        for link in (p for p in self.root.rglob("*") if p.is_symlink()):
            if not link.resolve().is_relative_to(self.root.resolve()):
                where = str(link.relative_to(self.root))
                found.append(Finding(where, "is a link out of the folder"))
        if found:  # a macro must not read what it names
            return found
        for name in self.configs:
            stem = Path(name).stem
            stems = ["train", stem] if stem == "evaluate" and "train" in self.workflows else [stem]
            try:
                config = self.resolved(stems)
            except Exception as error:  # MONAI raises many kinds on what it cannot resolve
                reason = " ".join(str(error).split())[:100]
                found.append(Finding(name, f"cannot be resolved: {reason}"))
                continue
            found += findings(config, name, GIVEN)
        return list(dict.fromkeys(found))

    def resolved(self, stems: Sequence[str]) -> dict[str, Any]:
        """Return configuration files as MONAI evaluates them, metadata under `_meta_`."""
        from monai.bundle import ConfigParser

        parser = ConfigParser()
        parser.read_config([str(self.config_file(stem)) for stem in stems])
        parser.read_meta(str(self.config_file("metadata")))
        parser.update(pairs={name: str(self.root) for name in GIVEN})
        parser.resolve_macro_and_relative_ids()
        return parser.get()

    def require_safe(self, *, trust: bool) -> None:
        """Refuse a bundle that would do more than the allow-list covers, unless it is trusted.

        Raises:
            UnsafeBundleError: naming the first finding.
        """
        found = [] if trust else self.findings()
        if found:
            more = f" (and {len(found) - 1} more; `crossband bundle info` lists all)"
            raise UnsafeBundleError(
                f"{self.source} was not run: {found[0]}{more if len(found) > 1 else ''}. If you "
                "trust its authors with everything on this machine, add --trust."
            )
        for weights in () if trust else sorted((self.root / "models").glob("*.pt")):
            read_pickle(weights)  # refuses a file that would run code, in one sentence

    def metadata_problems(self) -> list[str]:
        """Compare metadata with the specification; return a sentence for each difference."""
        import jsonschema

        schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
        validator = jsonschema.Draft202012Validator(schema)
        return [
            f"metadata: {'.'.join(map(str, error.absolute_path)) or 'top level'}: {error.message}"
            for error in sorted(validator.iter_errors(self.metadata), key=str)
        ]

    def _file(self, stem: str) -> Path:
        for suffix in _CONFIGS:
            if (self.root / "configs" / f"{stem}{suffix}").is_file():
                return self.root / "configs" / f"{stem}{suffix}"
        there = ", ".join(sorted(p.name for p in (self.root / "configs").iterdir()))
        raise DataError(f"{self.source} has no configs/{stem}.json or .yaml; there is: {there}.")


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, which can make a short file endless."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it uses aliases (*name), which are not read")
        return super().compose_node(parent, index)


def read_config(path: Path) -> dict[str, Any]:
    """Read one configuration file, JSON or YAML, without interpreting it.

    Raises:
        DataError: unreadable, or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.load(text, _PlainLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read as a configuration: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no mapping of names to settings.")
    return content


def _root_in(folder: Path, source: Path) -> Path:
    """Return the folder that holds configs/: this one, or the only one in it."""
    candidates = [folder, *(p for p in folder.iterdir() if p.is_dir())]
    for candidate in candidates:
        if (candidate / "configs").is_dir():
            return candidate
    raise DataError(f"{source} is no bundle: it has no folder configs/ with metadata.json.")
