"""UNIP in configs of OpenMMLab: the road of mmseg's own scripts to the result of `train`.

    custom_imports = dict(imports=[
        "crossband.shared.plugins.openmmlab", "crossband.infrared.openmmlab"])

| `type=` | what |
|---|---|
| `crossband.UNIPBackbone` | the ViT of fine-tuning; `crossband.LLFPN` is its neck |
| `crossband.InfraredSegDataset` | data, crops and splits of `crossband infrared train` |
| `crossband.LoadFrame` | reads a file as `predict` does, for pipelines |
| `crossband.CommonRootVisualizer` | mmseg's visualizer; `data_root` of a config for all data sets |
| `crossband.InfraredRunFolderHook` | a run folder whose best weights `predict` takes |

With this module imported, `load_from`, `init_cfg` and mmseg's `test.py` take checkpoints of
`crossband infrared train`. The recipes are in `infrared/unip/recipes/*.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import crossband.shared.plugins.openmmlab as plugin  # before mmseg

# isort: split
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import MessageHub
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer
from torch import Tensor

from crossband.infrared import networks
from crossband.infrared.catalog import SIZES
from crossband.infrared.config import DataConfig, ScaleConfig, TrainConfig, WindowConfig
from crossband.infrared.data.classes import palette
from crossband.infrared.data.crops import Normalisation, TrainCrops, WholeImages
from crossband.infrared.data.frames import Channel, Stretch, read_frame
from crossband.infrared.data.layouts import Item, find
from crossband.infrared.training import checkpoint_facts, data_sets, gather, labelled
from crossband.infrared.unip.official import from_official, to_mmseg
from crossband.shared.backbones.base import load_backbone
from crossband.shared.backbones.vit_keys import translate
from crossband.shared.checkpoints import save_checkpoint
from crossband.shared.errors import ConfigError, did_you_mean
from crossband.shared.heads.vit_segmentor import SegmentationViT
from crossband.shared.plugins.openmmlab_parts.backbones import managed_class
from crossband.shared.plugins.openmmlab_parts.hooks import RunFolderHook
from crossband.shared.training.sampler import EpochIndex

plugin.TRANSLATORS[networks.TASK] = to_mmseg

# ---------------------------------------------------------------------------------------------
# Backbone

# What pre-training files lack, or what nothing uses; it keeps its values.
_OPTIONAL = re.compile(r"^(blocks\.\d+\.ls[12]|norm)\.")


@plugin.MODELS.register_module()
class UNIPBackbone(
    managed_class(  # type: ignore[misc]
        SegmentationViT, SIZES, "crossband.shared.backbones.vit_keys:from_official"
    )
):
    """The ViT of fine-tuning. `variant` is tiny, small, base or large; `frozen_stages=12` probes.

    `init_cfg` takes files of UNIP, MAE, DINO and iBOT, ours, and those of whole segmentation
    networks, by the rules of `--weights`.
    """

    def _load(self, state: dict[str, Tensor], source: str) -> None:
        state, left, _ = translate(state)
        kept = {k: v for k, v in self.state_dict().items() if _OPTIONAL.match(k)}
        load_backbone(self, kept | state, source, left=left)


# ---------------------------------------------------------------------------------------------
# Data

_KEY = "crossband.infrared"


@plugin.VISUALIZERS.register_module()
class CommonRootVisualizer(SegLocalVisualizer):
    """mmseg's visualizer, which also tells data sets the config's `data_root` and seed.

    So `--cfg-options data_root=FOLDER` reaches them all: a visualizer is the only part that
    mmengine hands the whole config before it builds data sets.
    """

    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Pass the settings on, on every rank."""
        seed = (config.get("randomness") or {}).get("seed")
        common = {"data_root": config.get("data_root"), "seed": seed}
        MessageHub.get_current_instance().update_info(_KEY, common, resumed=False)
        super().add_config(config, **kwargs)


class _AsRead(Normalisation):
    """Leaves normalising to mmseg's pre-processor; the mean still fills up crops."""

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """Map uint8 (H, W) or (H, W, 3) to uint8 (3, H, W), OpenMMLab's BGR."""
        image = torch.from_numpy(np.ascontiguousarray(pixels))
        image = image[None].expand(3, -1, -1) if image.dim() == 2 else image.permute(2, 0, 1)
        return image.flip(0)


