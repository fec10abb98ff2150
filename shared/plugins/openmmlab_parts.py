"""What crossband registers with OpenMMLab: imported when a `crossband.` name is first looked up.

- backbones: every family of the catalog by its class name (`crossband.UniRepLKNet`), and any
  backbone of the registry or of timm by `crossband.Backbone`;
- necks that make a plain ViT a pyramid: `LLFPN`, `SimpleFeaturePyramid`, `SelectResize`;
- `FolderSegDataset`, images and masks in folders; `LoadThermalImage`, 8- and 16-bit images;
- `RunFolderHook`, which writes crossband's run folder; `ReseedHook`, which makes a run exact to
  resume.
"""

from __future__ import annotations

import csv
import math
import os
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import crossband.shared.compat  # noqa: F401 - before timm, which imports torchvision

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmengine.runner import IterBasedTrainLoop, Runner
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from crossband.shared.backbones.base import load_backbone
from crossband.shared.checkpoints import HEADER_KEY, find_state_dict, load_state
from crossband.shared.cli.domain import load_object
from crossband.shared.environment import machine, versions
from crossband.shared.errors import CheckpointError, ConfigError, DataError, did_you_mean
from crossband.shared.necks import LLFPN, SelectResize, SimpleFeaturePyramid
from crossband.shared.plugins.openmmlab import DATASETS, HOOKS, MODELS, TRANSFORMS
from crossband.shared.registry import ModelEntry, catalog, create_model, get_entry
from crossband.shared.training.run_folder import RunFolder

# ---------------------------------------------------------------------------------------------
# Backbones


class _Managed(BaseModule):
    """What mmengine's users expect of a backbone, around a network of ours.

    Attributes:
        official: "module:function" that brings the authors' keys to ours, or None.
        frozen_stages: Stages that are not trained: 0 the stem, 1 the first stage too, ...; -1 none.
            Stages of a plain ViT are its blocks.
        norm_eval: Whether batch norms keep their statistics in training.
    """

    official: str | None = None
    frozen_stages = -1
    norm_eval = False

    def _manage(self, frozen_stages: int, norm_eval: bool, init_cfg: dict | None) -> None:
        self._is_init = False  # a network of ours does not call BaseModule's constructor
        self.init_cfg = init_cfg
        self.norm_eval = norm_eval
        self.frozen_stages = frozen_stages
        if frozen_stages >= 0:
            for name, parameter in self.named_parameters():
                if self._frozen(name):
                    parameter.requires_grad_(False)

    def _network(self) -> nn.Module:
        return self

    def _frozen(self, name: str) -> bool:
        network = self._network()
        if network is not self:
            name = name.partition(".")[2]
        if hasattr(network, "stem_pattern"):
            stage = network.stage_index(name)
            return stage is not None and stage < self.frozen_stages
        if not hasattr(network, "layer_index"):
            raise ConfigError(
                f"frozen_stages {self.frozen_stages}: the stages of {type(network).__name__} have "
                "no names that are known here; leave frozen_stages out, or choose a backbone of "
                "crossband."
            )
        return network.layer_index(name) <= self.frozen_stages  # of a plain ViT: blocks

    def train(self, mode: bool = True) -> _Managed:
        """Set the mode; frozen stages and, if asked, batch norms stay in evaluation."""
        super().train(mode)
        if mode:
            for name, module in self.named_modules():
                frozen = self.frozen_stages >= 0 and name and self._frozen(f"{name}.")
                if frozen or (
                    self.norm_eval and isinstance(module, nn.modules.batchnorm._BatchNorm)
                ):
                    module.training = False
        return self

    def init_weights(self) -> None:
        """Load what `init_cfg` names, else keep the values that the network drew itself.

        Takes the authors' files, ours, and those of mmseg and mmdet, whose backbone is under
        `backbone.`; a classifier's too. What does not fit is an error, what is left is told.

        Raises:
            CheckpointError: the file cannot be read, would run code, or does not fit.
            ConfigError: another `init_cfg`.
        """
        config = self.init_cfg
        if config is None or self._is_init:
            self._is_init = True
            return
        if not isinstance(config, dict) or config.get("type") != "Pretrained":
            raise ConfigError(
                f"init_cfg {config} of {type(self).__name__}: our networks initialise themselves, "
                'so only dict(type="Pretrained", checkpoint=FILE) can be given.'
            )
        source = str(config["checkpoint"])
        content = CheckpointLoader.load_checkpoint(source, "cpu")
        state, _ = find_state_dict(content, source)
        state = _below(state, config.get("prefix") or "", source)
        meta = content.get("meta", {}) if isinstance(content, dict) else {}
        ours = HEADER_KEY in meta
        if self.official and not ours:
            state = load_object(self.official)(state)
        if not ours and "crossband." not in str(meta.get("cfg")):  # nor of a run with this class
            state = getattr(self._network(), "adapt_official", dict)(state)
        self._load(state, source)
        self._is_init = True

    def _load(self, state: dict[str, Tensor], source: str) -> None:
        load_backbone(self._network(), state, source)


