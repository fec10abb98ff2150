"""Segmenting images with a trained network: `Segmenter`, and `crossband infrared predict`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crossband.infrared.config import PredictConfig, WindowConfig
from crossband.infrared.data.crops import Normalisation, Scale, rescale
from crossband.infrared.data.frames import Channel, Frame, Stretch, is_frame_file, read_frames
from crossband.infrared.networks import TASK, load_trained
from crossband.shared.devices import AUTOCAST, select_device
from crossband.shared.errors import CheckpointError, ConfigError, DataError
from crossband.shared.export import is_exported, load_exported
from crossband.shared.files import atomic_path
from crossband.shared.layers.resize import resize
from crossband.shared.prediction import predict_each
from crossband.shared.reports.figures import overlay
from crossband.shared.sliding import slide


class Segmenter:
    """A trained network with all it needs to segment images of any size.

    Args:
        network: Maps (B, 3, S, S) to logits (B, K, S, S).
        config: Of its checkpoint: classes, palette, reading, normalisation, scale, window.
        device: Where to compute.
        precision: Number format: 32, bf16 or 16.
        fixed: The network takes windows of one size only (exported ones).

    Attributes:
        classes: Names by id.
        palette: RGB colours by id.
        channel: What is read of a file.
        stretch: How values become 0 to 255.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        config: Mapping[str, Any],
        device: torch.device,
        *,
        precision: str = "32",
        fixed: bool = False,
    ) -> None:
        """Keep the parts."""
        self.network, self.config, self.device, self.fixed = network, config, device, fixed
        self.number = AUTOCAST.get(precision)
        self.offsets = torch.tensor(config.get("offsets", [0.0])).view(-1, 1, 1)
        self.classes: list[str] = list(config["classes"])
        self.palette = np.array(config["palette"], np.uint8)
        self.channel: Channel = config["reading"]["channel"]
        self.stretch = Stretch.of(
            config["reading"]["value_range"], always=config["reading"]["stretch"]
        )
        self.normalisation = Normalisation(
            tuple(config["normalisation"]["mean"]), tuple(config["normalisation"]["std"])
        )
        self.scale = Scale(**config["scale"])

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", precision: str = "32") -> Segmenter:
        """Load a checkpoint of `train`, or what `export` made of one.

        Raises:
            CheckpointError: missing, foreign, damaged, or of another task.
            ConfigError: a device or a precision that an exported network has not.
        """
        if is_exported(path):
            run, config = load_exported(path)
            if config.get("task") != TASK:
                raise CheckpointError(f"{path} is of the task '{config.get('task')}', not of ours.")
            if precision != "32" or device not in ("auto", "cpu"):
                raise ConfigError(
                    f"{path} is exported and runs on the CPU in 32 bits: leave out --device and "
                    "--precision, or give the checkpoint itself."
                )
            return cls(run, config, torch.device("cpu"), fixed=True)
        model, checkpoint = load_trained(path)
        place = select_device(device)
        model = model.to(place, memory_format=torch.channels_last)
        return cls(model, checkpoint.config, place, precision=precision)

    @torch.no_grad()
    def logits(self, pixels: np.ndarray, window: WindowConfig | None = None) -> Tensor:
        """Return logits (K, H, W) of an image, uint8 (H, W) or (H, W, 3).

        Those of two classes are shifted to the threshold that training chose, if it chose one.
        """
        window = window or WindowConfig()
        image = self.normalisation(rescale(pixels, self.scale)).to(self.device)
        with torch.autocast(self.device.type, self.number, enabled=self.number is not None):
            found = infer(self.network, image, window, self.config["window"], fixed=self.fixed)
        found = found.float() + self.offsets.to(found.device)
        return resize(found[None], pixels.shape[:2])[0]

    def predict(self, pixels: np.ndarray, window: WindowConfig | None = None) -> np.ndarray:
        """Return class ids, uint8 (H, W), of an image as `read_frame` gives it.

        Args:
            pixels: uint8 (H, W), or (H, W, 3) RGB for networks of colour images.
            window: How it goes through the network; default: as trained.

        Raises:
            DataError: another kind of array.
        """
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.size == 0:
            raise DataError(
                f"an array of {pixels.dtype} {pixels.shape} is no image: give uint8 (H, W), as "
                "crossband.infrared.data.frames.read_frame does."
            )
        return self.logits(pixels, window).argmax(0).to(torch.uint8).cpu().numpy()