@plugin.DATASETS.register_module()
class InfraredSegDataset(BaseDataset):
    """The data of `crossband infrared train`: its layouts, its splits, its crops.

    With `crossband.EpochSampler` crops are keyed by (seed, epoch, index) as there; with another
    sampler their draws come from NumPy's generator, as those of mmseg's transforms do.

    Args:
        data_root: Folder; None: `data_root` of the config, by `CommonRootVisualizer`.
        split: `train` for crops to train on; `val` for what is validated on; or another split.
        seed: Of the crops, and of the part that is held back where there is no split val; None:
            that of `randomness`.
        test_mode: Whole images, at the network's size, with masks at their own.
        options: Of `--data.*`: layout, channel, scale, crop, ratio, cat_max_ratio, ...

    Attributes:
        config: The options, as `train` has them.
        material: What was found.
    """

    def __init__(
        self,
        data_root: str | None = None,
        split: str = "train",
        *,
        seed: int | None = None,
        test_mode: bool = False,
        **options: Any,
    ) -> None:
        """Find the images.

        Raises:
            ConfigError: no folder, or an unknown option.
            DataError: the folder holds no such data.
        """
        common = MessageHub.get_current_instance().get_info(_KEY, {})
        data_root = data_root or common.get("data_root")
        if not data_root:
            raise ConfigError(
                "InfraredSegDataset has no data_root: give it one, or give the config a data_root "
                'and visualizer=dict(type="crossband.CommonRootVisualizer").'
            )
        self.split = split
        data = _data_config(str(data_root), options)
        seed = common.get("seed") if seed is None else seed
        self.config = TrainConfig(data=data, seed=seed or 0)
        found = gather(data, self.config.seed)
        as_read = _AsRead(found.normalisation.mean, found.normalisation.std)
        self.material = replace(found, normalisation=as_read)
        self.samples = self._choose(test_mode)
        classes = list(self.material.classes)
        colours = [list(colour) for colour in palette(self.material.classes)]
        super().__init__(
            data_root=str(data_root),
            metainfo={"classes": classes, "palette": colours},
            test_mode=test_mode,
        )

    def _choose(self, test_mode: bool) -> TrainCrops | WholeImages:
        train, val = data_sets(self.config, self.material)
        whole = (self.material.frames, self.material.normalisation, self.material.scale)
        if self.split == "train":
            return WholeImages(self.material.train, *whole) if test_mode else train
        if not test_mode:
            raise ConfigError(
                f"InfraredSegDataset: the split {self.split!r} is not trained on; set "
                "test_mode=True."
            )
        if self.split == "val":
            return val
        data = self.config.data
        return WholeImages(labelled(find(data.root[0], data.layout), self.split), *whole)

    def load_data_list(self) -> list[dict]:
        """Return the files of every sample."""
        return [
            {"img_path": str(item.image), "seg_map_path": str(item.mask)}
            for item in map(self._item, range(len(self.samples)))
        ]

    def _item(self, index: int) -> Item:
        return self.samples.items[index % len(self.samples.items)]

    def prepare_data(self, idx: int) -> dict[str, Any]:
        """Return `inputs`, uint8 (3, H, W), and `data_samples` with the mask.

        Raises:
            DataError: a file cannot be read, or a mask does not fit.
        """
        if isinstance(self.samples, TrainCrops) and not isinstance(idx, EpochIndex):
            idx = EpochIndex(idx, np.random.randint(2**31))
        sample = self.samples[idx]
        image, mask = sample["image"], sample["mask"]
        packed = SegDataSample(gt_sem_seg=PixelData(data=mask[None]))
        packed.set_metainfo(
            {
                **self.get_data_info(int(idx)),
                "ori_shape": tuple(mask.shape),
                "img_shape": tuple(image.shape[1:]),
                "reduce_zero_label": False,
            }
        )
        return {"inputs": image.contiguous(), "data_samples": packed}


def _data_config(root: str, options: Mapping[str, Any]) -> DataConfig:
    known = {field.name for field in fields(DataConfig)} - {"root"}
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known) or f" There are: {', '.join(sorted(known))}."
            raise ConfigError(f"InfraredSegDataset does not take {name!r}.{hint}")
    scale = options.get("scale", {})
    try:
        return DataConfig(**{**options, "root": [root], "scale": ScaleConfig(**scale)})
    except TypeError as error:
        raise ConfigError(f"InfraredSegDataset: scale {dict(scale)}: {error}.") from error