def _below(state: dict[str, Tensor], prefix: str, source: str) -> dict[str, Tensor]:
    """Return what is under a prefix; without one, under `module.` and `backbone.` if there."""
    if prefix:
        prefix = prefix.rstrip(".") + "."
        found = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if not found:
            raise CheckpointError(
                f"{source} has no weights under {prefix!r} (its first: {next(iter(state))!r}): "
                "give another prefix in init_cfg, or none."
            )
        return found
    for usual in ("module.", "backbone."):
        found = {k.removeprefix(usual): v for k, v in state.items() if k.startswith(usual)}
        state = found or state
    return state


def _family_class(network: type[nn.Module], variants: dict[str, ModelEntry]) -> type[_Managed]:
    """Return a backbone class of ours as mmengine's users know it."""

    def __init__(
        self: Any,
        variant: str | None = None,
        *,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        init_cfg: dict | None = None,
        **arguments: Any,
    ) -> None:
        if variant is not None:
            if variant not in variants:
                hint = did_you_mean(variant, variants) or f" There are: {', '.join(variants)}."
                raise ConfigError(f"{network.__name__} has no variant {variant!r}.{hint}")
            arguments = variants[variant].arguments | arguments
        network.__init__(self, **arguments)
        self._manage(frozen_stages, norm_eval, init_cfg)

    text = f"""{network.__name__} for OpenMMLab; see `{network.__module__}`.

    Args:
        variant: {", ".join(variants)}; other arguments go over it. None: all by arguments.
        frozen_stages: Stages that are not trained: 0 the stem, 1 the first stage too, ...
        norm_eval: Whether batch norms keep their statistics in training.
        init_cfg: `dict(type="Pretrained", checkpoint=FILE)`.
        arguments: Of the network, `out_indices` among them.
    """
    official = next(iter(variants.values())).official
    body = {"__init__": __init__, "__doc__": text, "__module__": __name__, "official": official}
    return type(network.__name__, (_Managed, network), body)


def _register_families() -> None:
    families: dict[str, dict[str, ModelEntry]] = defaultdict(dict)
    for entry in catalog().values():
        if entry.backbone:
            families[entry.backbone][entry.name] = entry
    for target, entries in families.items():
        common = os.path.commonprefix(list(entries))
        start = common.rfind("_") + 1 if len(entries) > 1 else 0
        variants = {name[start:]: entry for name, entry in entries.items()}
        network = load_object(target)
        MODELS.register_module(module=_family_class(network, variants))


_register_families()
for _neck in (LLFPN, SelectResize, SimpleFeaturePyramid):
    MODELS.register_module(module=_neck)


