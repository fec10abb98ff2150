"""Batches whose order depends on (seed, epoch) alone, so that a stopped run can go on exactly."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from crossband.shared.errors import ConfigError


class EpochIndex(int):
    """An index that knows the epoch it is asked for in; to other data sets a plain number."""

    epoch: int

    def __new__(cls, index: int, epoch: int) -> EpochIndex:
        """Join the two."""
        self = super().__new__(cls, index)
        self.epoch = epoch
        return self

    def __getnewargs__(self) -> tuple[int, int]:
        """Return what loader processes rebuild it from."""
        return int(self), self.epoch


def item_random(seed: int, index: int) -> np.random.Generator:
    """Return the generator for an item's random crop or flip, keyed by (seed, epoch, index).

    The draws are then the same in any loader process and after a resume.
    """
    return np.random.default_rng((seed, getattr(index, "epoch", 0), int(index)))


class EpochBatchSampler(Sampler[list[int]]):
    """Batch sampler keyed by (seed, epoch), strided over the ranks of a distributed run.

    Rank `r` of `w` takes every `w`-th item of the global order, so that the batches of all ranks
    together are the same items whatever `w` is. `skip` leaves out the first batches of the next
    pass only: a resumed epoch starts where it stopped. A last batch of fewer items than `smallest`
    is left out (batch norms need two). Lightning calls `set_epoch` on
    `loader.batch_sampler.sampler`, hence `self.sampler = self`.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        smallest: int = 1,
    ) -> None:
        """Keep the numbers; `batch_size` is per rank.

        Raises:
            ConfigError: a batch size below one.
        """
        if batch_size < 1:
            raise ConfigError(f"--loader.batch_size {batch_size} must be at least 1.")
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.smallest = smallest
        self.epoch = 0
        self.skip = 0
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next pass takes."""
        self.epoch = epoch

    def _per_rank(self) -> int:
        return -(-self.length // self.world_size)

    def __len__(self) -> int:
        """Return the batches of a whole epoch on one rank."""
        whole, rest = divmod(self._per_rank(), self.batch_size)
        return whole + (rest >= self.smallest)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield lists of `EpochIndex`."""
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.length, generator=generator).tolist()
        else:
            order = list(range(self.length))
        wanted = self._per_rank() * self.world_size
        order += order[: max(0, wanted - len(order))]  # equal ranks by repeats
        mine = order[self.rank :: self.world_size]
        start, self.skip = self.skip, 0
        for batch in range(start, len(self)):
            part = mine[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [EpochIndex(index, self.epoch) for index in part]