@plugin.TRANSFORMS.register_module()
class LoadFrame(BaseTransform):
    """Reads a file as `crossband infrared predict` does: the thermal channel, deep files stretched.

    Args:
        channel: `thermal`, `grey` or `rgb`.
        value_range: Counts that become black and white; empty: each deep image's own range.
        stretch: Stretch 8-bit images to their own range too.
    """

    def __init__(
        self,
        channel: Channel = "thermal",
        value_range: Sequence[float] = (),
        stretch: bool = False,
    ) -> None:
        """Keep the settings."""
        self.channel = channel
        self.stretch = Stretch.of(value_range, always=stretch)

    def transform(self, results: dict) -> dict:
        """Add `img`, uint8 (H, W, 3) BGR, `img_shape` and `ori_shape`.

        Raises:
            DataError: the file cannot be read, or has colours.
        """
        pixels = read_frame(results["img_path"], self.channel, self.stretch)
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        results["img"] = np.ascontiguousarray(pixels[..., ::-1])
        results["img_shape"] = results["ori_shape"] = pixels.shape[:2]
        return results


# ---------------------------------------------------------------------------------------------
# The run folder

# Arguments that a backbone has beside those of the segmentation network.
_MANAGED = ("type", "variant", "init_cfg", "frozen_stages", "norm_eval")


@plugin.HOOKS.register_module()
class InfraredRunFolderHook(RunFolderHook):
    """Writes the run folder; `evaluate`, `predict` and `export` take its `best.safetensors`.

    For UNIP's network on an `InfraredSegDataset`. Options are those of `RunFolderHook`.
    """

    def before_train(self, runner: Runner) -> None:
        """Write the options; see whether the model can be described.

        Raises:
            ConfigError: another network or data set.
        """
        super().before_train(runner)
        data = runner.train_dataloader.dataset
        if not isinstance(data, InfraredSegDataset):
            raise ConfigError(
                f"InfraredRunFolderHook: the data set is {type(data).__name__}; take "
                "crossband.RunFolderHook, or crossband.InfraredSegDataset."
            )
        self._description = describe(runner.cfg.model)
        state = from_official(_network(runner).state_dict())
        with torch.device("meta"):
            own = networks.build(self._description).state_dict()
        shapes = {key: value.shape for key, value in state.items()}
        if shapes != {key: value.shape for key, value in own.items()}:
            raise ConfigError(
                "InfraredRunFolderHook: the model is not UNIP's network (ViT, LLFPN, UPerHead and "
                "FCNHead), so predict could not build it: take crossband.RunFolderHook."
            )

    def _save_best(self, runner: Runner, row: dict[str, float]) -> None:
        network, data = _network(runner), runner.train_dataloader.dataset
        test = runner.cfg.model.test_cfg
        window = WindowConfig()
        if test.get("mode") == "slide":
            window = WindowConfig(size=test.crop_size[0], stride=test.stride[0])
        values = network.data_preprocessor
        normalisation = Normalisation(
            *(tuple(v.flatten().tolist()) for v in (values.mean, values.std))
        )
        facts = checkpoint_facts(
            replace(data.config, window=window),
            replace(data.material, normalisation=normalisation),
            self._description,
        )
        more = {"training": row, "engine_config": runner.cfg.pretty_text}
        save_checkpoint(self._folder.best, from_official(network.state_dict()), facts | more)


def _network(runner: Runner) -> Any:
    return getattr(runner.model, "module", runner.model)


def describe(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return name and arguments of the network of a config's `model`, as checkpoints have them."""
    backbone, head, auxiliary = (
        dict(model.get(part) or {}) for part in ("backbone", "decode_head", "auxiliary_head")
    )
    arguments = {name: value for name, value in backbone.items() if name not in _MANAGED}
    arguments |= {
        "num_classes": head.get("num_classes"),
        "channels": head.get("channels"),
        "auxiliary": bool(auxiliary),
    }
    if auxiliary:
        arguments["auxiliary_channels"] = auxiliary["channels"]
    plain = json.loads(json.dumps(arguments))  # tuples and config nodes become lists and dicts
    return {"name": f"unip_{backbone.get('variant') or 'small'}_upernet", "arguments": plain}
