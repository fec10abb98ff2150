"""What detection registers with OpenMMLab, for the configs that `train` writes.

    custom_imports = dict(imports=[
        "crossband.shared.plugins.openmmlab", "crossband.medical.detection.openmmlab"])

| `type=` | what |
|---|---|
| `crossband.MedicalBackbone` | any backbone; `init_cfg` takes files of LVM-Med and of `pretrain` |
| `crossband.BoxDataset` | mmdet's `CocoDataset`, without its messages |
| `crossband.LoadPicture` | reads DICOM and images of 8 and 16 bits as `predict` does |
| `crossband.BoxMetric` | AP50 and AP of COCO over the images that could be read |
| `crossband.DetectionRunHook` | the run folder that `evaluate`, `predict` and `--resume` take |
| `crossband.LastStateHook` | `last.ckpt`, whole at any moment |
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import crossband.shared.plugins.openmmlab as plugin  # before mmdet

# isort: split
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.datasets import CocoDataset
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.runner import Runner

from crossband.medical.data.radiographs import RadiographStore
from crossband.medical.detection.data import Boxes
from crossband.medical.detection.scoring import coco_scores
from crossband.medical.pretraining.encoders import load_encoder, read_authors, read_ours
from crossband.medical.privacy import Names
from crossband.shared.checkpoints import save_checkpoint
from crossband.shared.errors import DataError
from crossband.shared.files import atomic_path, write_text
from crossband.shared.plugins.openmmlab_parts.backbones import Backbone
from crossband.shared.plugins.openmmlab_parts.hooks import RunFolderHook
from crossband.shared.training.run_folder import RunFolder

_STEM = re.compile(r"(?:net\.)?(?:conv1|bn1)\.")
_STAGE = re.compile(r"(?:net\.)?layer(\d)[._]")


@plugin.MODELS.register_module()
class MedicalBackbone(Backbone):
    """Any backbone of the registry, from files of LVM-Med's authors and of `pretrain` as well.

    Options are those of `crossband.Backbone`. `frozen_stages` is known of ResNets, timm's too; of
    networks whose stages have no names that are known, none is frozen.
    """

    def _frozen(self, name: str) -> bool:
        inner = name.partition(".")[2]
        if _STEM.match(inner):
            return True
        found = _STAGE.match(inner)
        return found is not None and int(found[1]) <= self.frozen_stages

    def init_weights(self) -> None:
        """Load what `init_cfg` names.

        Raises:
            CheckpointError: the file cannot be read, would run code, or does not fit.
        """
        config = self.init_cfg
        if isinstance(config, dict) and config.get("type") == "Pretrained" and not self._is_init:
            path, network = str(config["checkpoint"]), self._network()
            encoder = read_ours(path)
            encoder = read_authors(network, path) if encoder is None else encoder
            if encoder is not None:
                load_encoder(network, encoder, path)
                self._is_init = True
        super().init_weights()


@plugin.DATASETS.register_module()
class BoxDataset(CocoDataset):
    """mmdet's data set of a COCO json file; pycocotools prints nothing, so `--json` stays whole."""

    def load_data_list(self) -> list[dict]:
        """Return images with their boxes."""
        with contextlib.redirect_stdout(io.StringIO()):
            return super().load_data_list()


@plugin.TRANSFORMS.register_module()
class LoadPicture(BaseTransform):
    """Reads DICOM files and images of 8 and 16 bits; grey becomes three equal channels.

    A file that cannot be read is told once, by what it may be called. In training another image
    takes its place; else it is a black image with `broken=True`, which `BoxMetric` does not count.

    Args:
        window: DICOM: centre and width of the grey values, instead of the file's own.
        colours: Keep colours.
        keep_ids: Show names of files.
        cache_gb: Memory for decoded images, in GB.
        training: What becomes of files that cannot be read.
    """

    def __init__(
        self,
        window: Sequence[float] = (),
        colours: bool = False,
        keep_ids: bool = False,
        cache_gb: float = 0.0,
        training: bool = False,
    ) -> None:
        """Keep the settings."""
        self.store = RadiographStore(cache_gb, window, colours=colours)
        self.names = Names(keep_ids)
        self.training = training
        self._told: set[str] = set()

    def transform(self, results: dict) -> dict | None:
        """Add `img`, uint8 RGB (H, W, 3), `img_shape`, `ori_shape` and `broken`."""
        path = Path(results["img_path"])
        results["broken"] = False
        try:
            pixels = in_colours(self.store.read(path))
        except DataError as error:
            if str(path) not in self._told:
                self._told.add(str(path))
                text = self.names.error(error, path)
                print(f"left out: {text}", file=sys.stderr, flush=True)
            if self.training:
                return None
            results["broken"] = True
            pixels = np.zeros((results["height"], results["width"], 3), np.uint8)
        results["img"] = pixels
        results["img_shape"] = results["ori_shape"] = pixels.shape[:2]
        return results


