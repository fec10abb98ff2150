"""Brightening photographs of any size: `crossband low-light predict`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from crossband.apps.low_light.baselines import create_rival
from crossband.apps.low_light.config import MethodConfig, PredictConfig, SizeConfig
from crossband.apps.low_light.data.dimming import from_linear, to_linear
from crossband.apps.low_light.model import TML, fuse_for_inference
from crossband.apps.low_light.sheets import write_comparison
from crossband.apps.low_light.tiling import Network, run_strips, run_tiled, run_whole
from crossband.shared.checkpoints import load_checkpoint, load_state
from crossband.shared.data.images import SUFFIXES, find_photos, read_photo, write_photo
from crossband.shared.devices import AUTOCAST, select_device
from crossband.shared.errors import CheckpointError, ConfigError, DataError
from crossband.shared.export import is_exported, load_exported
from crossband.shared.prediction import INDEX, predict_each

WHOLE_PIXELS = 1_500_000  # larger images are tiled, to bound the memory
TILE = 640  # side of tiles for networks of any size
MARGIN = 16  # pixels that are mirrored around a photograph before the network sees it
TONE_CELL = 4  # pixels of the network's size: what is coarser than this is tone
LARGEST_LIFT = 64.0  # of very dark photographs, in linear light
OVERLAP = 80  # at most; an eighth of a tile
STRIP_PIXELS = 1_000_000
COMPARE = "compare"


@dataclass
class Enhancer:
    """A method with all it needs to brighten photographs of any size.

    Attributes:
        name: To show.
        run: Maps RGB (B, 3, H, W) in [0, 1] to the brightened image.
        native: Height and width the network was made for; None: it has no size of its own.
        multiple: Sides that a network of any size takes; 0: only the native size.
        reach: For networks without a size, see `Rival`.
        config: The checkpoint's configuration.
    """

    name: str
    run: Callable[[Tensor], Tensor]
    native: tuple[int, int] | None
    multiple: int
    reach: int | None
    config: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", precision: str = "32") -> Enhancer:
        """Load a checkpoint of `train` or `pack`, or what `export` made of it.

        Raises:
            CheckpointError: missing, foreign or damaged.
        """
        path = Path(path)
        if is_exported(path):
            run, config = load_exported(path)
            return cls(_label(path), run, tuple(config["size"]), 0, None, config)
        model, config = load_tml(path)
        place = select_device(device)
        fuse_for_inference(model.eval())
        layout = torch.channels_last
        model.to(place, memory_format=layout)

        def run(image: Tensor) -> Tensor:
            dtype = AUTOCAST.get(precision)
            with (
                torch.inference_mode(),
                torch.autocast(place.type, dtype, enabled=dtype is not None),
            ):
                return model(image.to(place).contiguous(memory_format=layout)).float().cpu()

        multiple = model.multiple if model.any_size else 0
        return cls(_label(path), run, (model.height, model.width), multiple, None, config)

    @classmethod
    def of(cls, config: MethodConfig) -> Enhancer:
        """Load what the options of a command name.

        Raises:
            ConfigError: no weights for a method that needs them.
            CheckpointError: weights that do not fit.
        """
        if config.model != "tml":
            rival = create_rival(config.model, config.weights)
            return cls(rival.name, rival.run, None, 1, rival.reach, {})
        if config.weights is None:
            raise ConfigError(
                "--weights is missing: give a checkpoint of `crossband low-light train` or `pack`."
            )
        return cls.load(config.weights, device=config.device, precision=config.precision)

    def predict(self, image: str | Path | np.ndarray, size: SizeConfig | None = None) -> np.ndarray:
        """Brighten one photograph.

        Args:
            image: A file, or RGB uint8 or uint16 (H, W, 3).
            size: How to treat sizes; default: `SizeConfig()`.

        Returns:
            RGB of the same type and size (the network's size for `fit="native"`).

        Raises:
            DataError: a file that cannot be read.
        """
        size = size or SizeConfig()
        if not isinstance(image, np.ndarray):
            image = read_photo(image, size.max_megapixels).pixels
        white = np.iinfo(image.dtype).max
        bright = self.enhance(image, size)
        if not torch.isfinite(bright).all():
            raise CheckpointError(
                f"{self.name} gives values that are not finite: its weights are damaged, or "
                "training had diverged."
            )
        return (bright * white + 0.5).clamp(0, white).permute(1, 2, 0).numpy().astype(image.dtype)

    def enhance(self, pixels: np.ndarray, size: SizeConfig) -> Tensor:
        """Brighten RGB uint8 or uint16 (H, W, 3).

        Returns:
            float32 (3, H, W), 1 is white; not clamped.

        Raises:
            ConfigError: a way to treat sizes that this network does not have.
        """
        fit = self._fit(size, pixels.shape[0] * pixels.shape[1])
        if self.native not in (None, pixels.shape[:2]) and fit in ("whole", "tile"):
            # The outermost pixels of a result are not right; they are cut off again.
            wide = np.pad(pixels, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), mode="symmetric")
            return self._enhance(wide, fit, size)[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
        return self._enhance(pixels, fit, size)

    def _enhance(self, pixels: np.ndarray, fit: str, size: SizeConfig) -> Tensor:
        height, width = pixels.shape[:2]
        white = float(np.iinfo(pixels.dtype).max)
        wide = pixels if pixels.dtype == np.uint8 else pixels.astype(np.int32)
        image = torch.from_numpy(np.ascontiguousarray(wide)).permute(2, 0, 1)
        if self.native is None:
            if self.reach is None or height * width <= STRIP_PIXELS:
                return self.run(image[None].float() / white)[0]
            return run_strips(image, self.run, self.reach, max(1, STRIP_PIXELS // width), white)
        if fit == "native":
            return self.run(self._to_native(pixels))[0]
        run = self._lifted(pixels) if size.lift else self.run
        if fit == "resize" or (height, width) == self.native:
            bright = run(self._to_native(pixels))
            bright = F.interpolate(
                bright, (height, width), mode="bicubic", antialias=True, align_corners=False
            )
            return bright[0]
        tone = None
        if size.global_tone:
            cells = [max(1, side // TONE_CELL) for side in self.native]
            tone = F.adaptive_avg_pool2d(run(self._to_native(pixels)), cells)
        if fit == "whole":
            return run_whole(image[None].float() / white, run, self.multiple, tone)[0]
        tile = self._tile(size)
        overlap = min(OVERLAP, min(tile) // 8) if size.overlap is None else size.overlap
        return run_tiled(image, run, tile, overlap, white=white, tone=tone)

    def _lifted(self, pixels: np.ndarray) -> Network:
        """Return the network, and before it a gain for photographs darker than it ever saw.

        The gain is one number for the photograph, in linear light, which brings its mean to that
        of the darkest tenth of what the network was trained on.
        """
        darkest = self.config.get("darkest_light")
        if not darkest:
            return self.run
        assert self.native is not None
        small = cv2.resize(pixels, self.native[::-1], interpolation=cv2.INTER_AREA)
        light = float(to_linear(_unit(small)).mean())
        gain = min(LARGEST_LIFT, darkest / max(light, 1e-9))
        if gain <= 1:
            return self.run
        return lambda image: self.run(from_linear((to_linear(image) * gain).clamp(max=1)))

    def _fit(self, size: SizeConfig, pixels: int) -> str:
        if size.fit == "whole" and self.native is not None and not self.multiple:
            raise ConfigError(
                f"--size.fit whole: this network takes {self.native[0]} x {self.native[1]} only; "
                "use tile or resize, or train with --resize_patch_grid."
            )
        if size.fit != "auto":
            return size.fit
        return "whole" if self.multiple and pixels <= WHOLE_PIXELS else "tile"

    def _tile(self, size: SizeConfig) -> tuple[int, int]:
        assert self.native is not None
        if not self.multiple:
            if size.tile and tuple(size.tile) != self.native:
                raise ConfigError(
                    f"--size.tile: this network takes {self.native[0]} x {self.native[1]} only."
                )
            return self.native
        tile = (size.tile[0], size.tile[-1]) if size.tile else (TILE, TILE)
        if any(side % self.multiple or side < 1 for side in tile):
            raise ConfigError(
                f"--size.tile {tile[0]} {tile[1]}: both must be multiples of {self.multiple}."
            )
        return tile

    def _to_native(self, pixels: np.ndarray) -> Tensor:
        """Resize as the authors' script does: bilinear with antialiasing, aspect ignored."""
        assert self.native is not None
        image = _unit(pixels)
        resized = F.interpolate(
            image, self.native, mode="bilinear", antialias=True, align_corners=False
        )
        white = np.iinfo(pixels.dtype).max
        return (resized * white).round() / white  # as a file of the same depth would hold it


def load_tml(path: str | Path) -> tuple[TML, dict[str, Any]]:
    """Load the networks of a checkpoint; a single network becomes a pair without the second.

    Raises:
        CheckpointError: not a checkpoint of this domain.
    """
    checkpoint = load_checkpoint(path)
    model = checkpoint.config.get("model", {})
    arguments, name = model.get("arguments", {}), model.get("name")
    if name == "tml":
        pair = TML(**arguments)
        load_state(pair, checkpoint.state_dict, path)
    elif name == "ugdc":
        pair = TML(enhancer_stem=0, **arguments)
        load_state(pair.pm, checkpoint.state_dict, path)
    else:
        raise CheckpointError(
            f"{path} holds the model {name!r}, not one that brightens photographs: give a "
            "checkpoint of `crossband low-light train` or `pack`."
        )
    does = {"troublemaker": "darkens", "enhancer": "only finds what to subtract"}
    if (stage := checkpoint.config.get("stage")) in does:
        raise CheckpointError(
            f"{path} is the {stage} alone, which {does[stage]}: give best.safetensors of the whole "
            "run of `crossband low-light train`."
        )
    return pair.eval(), checkpoint.config


def predict(config: PredictConfig) -> int | None:
    """Run `crossband low-light predict`."""
    if not config.inputs:
        raise ConfigError("predict needs inputs: photographs, or folders of them.")
    out = Path(config.out)
    jobs, others = find_photos(config.inputs)
    clashes = _check_targets(jobs, out, compare=config.compare)
    enhancer = Enhancer.of(config)

    def run(job: tuple[Path, Path]) -> dict[str, Any]:
        source, relative = job
        if source in clashes:
            raise DataError(clashes[source])
        photo = read_photo(source, config.size.max_megapixels)
        bright = photo.with_pixels(enhancer.predict(photo.pixels, config.size))
        target = _target(out / relative)
        write_photo(bright, target)
        entry = {
            "input": str(source),
            "output": str(target),
            "size": list(bright.pixels.shape[:2]),
            "method": enhancer.name,
            "mean_before": round(float(photo.pixels.mean()) / photo.white, 4),
            "mean_after": round(float(bright.pixels.mean()) / photo.white, 4),
        }
        if config.compare:
            sheet = _sheet(out, relative)
            write_comparison(photo.pixels, bright.pixels, sheet)
            entry["compare"] = str(sheet)
        return entry

    if others and not config.quiet and not config.json:
        print(f"passed over {len(others)} file(s) that are not images (first: {others[0]})")
    return predict_each(
        jobs,
        run,
        name=lambda job: str(job[0]),
        describe=_sentence,
        options=config,
        folder=out,
    )


def _label(path: Path) -> str:
    """Return a name to show: the run's for its best checkpoint, else the file's."""
    return path.resolve().parent.name if path.stem == "best" else path.stem


def _target(path: Path) -> Path:
    return path if path.suffix.lower() in SUFFIXES else path.with_suffix(".png")


def _sheet(out: Path, relative: Path) -> Path:
    """Return the place of a before/after sheet; the whole name, since a.jpg and a.png differ."""
    return out / COMPARE / relative.with_name(f"{relative.name}.jpg")


def _check_targets(jobs: list[tuple[Path, Path]], out: Path, *, compare: bool) -> dict[Path, str]:
    """Refuse to replace a file that an earlier run did not write; find results of one name.

    Returns:
        Photographs to leave out, with the reason: their result has the name of another's.

    Raises:
        ConfigError: a result or a sheet would replace an original, or anything else.
    """
    sources = {source.resolve() for source, _ in jobs}
    own = _earlier_results(out)
    taken: dict[Path, Path] = {}
    clashes: dict[Path, str] = {}
    for source, relative in jobs:
        target = _target(out / relative).resolve()
        for place in (target, _sheet(out, relative).resolve()) if compare else (target,):
            if place in sources or (place.exists() and place not in own):
                raise ConfigError(
                    f"--out {out} would write over {place}, which is no result of an earlier run: "
                    "name another folder."
                )
        if target in taken:
            clashes[source] = (
                f"{source} and {taken[target]} would both become {target}: rename one, or give "
                "their common folder, so that the results keep their folders."
            )
        taken.setdefault(target, source)
    return clashes


def _earlier_results(out: Path) -> set[Path]:
    """Return what an earlier run into this folder wrote, by its list."""
    try:
        lines = (out / INDEX).read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return set()
    return {Path(e[key]).resolve() for e in entries for key in ("output", "compare") if key in e}


def _unit(pixels: np.ndarray) -> Tensor:
    """Return RGB (H, W, 3) as float32 (1, 3, H, W) in [0, 1]."""
    white = np.float32(np.iinfo(pixels.dtype).max)
    return torch.from_numpy(pixels.astype(np.float32) / white).permute(2, 0, 1)[None]


def _sentence(entry: dict[str, Any]) -> str:
    height, width = entry["size"]
    return (
        f"{entry['output']}: {width} x {height}, mean brightness "
        f"{100 * entry['mean_before']:.0f} % to {100 * entry['mean_after']:.0f} %"
    )
