"""`crossband medical train --task detection`: mmdet's Faster R-CNN, run by mmengine."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from crossband.medical.config import TrainConfig
from crossband.medical.data.splits import Gathered
from crossband.medical.data.transforms import IMAGENET
from crossband.medical.detection.data import (
    BoxData,
    Boxed,
    coco_content,
    with_sizes,
    write_coco,
)
from crossband.medical.detection.detector import Detector
from crossband.medical.detection.engine import CONFIG_FILE, engine_config, refuse
from crossband.medical.detection.fusion import check_fusion
from crossband.medical.detection.gathering import gather_boxes
from crossband.medical.detection.model import describe, require_openmmlab
from crossband.medical.detection.pictures import scores_text
from crossband.medical.detection.reading import add_results, read_boxes, store_for
from crossband.medical.detection.scoring import EXPLANATION
from crossband.medical.jobs import NOT_A_DEVICE, common_facts, known_normalisation
from crossband.medical.networks import DETECTION
from crossband.medical.privacy import Names
from crossband.medical.report import protocol_text
from crossband.shared.cli.output import print_json
from crossband.shared.devices import select_device
from crossband.shared.errors import DataError
from crossband.shared.reports.figures import curves
from crossband.shared.reports.html import Report
from crossband.shared.training.resume import stored_options
from crossband.shared.training.run_folder import RunFolder

_RESAMPLES = 1000


def train(config: TrainConfig) -> None:
    """Train a detector; leave the best weights, a stock config of mmdet, and a report.

    Raises:
        ConfigError: options that cannot be.
        DataError: no images with boxes.
        MissingExtraError: mmdet is not installed.
    """
    require_openmmlab()
    if config.resume:
        from crossband.medical.cli import DOMAIN

        folder = RunFolder.existing(config.resume)
        config = stored_options(DOMAIN.verbs["train"], folder, config)
    else:
        folder = RunFolder.create(config.out, f"{config.model}-detection")
    refuse(config)
    job = _Job(config)
    if not config.resume:
        with tempfile.TemporaryDirectory() as place:
            _try_batch(config, job.engine(folder.path, Path(place)))
    if config.dry_run:
        print("dry run: options, data and one batch are in order; nothing was written.")
        return
    engine = job.engine(folder.path, folder.path / "annotations")
    if not config.quiet and not config.json:
        print(job.summary(folder), flush=True)
    # mmengine prints what it loads; with --json that must not be where the result is.
    with contextlib.redirect_stdout(sys.stderr) if config.json else contextlib.nullcontext():
        _run(config, folder, engine)
    job.finish(folder)


class _Job:
    """The data and the network of a run."""

    def __init__(self, config: TrainConfig) -> None:
        arguments = dict(config.network.arguments)
        fusion = check_fusion(str(arguments.pop("fusion", "wbf")))
        self.config, self.names = config, Names(config.keep_ids)
        self.data: BoxData = gather_boxes(config.data, fusion, self.names)
        self.notes = list(self.data.notes)
        self.content: dict[str, dict[str, Any]] = {}
        self.val = self._sized("val", self.data.val)
        self.train = self._sized("train", self.data.train)
        self.description = describe(config, len(self.data.classes), arguments)
        self.normalisation = known_normalisation(config) or IMAGENET
        gathered = Gathered(
            self.data.classes,
            False,
            train=[item.record for item in self.train],
            notes=self.notes,
            collections=self.data.collections,
        )
        chosen = [item.record for item in self.val]
        self.facts: dict[str, Any] = {
            "model": self.description,
            "task": DETECTION,
            "classes": list(self.data.classes),
            "reading": {"window": list(config.data.window), "colours": config.data.colours},
            "fusion": fusion,
            "description": f"{config.model}: boxes of {', '.join(self.data.classes)}",
            **common_facts(config, gathered, chosen, self.normalisation),
        }

    def _sized(self, split: str, items: list[Boxed]) -> list[Boxed]:
        found, broken = with_sizes(items)
        self.notes += [f"left out: {self.names.error(error, path)}" for path, error in broken]
        if not sum(len(item.boxes) for item, _ in found):
            raise DataError(
                f"There is no image with a box in the split {split!r}: give data that has one"
                + (", or --data.val_fraction above 0." if split == "val" else ".")
            )
        self.content[split] = coco_content(found, self.data.classes)
        return [item for item, _ in found]

    def engine(self, folder: Path, annotations: Path) -> dict[str, Any]:
        """Write the boxes, unless a resumed run has them, and return the config of mmdet.

        Raises:
            DataError: a run is resumed, and its data have changed.
        """
        for split, content in self.content.items():
            path = annotations / f"{split}.json"
            if self.config.resume and path.is_file():
                if json.loads(path.read_text(encoding="utf-8")) != content:
                    raise DataError(
                        f"--resume {folder}: images or boxes of the split {split!r} have changed "
                        "since the run began: start a new one."
                    )
            else:
                write_coco(path, content)
        return engine_config(
            self.config,
            self.description,
            self.normalisation,
            self.facts,
            folder,
            annotations,
            len(self.train),
        )

    def summary(self, folder: RunFolder) -> str:
        """Return what is about to happen, as lines."""
        boxes = sum(len(item.boxes) for item in self.train)
        classes = self.data.classes
        lines = [
            f"Faster R-CNN on {self.config.model}, seed {self.config.seed}",
            f"{len(classes)} class(es): {', '.join(classes)}",
            f"images: {len(self.train)} to train on ({boxes} boxes), "
            f"{len(self.val)} to choose the weights on",
            f"weights: {self.config.weights or 'none, from scratch'}",
            *(f"note: {note}" for note in self.notes[:8]),
            f"run folder: {folder.path}",
        ]
        return "\n".join(lines)

    def finish(self, folder: RunFolder) -> None:
        """Score the best weights on the validation images; write results and report."""
        config, names = self.config, self.names
        detector = Detector.load(folder.best, device=config.device)
        store = store_for(detector, names)
        readings = read_boxes(detector, self.val, store, names)
        scores = readings.scores(detector, resamples=_RESAMPLES, seed=config.seed)
        stored = json.loads(folder.results.read_text(encoding="utf-8"))
        protocol = detector.config["protocol"] | {
            "engine": "mmdet",
            "split": "val",
            "minutes": stored["history"][-1]["minutes"] if stored["history"] else None,
            "size": f"longer side {config.size} px",
        }
        results = {
            "headline": {"ap50": scores["ap50"]["value"], "ap": scores["ap"]},
            "protocol": protocol | {"explanation": EXPLANATION},
            "best": stored.get("best", {}),
            "val": scores,
            "history": stored["history"],
        }
        folder.write_results(results)
        report = Report(f"Training: {config.model}, boxes", protocol_text(protocol))
        add_results(report, detector, readings, scores, store, names)
        if results["history"]:
            report.heading("Curves")
            rows = [row | {"val_loss": float("nan")} for row in results["history"]]
            report.figure(curves(rows, ("val_ap50", "val_ap")), "AP50 and AP of validation images")
        report.write(folder.report)
        if config.json:
            print_json({"weights": str(folder.best), **results})
            return
        for problem in readings.problems:
            print(f"left out: {problem}")
        print(scores_text(scores))
        print(f"weights: {folder.best}\nreport: {folder.report}")
        if not config.quiet:
            print(NOT_A_DEVICE)


def _try_batch(config: TrainConfig, engine: Mapping[str, Any]) -> None:
    """Build everything, and run one batch of training and one image of validation."""
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict
    from mmengine.logging import MMLogger
    from mmengine.registry import DefaultScope
    from mmengine.runner import Runner

    torch.manual_seed(config.seed)
    MMLogger.get_instance(f"crossband-try-{time.time_ns()}", log_level="ERROR")
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(ConfigDict(engine["model"]))
        model.init_weights()
        for part in ("train", "val"):
            loader = dict(engine[f"{part}_dataloader"], num_workers=0, persistent_workers=False)
            loader["batch_size"] = min(2, loader["batch_size"])
            batch = next(iter(Runner.build_dataloader(loader, seed=config.seed)))
            data = model.data_preprocessor(batch, part == "train")
            with torch.no_grad():
                model.train(part == "train")(**data, mode="loss" if part == "train" else "predict")


@contextmanager
def _scope_given_back() -> Iterator[None]:
    """Undo that a runner makes its scope that of the whole process, of mmseg's models too."""
    from mmengine.registry import DefaultScope

    kept = dict(DefaultScope._instance_dict)
    try:
        yield
    finally:
        DefaultScope._instance_dict.clear()
        DefaultScope._instance_dict.update(kept)


def _run(config: TrainConfig, folder: RunFolder, engine: dict[str, Any]) -> None:
    """Save the config, and train."""
    from mmengine.config import Config
    from mmengine.runner import Runner

    settings = Config(engine)
    folder.path.mkdir(parents=True, exist_ok=True)
    if not config.resume:
        settings.dump(folder.path / CONFIG_FILE)
    settings.log_level = "ERROR"  # its warnings are about itself, and go to stdout
    settings.experiment_name = f"detection-{time.time_ns()}"  # mmengine keeps logs by this name
    if config.resume:
        settings.load_from, settings.resume = str(folder.last), True
        settings.model.backbone.pop("init_cfg", None)  # the state holds what it had
    with _device(config.device), _scope_given_back():
        runner = Runner.from_cfg(settings)
        # It is a second copy of the config, less readable than ours.
        (folder.path / f"{runner.timestamp}.py").unlink(missing_ok=True)
        runner.train()


@contextmanager
def _device(name: str) -> Iterator[None]:
    """Make mmengine compute where `--device` says; it takes the best there is by itself."""
    import mmengine.device.utils as utils

    before = utils.DEVICE
    utils.DEVICE = select_device(name).type
    try:
        yield
    finally:
        utils.DEVICE = before