def infer(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    window: WindowConfig,
    trained: Mapping[str, int],
    *,
    fixed: bool = False,
) -> Tensor:
    """Return logits (K, H, W) of one normalised image (3, H, W).

    Args:
        network: Maps (B, 3, S, S) to logits.
        image: At the network's size.
        window: Wanted.
        trained: `size` and `stride` of the checkpoint.
        fixed: Only windows of the trained size can be had.

    Raises:
        ConfigError: windows that a network of one size does not take.
    """
    size = window.size or trained["size"]
    stride = window.stride or (trained["stride"] if not window.size else max(1, 2 * size // 3))
    if fixed and (window.mode == "whole" or size != trained["size"]):
        raise ConfigError(
            f"An exported network takes windows of {trained['size']} pixels only: leave out "
            "--window.mode and --window.size, or give the checkpoint itself."
        )
    if window.mode == "whole":
        return network(image[None])[0]
    return slide(network, image, size, stride, window.batch)


def predict(config: PredictConfig) -> int | None:
    """Run `crossband infrared predict`."""
    if not config.inputs:
        raise ConfigError("predict needs inputs: images, videos, TIFFs or folders of them.")
    out = Path(config.out)
    jobs, others = _find(config.inputs)
    segmenter = Segmenter.load(config.weights, device=config.device, precision=config.precision)
    channel = segmenter.channel if config.channel == "trained" else config.channel
    stretch = segmenter.stretch
    if config.value_range:
        stretch = Stretch.of(config.value_range)
    _refuse_clashes(jobs, out)

    def run(job: tuple[Path, Path]) -> dict[str, Any]:
        source, relative = job
        frames = []
        for frame in read_frames(source, channel, stretch):
            ids = segmenter.predict(frame.pixels, config.window)
            frames.append(_write(segmenter, frame, ids, out / relative, config))
        if len(frames) == 1:
            return {"input": str(source), **frames[0]}
        return {"input": str(source), "frames": frames}

    if others and not config.quiet and not config.json:
        print(f"passed over {len(others)} file(s) that are no images (first: {others[0]})")
    return predict_each(
        jobs,
        run,
        name=lambda job: str(job[0]),
        describe=_sentence,
        options=config,
        folder=out,
    )


def _find(inputs: list[str]) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Return files with the relative path of their results, and files that are not images."""
    jobs: dict[Path, Path] = {}
    others = []
    for item in map(Path, inputs):
        if item.is_dir():
            for path in sorted(item.rglob("*")):
                inner = path.relative_to(item)
                if not path.is_file() or any(part.startswith(".") for part in inner.parts):
                    continue
                if is_frame_file(path):
                    jobs[path] = inner
                else:
                    others.append(path)
        elif item.exists():
            jobs[item] = Path(item.name)
        else:
            raise DataError(f"{item} does not exist: give images, videos or folders of them.")
    if not jobs:
        raise DataError(f"There is no image or video in {', '.join(map(str, inputs))}.")
    return sorted(jobs.items()), others


def _refuse_clashes(jobs: list[tuple[Path, Path]], out: Path) -> None:
    """Refuse results that would replace an input, or one another.

    Raises:
        ConfigError: one would.
    """
    sources = {source.resolve() for source, _ in jobs}
    taken: dict[Path, Path] = {}
    for source, relative in jobs:
        for target in _results(_target(out / relative, None)):
            place = target.resolve()
            if place in sources:
                raise ConfigError(
                    f"--out {out} would write over the input {target}: name another folder."
                )
            if place in taken:
                raise ConfigError(
                    f"{source} and {taken[place]} would both become {target}: give the folder that "
                    "holds both, so that results keep their folders, or rename one."
                )
            taken[place] = source


def _target(path: Path, number: int | None) -> Path:
    """Return the file of class ids; the whole name is kept where a PNG would hide which it was."""
    stem = path.stem if path.suffix.lower() == ".png" else path.name.replace(".", "_")
    counted = stem if number is None else f"{stem}_{number:05d}"
    return path.with_name(f"{counted}.png")


def _results(target: Path) -> tuple[Path, Path, Path]:
    """Return the files of one picture: class ids, colours, overlay."""
    return (
        target,
        target.with_name(f"{target.stem}_colour.png"),
        target.with_name(f"{target.stem}_overlay.jpg"),
    )


def _write(
    segmenter: Segmenter, frame: Frame, ids: np.ndarray, path: Path, config: PredictConfig
) -> dict[str, Any]:
    target, colour, covered = _results(_target(path, frame.number))
    _save(ids, target)
    entry: dict[str, Any] = {"mask": str(target), "size": list(ids.shape)}
    if frame.number is not None:
        entry["frame"] = frame.number
    if config.colour:
        entry["colour"] = str(colour)
        _save(segmenter.palette[ids], colour)
    if config.overlay:
        entry["overlay"] = str(covered)
        _save(overlay(frame.pixels, ids, segmenter.palette), covered)
    counts = np.bincount(ids.ravel(), minlength=len(segmenter.classes))
    entry["pixels"] = {
        name: int(count) for name, count in zip(segmenter.classes, counts, strict=True)
    }
    entry["area"] = {name: round(int(n) / ids.size, 6) for name, n in entry["pixels"].items()}
    return entry


def _save(pixels: np.ndarray, path: Path) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary)


def _sentence(entry: dict[str, Any]) -> str:
    if "frames" in entry:
        return f"{entry['input']}: {len(entry['frames'])} frames"
    height, width = entry["size"]
    shares = sorted(entry["area"].items(), key=lambda pair: -pair[1])
    seen = ", ".join(f"{name} {100 * share:.3g} %" for name, share in shares[:4] if share)
    return f"{entry['mask']}: {width} x {height}; {seen}"
