"""Learning from folders in which some files are broken."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from crossband.medical.data.records import Record
from crossband.medical.privacy import Names
from crossband.shared.errors import DataError
from crossband.shared.training.sampler import EpochIndex

_TRIES = 10  # files in a row that may be broken


class GoingOn(Dataset):
    """Items of images; in place of one that cannot be read the next one is given.

    Each broken file is told once, on stderr, by every process that meets it. Items of a resumed run
    stay the same, since the next one depends on nothing but the index.

    Args:
        items: A data set with an item for each record.
        records: The images.
        names: What images are called in messages.
    """

    def __init__(self, items: Any, records: Sequence[Record], names: Names) -> None:
        """Keep the parts."""
        self.items, self.records, self.names = items, records, names
        self._told: set[int] = set()

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one item.

        Raises:
            DataError: many files in a row cannot be read.
        """
        count, text = len(self.records), ""
        for step in range(min(_TRIES, count)):
            place = (int(index) + step) % count
            try:
                epoch = getattr(index, "epoch", None)
                return self.items[place if epoch is None else EpochIndex(place, epoch)]
            except DataError as error:
                record = self.records[place]
                text = self.names.error(error, record.path, record.mask)
                if place not in self._told:
                    self._told.add(place)
                    print(f"left out: {text}", file=sys.stderr, flush=True)
        raise DataError(
            f"{min(_TRIES, count)} files in a row cannot be read (the last: {text}); "
            "`crossband medical data check` lists all."
        )