@MODELS.register_module()
class Backbone(_Managed):
    """Any backbone by its name in crossband's registry: `hornet_tiny_gf`, `timm:convnext_tiny`.

    Args:
        name: Of the registry.
        frozen_stages: As for our own families; unknown for timm's networks.
        norm_eval: Whether batch norms keep their statistics in training.
        init_cfg: `dict(type="Pretrained", checkpoint=FILE)`.
        arguments: Of the network.
    """

    def __init__(
        self,
        name: str,
        *,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        init_cfg: dict | None = None,
        **arguments: Any,
    ) -> None:
        """Build the network."""
        super().__init__()
        self.name = name
        self.arguments = arguments
        self.network = create_model(name, features_only=True, **arguments)
        self.official = get_entry(name).official
        self.out_channels = self.network.out_channels
        self.strides = self.network.strides
        self._manage(frozen_stages, norm_eval, init_cfg)

    def _network(self) -> nn.Module:
        return self.network

    def _load(self, state: dict[str, Tensor], source: str) -> None:
        own = {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")}
        if own:  # a file of a run with this class
            load_state(self.network, own, source)
        elif self.name.startswith("timm:"):  # a file of the whole model, its head included
            from crossband.shared.backbones.from_timm import TimmBackbone

            whole = {k: v for k, v in self.arguments.items() if k != "out_indices"}
            model = create_model(self.name, **whole)
            load_state(model, state, source)
            timm_name = self.name.removeprefix("timm:")
            filled = TimmBackbone(timm_name, state=model.state_dict(), **self.arguments)
            self.network.load_state_dict(filled.state_dict())
        else:
            super()._load(state, source)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (B, C, H, W) to feature maps, finest first."""
        return self.network(image)


# ---------------------------------------------------------------------------------------------
# Data


@DATASETS.register_module()
class FolderSegDataset(BaseDataset):
    """Images and masks in two folders, and the names of the classes in a text file.

        data_root/images/a.png  data_root/masks/a.png  data_root/classes.txt

    `classes.txt` holds one name a line; pixels of a mask are line numbers from 0, or
    `ignore_index`. A file `ann_file` (say `train.txt`) chooses images by stem, one a line.

    Args:
        data_root: Folder.
        ann_file: Under `data_root`; empty takes every image.
        classes_file: Under `data_root`.
        data_prefix: Folders under `data_root`: `img_path`, `seg_map_path`.
        reduce_zero_label: Class 0 of the masks is ignored and not in `classes.txt`.
        ignore_index: Pixels of this value are not scored.
        arguments: Of mmengine's BaseDataset.
    """

    SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

    def __init__(
        self,
        data_root: str = "",
        ann_file: str = "",
        classes_file: str = "classes.txt",
        data_prefix: dict | None = None,
        reduce_zero_label: bool = False,
        ignore_index: int = 255,
        **arguments: Any,
    ) -> None:
        """Read the names of the classes and the list of files."""
        self.reduce_zero_label = reduce_zero_label
        self.ignore_index = ignore_index
        names = self._lines(Path(data_root) / classes_file)
        metainfo = {"classes": names, "palette": _palette(len(names))}
        super().__init__(
            ann_file=ann_file,
            data_root=data_root,
            data_prefix=data_prefix or {"img_path": "images", "seg_map_path": "masks"},
            metainfo=metainfo | (arguments.pop("metainfo", None) or {}),
            **arguments,
        )

    @staticmethod
    def _lines(path: Path) -> list[str]:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
        return [line.strip() for line in lines if line.strip()]

    def load_data_list(self) -> list[dict]:
        """Return the paths of all images and their masks.

        Raises:
            DataError: no image, an image without a mask, or a listed stem without an image.
        """
        images, masks = (Path(self.data_prefix[key]) for key in ("img_path", "seg_map_path"))
        if not images.is_dir():
            raise DataError(f"The folder of images {images} does not exist: check data_root.")
        found = {p.stem: p for p in sorted(images.iterdir()) if p.suffix.lower() in self.SUFFIXES}
        labels = {p.stem: p for p in sorted(masks.iterdir())} if masks.is_dir() else {}
        stems = self._lines(Path(self.ann_file)) if self.ann_file else list(found)
        # A list may name files as well as stems.
        stems = [stem if stem in found else Path(stem).stem for stem in stems]
        if not stems:
            raise DataError(f"There is no image in {images} ({', '.join(self.SUFFIXES)}).")
        items = []
        for stem in stems:
            if stem not in found:
                raise DataError(f"{self.ann_file} lists {stem!r}, but {images} has no such image.")
            if stem not in labels and not self.test_mode:
                raise DataError(f"{found[stem]} has no mask in {masks}: add {stem}.png there.")
            items.append(
                {
                    "img_path": str(found[stem]),
                    **({"seg_map_path": str(labels[stem])} if stem in labels else {}),
                    "label_map": None,
                    "reduce_zero_label": self.reduce_zero_label,
                    "seg_fields": [],
                }
            )
        return items

    def prepare_data(self, idx: int) -> Any:
        """Run the pipeline.

        Raises:
            DataError: a mask holds a class that `classes.txt` does not name.
        """
        results = super().prepare_data(idx)
        sample = results.get("data_samples") if isinstance(results, dict) else None
        if sample is not None and "gt_sem_seg" in sample:
            labels = sample.gt_sem_seg.data
            classes = len(self.metainfo["classes"])
            wrong = labels[(labels >= classes) & (labels != self.ignore_index)]
            if wrong.numel():
                raise DataError(
                    f"{self.get_data_info(idx)['seg_map_path']} has pixels of class "
                    f"{int(wrong.max())}, but there are {classes} classes (0 to {classes - 1}, "
                    f"ignored: {self.ignore_index}): correct the mask or the file of classes."
                )
        return results


def _palette(count: int) -> list[list[int]]:
    """Return distinct colours: hues a golden angle apart, class 0 black."""
    import colorsys

    hues = [colorsys.hsv_to_rgb(0.618034 * i % 1, 0.75, 0.95) for i in range(count - 1)]
    return [[0, 0, 0], *([round(255 * part) for part in hue] for hue in hues)][:count]


@TRANSFORMS.register_module()
class LoadThermalImage(BaseTransform):
    """Reads an 8- or 16-bit image without losing depth, and brings it to 0..255 as float32.

    Cameras store 14-bit counts in 16 bits, of which a scene fills a small part; read as an 8-bit
    photograph it would be black. Grey files stay grey.

    Args:
        value_range: (low, high) counts that become 0 and 255, values beyond are cut. None: of each
            16-bit image its own `percentiles`; 8-bit images keep their values.
        percentiles: For the automatic range.
        channels: 1, or 3 to repeat grey for networks that were trained on photographs.
    """

    def __init__(
        self,
        value_range: Sequence[float] | None = None,
        percentiles: Sequence[float] = (0.5, 99.5),
        channels: int = 3,
    ) -> None:
        """Keep the settings.

        Raises:
            ConfigError: an empty range, or other numbers of channels.
        """
        if value_range is not None and value_range[0] >= value_range[1]:
            raise ConfigError(f"value_range {tuple(value_range)} is empty: give (low, high).")
        if channels not in (1, 3):
            raise ConfigError(f"channels {channels}: a thermal image has 1, or 3 equal ones.")
        self.value_range = value_range
        self.percentiles = percentiles
        self.channels = channels

    def transform(self, results: dict) -> dict:
        """Add `img` (H, W, channels), `img_shape` and `ori_shape`.

        Raises:
            DataError: the file cannot be read, or has colours where one channel is wanted.
        """
        from crossband.shared.data.images import read_photo

        photo = read_photo(results["img_path"])
        pixels = photo.pixels.astype(np.float32)
        if photo.grey:
            pixels = pixels[..., : self.channels]
        elif self.channels == 1:
            raise DataError(f"{results['img_path']} has colours: give channels=3, or grey images.")
        else:
            pixels = pixels[..., ::-1]  # OpenMMLab's order is BGR
        span = self.value_range
        if span is None and photo.white > 255:
            span = np.percentile(pixels, self.percentiles)
        if span is not None:
            low, high = float(span[0]), float(span[1])
            pixels = ((pixels - low) * (255.0 / max(high - low, 1e-6))).clip(0, 255)
        results["img"] = np.ascontiguousarray(pixels, dtype=np.float32)
        results["img_shape"] = results["ori_shape"] = pixels.shape[:2]
        return results


# ---------------------------------------------------------------------------------------------
# Hooks


@HOOKS.register_module()
class RunFolderHook(Hook):
    """Writes crossband's run folder: config.yaml, metrics.csv, metrics.json, best weights, report.

    One row per validation, as in every run of crossband; a resumed run goes on with the rows up
    to where it resumes. `best.safetensors` can be given to `load_from` and `init_cfg`; to resume,
    OpenMMLab's own checkpoint is needed.

    Args:
        out: Folder; default: the run's work_dir.
        select: Validation metric by which the best weights are chosen; default: the first.
        larger_is_better: Its direction.
    """

    priority = "LOW"

    def __init__(
        self, out: str | None = None, select: str | None = None, larger_is_better: bool = True
    ) -> None:
        """Keep the settings."""
        self.out = out
        self.select = select
        self.sign = 1.0 if larger_is_better else -1.0
        self.rows: list[dict[str, float]] = []
        self._losses: list[Tensor] = []
        self._seconds = 0.0
        self._tick = 0.0

    def before_train(self, runner: Runner) -> None:
        """Write the options; take over the rows of the run that is resumed."""
        self._folder = RunFolder(self.out or runner.work_dir)
        self.rows = [row for row in _read_rows(self._folder.history) if row["step"] <= runner.iter]
        if not runner.iter:
            self.rows = []
        self._seconds = 60 * self.rows[-1]["minutes"] if self.rows else 0.0
        self._tick = time.monotonic()
        if get_rank() == 0:
            self._folder.save_config_text(_yaml(runner))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Remember the loss."""
        if outputs and "loss" in outputs:
            self._losses.append(outputs["loss"].detach())

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Add a row; keep the best weights."""
        if not hasattr(self, "_folder") or not metrics:  # validation outside of training
            return
        scores = {name: float(value) for name, value in metrics.items() if _number(value)}
        now = time.monotonic()
        self._seconds, self._tick = self._seconds + now - self._tick, now
        row = {
            "epoch": runner.epoch + 1,
            "step": runner.iter,
            "minutes": round(self._seconds / 60, 3),
            "lr": float(next(iter(runner.optim_wrapper.get_lr().values()))[0]),
            "train_loss": float(torch.stack(self._losses).mean()) if self._losses else math.nan,
            **{f"val_{name}": value for name, value in scores.items()},
        }
        self._check_selection(scores)
        first = not self.rows
        improved = first or self._worth(row) > max(map(self._worth, self.rows))
        self.rows.append(row)
        self._losses = []
        if get_rank() == 0:
            names = dict.fromkeys(name for row in self.rows for name in row)
            self._folder.write_history([{n: row.get(n) for n in names} for row in self.rows])
            if improved:
                self._save_best(runner, row)

    def after_train(self, runner: Runner) -> None:
        """Write the results and the report."""
        if get_rank() != 0:
            return
        outcome: dict[str, Any] = {"protocol": self._protocol(runner), "history": self.rows}
        if self.rows:
            best = max(self.rows, key=self._worth)
            outcome["best"] = {"metric": self._key(best), **best}
        self._folder.write_results(outcome)
        self._report(outcome)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the scores of a test run."""
        if get_rank() != 0 or not metrics:
            return
        folder = RunFolder(self.out or runner.work_dir)
        scores = {name: float(value) for name, value in metrics.items() if _number(value)}
        protocol = self._protocol(runner) | {"weights": str(runner.cfg.get("load_from"))}
        folder.write_results({"protocol": protocol, "test": scores})

    def _key(self, row: dict[str, float]) -> str:
        first = next(name for name in row if name.startswith("val_"))
        return f"val_{self.select}" if self.select else first

    def _worth(self, row: dict[str, float]) -> float:
        value = row.get(self._key(row), math.nan)
        return -math.inf if math.isnan(value) else self.sign * value

    def _check_selection(self, scores: dict[str, float]) -> None:
        if self.select and self.select not in scores:
            hint = did_you_mean(self.select, scores) or f" There are: {', '.join(scores)}."
            raise ConfigError(f"RunFolderHook: select {self.select!r} is no metric here.{hint}")

    def _save_best(self, runner: Runner, row: dict[str, float]) -> None:
        model = getattr(runner.model, "module", runner.model)
        meta = getattr(runner.train_dataloader.dataset, "metainfo", {})
        description = {
            "model": {"name": f"openmmlab:{type(model).__name__}"},
            "classes": list(meta.get("classes", ())),
            "training": row,
            "engine_config": runner.cfg.pretty_text,
        }
        self._folder.save_best(model, description)

    def _protocol(self, runner: Runner) -> dict[str, Any]:
        return {
            "engine": "mmengine",
            "experiment": runner.experiment_name,
            "seed": runner.seed,
            "machine": machine(),
            "versions": versions(),
        }

    def _report(self, outcome: dict[str, Any]) -> None:
        from crossband.shared.reports.html import Report

        protocol = outcome["protocol"]
        report = Report(
            f"Training: {protocol['experiment']}",
            f"mmengine, seed {protocol['seed']}, {protocol['machine']}",
        )
        if self.rows:
            report.heading("Curves")
            report.figure(_curves(self.rows), f"best by {outcome['best']['metric']}")
            report.heading("Validations")
            report.table(self.rows)
        report.write(self._folder.report)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number))