def in_colours(pixels: np.ndarray) -> np.ndarray:
    """Return RGB, uint8 (H, W, 3), of an image, uint8 (H, W) or (H, W, 3)."""
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return np.ascontiguousarray(pixels)


@plugin.METRICS.register_module()
class BoxMetric(BaseMetric):
    """COCO's AP at IoU 0.5 (`ap50`) and over 0.5 to 0.95 (`ap`), mean over the classes.

    Args:
        arguments: Of mmengine's BaseMetric.
    """

    default_prefix = ""  # the names are plain

    def __init__(self, **arguments: Any) -> None:
        """Keep the arguments."""
        super().__init__(**arguments)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep boxes drawn and found, in pixels of the image's own size."""
        for sample in data_samples:
            if sample.get("broken"):
                continue
            drawn, found = sample["gt_instances"], sample["pred_instances"]
            corners, scores = found["bboxes"].cpu().numpy(), found["scores"].cpu().numpy()
            height, width = sample["ori_shape"][:2]
            self.results.append(
                (
                    Boxes(_array(drawn["bboxes"]), _array(drawn["labels"])),
                    Boxes(corners, found["labels"].cpu().numpy(), scores),
                    (int(height), int(width)),
                )
            )

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return the scores."""
        if not results:
            return {"ap50": float("nan"), "ap": float("nan")}
        drawn, found, sizes = (list(part) for part in zip(*results, strict=True))
        scores = coco_scores(drawn, found, sizes, self.dataset_meta["classes"])
        return {"ap50": scores.mean("ap50"), "ap": scores.mean("ap")}


def _array(values: Any) -> np.ndarray:
    values = getattr(values, "tensor", values)  # of mmdet's box types
    return values.cpu().numpy()


@plugin.HOOKS.register_module()
class DetectionRunHook(RunFolderHook):
    """Writes the run folder of `crossband medical train --task detection`.

    Args:
        options: Options of the run as YAML; what `--resume` goes by.
        facts: What the checkpoint says beside the weights.
        max_minutes: Training ends with the epoch in which they run out; 0: no limit.
        keep: `best` weights by AP50, or the `last`.
        quiet: Print nothing.
    """

    def __init__(
        self,
        options: str,
        facts: Mapping[str, Any],
        max_minutes: float = 0.0,
        keep: str = "best",
        quiet: bool = True,
    ) -> None:
        """Keep the settings."""
        super().__init__(select="ap50")
        self.options, self.facts = options, facts
        self.max_minutes, self.keep, self.quiet = max_minutes, keep, quiet

    def before_train(self, runner: Runner) -> None:
        """Write the options of the run; those of the engine lie in detector.py."""
        super().before_train(runner)
        if get_rank() == 0:
            self._folder.save_config_text(self.options)

    def after_train_epoch(self, runner: Runner) -> None:
        """Stop when the minutes have run out."""
        minutes = (self._seconds + time.monotonic() - self._tick) / 60
        if self.max_minutes and minutes >= self.max_minutes:
            runner.train_loop.stop_training = True

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Add a row; keep the best weights; say how far it is."""
        super().after_val_epoch(runner, metrics)
        if self.quiet or get_rank() != 0 or not self.rows:
            return
        row = self.rows[-1]
        print(
            f"epoch {runner.epoch}/{runner.max_epochs}: loss {row['train_loss']:.3f}, "
            f"AP50 {row['val_ap50']:.3f}, AP {row['val_ap']:.3f}, {row['minutes']:.1f} min",
            flush=True,
        )

    def after_train(self, runner: Runner) -> None:
        """See that there are weights to use; write the results."""
        if get_rank() == 0 and (self.keep == "last" or not self._folder.best.is_file()):
            self._save_best(runner, self.rows[-1] if self.rows else {})
        super().after_train(runner)

    def _save_best(self, runner: Runner, row: dict[str, float]) -> None:
        model = getattr(runner.model, "module", runner.model)
        metrics = {name: row[name] for name in ("val_ap50", "val_ap") if name in row}
        facts = {**self.facts, "metrics": metrics, "training": row}
        save_checkpoint(self._folder.best, model.state_dict(), facts)


@plugin.HOOKS.register_module()
class LastStateHook(Hook):
    """Keeps `last.ckpt`, from which both `--resume` and mmdet's own `train.py --resume` go on."""

    priority = "VERY_LOW"  # after the schedule has moved on

    def after_train_epoch(self, runner: Runner) -> None:
        """Write the state in the place of the one before."""
        if get_rank() != 0:
            return
        folder = RunFolder(runner.work_dir)
        with atomic_path(folder.last) as temporary:
            runner.save_checkpoint(str(temporary.parent), temporary.name, by_epoch=True)
        write_text(folder.path / "last_checkpoint", str(folder.last.resolve()))
