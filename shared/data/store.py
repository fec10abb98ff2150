"""Decoded images kept in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np


class ImageStore:
    """Reads images and keeps them decoded while they fit a budget.

    The first ones are kept, not the last ones used: in another order every epoch each of them saves
    one reading per epoch, while those last used would mostly be dropped before their next turn.
    Every process that loads has a store, and a budget, of its own.

    Args:
        cache_gb: Budget in GB.
    """

    def __init__(self, cache_gb: float = 2.0) -> None:
        """Start empty."""
        self._left = cache_gb * 2**30
        self._kept: dict[Path, np.ndarray] = {}

    def read(self, path: Path) -> np.ndarray:
        """Return the image as `decode` gives it; not to be changed.

        Raises:
            DataError: the file cannot be read.
        """
        if path in self._kept:
            return self._kept[path]
        pixels = self.decode(path)
        if pixels.nbytes <= self._left:
            self._left -= pixels.nbytes
            self._kept[path] = pixels
        return pixels

    def decode(self, path: Path) -> np.ndarray:
        """Read the file itself."""
        raise NotImplementedError
