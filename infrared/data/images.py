"""Images that the options of a verb name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from crossband.infrared.config import FramesConfig
from crossband.infrared.data.frames import Stretch
from crossband.infrared.data.pool import FrameStore, Pool, PoolImages, find_pool
from crossband.shared.errors import ConfigError

_SHOWN_NOTES = 5
Item = TypeVar("Item")


def gather(data: FramesConfig) -> Pool:
    """Find the images; see `find_pool`."""
    return find_pool(
        data.root,
        datasets=data.datasets,
        exclude=data.exclude,
        per_class=data.per_class,
        ratio=data.ratio,
    )


def frame_store(data: FramesConfig) -> FrameStore:
    """Return what reads the images."""
    return FrameStore(data.cache_gb, data.channel, Stretch.of(data.value_range))


def still_images(
    data: FramesConfig, pool: Pool, size: int, count: int, channels: int
) -> PoolImages:
    """Return middle squares of images evenly spread over the pool.

    Args:
        data: Options.
        pool: Files.
        size: Side of the squares.
        count: Images; 0: all.
        channels: Of the network, 1 or 3.

    Raises:
        ConfigError: a size, number or channels that cannot be.
    """
    if size < 1 or count < 0:
        raise ConfigError(f"--size {size} must be at least 1, --images {count} at least 0.")
    if channels not in (1, 3):
        raise ConfigError(f"The network takes {channels} channels: images have 1 or 3 equal ones.")
    paths = spread(pool.paths, count or len(pool.paths))
    return PoolImages(paths, size, frame_store(data), random=False, channels=channels)


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Return `count` of the items, evenly spread; all if there are no more."""
    if count >= len(items):
        return list(items)
    return [items[i] for i in torch.linspace(0, len(items) - 1, count).round().long().tolist()]


def batches(
    images: Dataset[dict[str, Tensor]], size: int, device: torch.device
) -> Iterator[Tensor]:
    """Yield the images of a data set in order, (B, C, S, S) with B at most `size`.

    Raises:
        ConfigError: a size below one.
    """
    if size < 1:
        raise ConfigError(f"--batch_size {size} must be at least 1.")
    length = len(images)  # type: ignore[arg-type]
    for start in range(0, length, size):
        stop = min(length, start + size)
        yield torch.stack([images[i]["image"] for i in range(start, stop)]).to(device)


def shortened(notes: Sequence[str]) -> list[str]:
    """Return lines on what was left out, the first few of many."""
    lines = [f"note: {note}" for note in notes[:_SHOWN_NOTES]]
    more = len(notes) - _SHOWN_NOTES
    return [*lines, f"note: and {more} more such files"] if more > 0 else lines