def _read_rows(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return [row | {"epoch": int(row["epoch"]), "step": int(row["step"])} for row in rows]


def _yaml(runner: Runner) -> str:
    import yaml

    return yaml.safe_dump(_plain(runner.cfg.to_dict()), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, type):  # configs in pure Python hold classes
        return f"{value.__module__}.{value.__qualname__}"
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _curves(rows: list[dict[str, float]]) -> Any:
    from matplotlib.figure import Figure

    names = ["train_loss", *(name for name in rows[0] if name.startswith("val_"))]
    figure = Figure(figsize=(9, 2.4 * -(-len(names) // 3)))
    for index, name in enumerate(names):
        axes = figure.add_subplot(-(-len(names) // 3), 3, index + 1)
        axes.plot([row["step"] for row in rows], [row.get(name) for row in rows], marker=".")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
    figure.tight_layout()
    return figure


@HOOKS.register_module()
class ReseedHook(Hook):
    """Makes a resumed run equal to an unbroken one, and independent of the loader's processes.

    Every item of the training data is loaded with generators seeded by (seed, epoch, position in
    the epoch, rank), every step runs with generators seeded by (seed, step, rank): what a step
    draws no longer depends on what happened before it.

    The run needs a seed (`randomness=dict(seed=...)`) and a checkpoint at the end of a step
    (iteration-based loops) or epoch (epoch-based loops); then on a CPU the weights are bitwise
    the same. Not covered: optimisers and hooks with a state that mmengine does not store, and
    accelerator kernels that add in any order.
    """

    priority = "VERY_LOW"  # after the hooks that count epochs

    def before_train(self, runner: Runner) -> None:
        """Put the seeding loader in the place of the run's own."""
        loop = runner.train_loop
        old = loop.dataloader
        batches = _NumberedBatches(old.batch_sampler, runner, get_rank())
        if isinstance(loop, IterBasedTrainLoop) and hasattr(loop, "fast_forward_on_resume"):
            # Passed-over batches are skipped here, where they are numbered.
            batches.skip, loop.fast_forward_on_resume = runner.iter, True
        parallel = {}
        if old.num_workers:
            parallel = {
                "prefetch_factor": old.prefetch_factor,
                "persistent_workers": old.persistent_workers,
                "multiprocessing_context": old.multiprocessing_context,
            }
        loop.dataloader = DataLoader(
            _SeededItems(old.dataset),
            batch_sampler=batches,
            num_workers=old.num_workers,
            collate_fn=old.collate_fn,
            pin_memory=old.pin_memory,
            timeout=old.timeout,
            worker_init_fn=old.worker_init_fn,
            **parallel,
        )
        if isinstance(loop, IterBasedTrainLoop):
            loop.dataloader_iterator = type(loop.dataloader_iterator)(loop.dataloader)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed what the step draws: dropout, drop path, sampling of boxes."""
        _seed_all(runner.seed, 1, runner.iter, get_rank())


class _Place(int):
    """An index that knows which draw of the run it is; to data sets a plain number."""

    key: tuple[int, ...]

    def __new__(cls, index: int, key: tuple[int, ...]) -> _Place:
        self = super().__new__(cls, index)
        self.key = key
        return self

    def __getnewargs__(self) -> tuple[int, tuple[int, ...]]:
        return int(self), self.key


class _NumberedBatches:
    """A batch sampler whose indices carry their place in the run."""

    def __init__(self, batches: Any, runner: Runner, rank: int) -> None:
        self.batches = batches
        self.sampler = batches.sampler  # where mmengine looks for set_epoch
        self.batch_size = batches.batch_size  # mmengine asks for it too
        self.runner = runner
        self.rank = rank
        self.skip = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[_Place]]:
        epoch, seed = self.runner.epoch, self.runner.seed
        start, self.skip = self.skip, 0
        for number, batch in enumerate(self.batches):
            if number >= start:
                yield [
                    _Place(index, (seed, 0, epoch, number, place, self.rank))
                    for place, index in enumerate(batch)
                ]


class _SeededItems(Dataset):
    """A data set whose items are drawn with generators seeded by their place.

    Everything else is the data set's own; hooks that change its pipeline reach it too.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "dataset":
            object.__setattr__(self, name, value)
        else:
            setattr(self.dataset, name, value)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: _Place) -> Any:
        _seed_all(*place.key)
        return self.dataset[int(place)]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet while unpickling
            raise AttributeError(name)
        return getattr(self.dataset, name)


def _seed_all(*key: int) -> None:
    """Seed Python's, NumPy's and torch's generators by numbers."""
    words = np.random.SeedSequence([int(part) % 2**32 for part in key]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]))
