"""The run folder: everything a training run leaves behind, the same for every system."""

from __future__ import annotations

import csv
import io
import os
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossband.shared.checkpoints import save_checkpoint
from crossband.shared.errors import ConfigError
from crossband.shared.files import atomic_path, json_text, write_text

if TYPE_CHECKING:
    from lightning import Trainer
    from torch import nn


_STAMP = "CROSSBAND_RUN_STAMP"


class RunFolder:
    """Paths and writers of one run.

    `config.yaml` (all options), `metrics.csv` (one row per epoch), `metrics.json` (results with
    their protocol), `last.ckpt` (to resume), `best.safetensors` (to use), `report.html`.
    """

    def __init__(self, path: str | Path, run: RunFolder | None = None) -> None:
        """Name the folder, perhaps as a part of a run; nothing is made before the first write."""
        self.path = Path(path)
        self.run = run or self  # what --resume takes
        self.config = self.path / "config.yaml"
        self.history = self.path / "metrics.csv"
        self.results = self.path / "metrics.json"
        self.last = self.path / "last.ckpt"
        self.best = self.path / "best.safetensors"
        self.report = self.path / "report.html"

    @classmethod
    def create(cls, out: str | None, label: str) -> RunFolder:
        """Return a new folder: `out`, or `runs/<label>-<time>`.

        Raises:
            ConfigError: the folder already holds a run.
        """
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        if "LOCAL_RANK" in os.environ:  # a process of a distributed run takes its parent's
            stamp = os.environ.get(_STAMP, stamp)
        os.environ[_STAMP] = stamp
        name = re.sub(r"[^\w.+-]+", "-", label)  # timm:NAME is no name of a folder everywhere
        folder = cls(out or Path("runs") / f"{name}-{stamp}")
        if folder.last.exists() or folder.best.exists():
            raise ConfigError(
                f"{folder.path} already holds a run: choose another --out, or go on with it by "
                f"--resume {folder.path}."
            )
        return folder

    @classmethod
    def existing(cls, path: str | Path) -> RunFolder:
        """Return the folder of a run to resume.

        Raises:
            ConfigError: there is nothing to resume.
        """
        folder = cls(path)
        for needed in (folder.config, folder.last):
            if not needed.is_file():
                raise ConfigError(
                    f"--resume {path}: {needed.name} is missing there, so there is nothing to go "
                    "on with; start a new run without --resume."
                )
        return folder

    def stage(self, name: str) -> RunFolder:
        """Return the folder of one stage of this run."""
        return RunFolder(self.path / name, run=self)

    def save_config_text(self, text: str) -> None:
        """Write all options of the run as YAML."""
        write_text(self.config, text)

    def save_state(self, trainer: Trainer) -> None:
        """Write the state to resume from; an earlier one stays if this fails."""
        if not trainer.is_global_zero:
            trainer.save_checkpoint(self.last)  # collective under sharded strategies
            return
        with atomic_path(self.last) as temporary:
            trainer.save_checkpoint(temporary)

    def save_best(self, model: nn.Module, config: dict[str, Any]) -> None:
        """Write the weights to use."""
        save_checkpoint(self.best, model.state_dict(), config)

    def write_history(self, rows: list[dict[str, float]]) -> None:
        """Write one row per epoch."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.history, buffer.getvalue())

    def write_results(self, results: dict[str, Any]) -> None:
        """Write the results with their protocol."""
        write_text(self.results, json_text(results) + "\n")
