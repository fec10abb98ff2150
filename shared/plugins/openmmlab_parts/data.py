"""Data sets, readers and samplers for configs of OpenMMLab."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

from crossband.shared.errors import ConfigError, DataError
from crossband.shared.plugins.openmmlab import DATA_SAMPLERS, DATASETS, TRANSFORMS
from crossband.shared.training.sampler import EpochBatchSampler


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


@DATA_SAMPLERS.register_module()
class EpochSampler(Sampler[int]):
    """The order of `crossband ... train`: keyed by (seed, epoch), strided over the ranks.

    With the same seed and batch size both roads see the same batches. The indices know their
    epoch, by which data sets of ours draw their crops.

    Args:
        dataset: What to order.
        seed: mmengine gives the run's.
        shuffle: Whether the order is random.
    """

    def __init__(self, dataset: Sized, seed: int | None = None, shuffle: bool = True) -> None:
        """Keep the numbers.

        Raises:
            ConfigError: no seed.
        """
        if seed is None:
            raise ConfigError(
                "EpochSampler has no seed: set randomness=dict(seed=0), without diff_rank_seed."
            )
        rank, world_size = get_dist_info()
        self.order = EpochBatchSampler(
            len(dataset), 1, seed=seed, shuffle=shuffle, rank=rank, world_size=world_size
        )
        self._first = 0

    def __len__(self) -> int:
        """Return the items of an epoch on one rank."""
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        """Yield indices that know their epoch."""
        for batch in self.order:
            yield from batch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass, counted from the one of `start_at`."""
        self.order.set_epoch(self._first + epoch)

    def start_at(self, epoch: int, skip: int) -> None:
        """Begin with item `skip` of an epoch: an iteration-based run that is resumed."""
        self._first, self.order.skip = epoch, skip
        self.set_epoch(0)
