"""Maps of the frozen image encoder, each computed once."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crossband.medical.data.records import Record
from crossband.medical.privacy import NamedStore
from crossband.medical.prompted.frames import framed
from crossband.shared.errors import CrossbandError, DataError
from crossband.shared.promptable import SAM


class MapStore:
    """Gives the encoder's maps of images; an epoch does not run the encoder again.

    Maps are kept in half precision: in memory while they fit the budget, and beyond it in a folder
    that is removed at the end. The encoder sees one image at a time, so that a map does not depend
    on what else is in a batch.

    Args:
        records: The images.
        store: Reads them.
        cache_gb: Budget of the memory, GB.
    """

    def __init__(self, records: Sequence[Record], store: NamedStore, cache_gb: float) -> None:
        """Start empty."""
        self.records, self.store, self.cache_gb = records, store, cache_gb
        self._broken: dict[int, str] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.clear()

    def clear(self) -> None:
        """Forget all maps: those of other weights are none."""
        self._left = self.cache_gb * 2**30
        self._kept: dict[int, np.ndarray | Path] = {}
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def maps(self, model: SAM, numbers: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Return maps (B, C, h, w), float32 on the network's device, and the places they are of.

        An image that cannot be read is left out, and told once.

        Args:
            model: The whole network.
            numbers: Of images, of each place of a batch.

        Raises:
            DataError: none of the images can be read.
        """
        found, places = [], []
        for place, number in enumerate(numbers):
            kept = self._map(model, number)
            if kept is not None:
                found.append(torch.from_numpy(kept))
                places.append(place)
        if not found:
            raise DataError(
                f"None of the {len(numbers)} images of a batch can be read: "
                f"{self._broken[numbers[0]]}"
            )
        return torch.stack(found).to(model.pixel_mean.device).float(), places

    def _map(self, model: SAM, number: int) -> np.ndarray | None:
        if number in self._broken:
            return None
        if number not in self._kept:
            try:
                pixels = self.store.read(self.records[number].path)
            except DataError as error:
                self._broken[number] = str(error)
                print(f"left out: {error}", file=sys.stderr, flush=True)
                return None
            self._keep(number, _encoded(model, pixels))
        kept = self._kept[number]
        return np.load(kept) if isinstance(kept, Path) else kept

    def _keep(self, number: int, values: np.ndarray) -> None:
        if values.nbytes <= self._left:
            self._left -= values.nbytes
            self._kept[number] = values
            return
        try:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="crossband-maps-")
            path = Path(self._folder.name) / f"{number}.npy"
            np.save(path, values)
        except OSError as error:
            raise CrossbandError(
                f"The encoder's maps cannot be kept in {tempfile.gettempdir()} "
                f"({error.strerror or error}): free space there, choose another folder by TMPDIR, "
                "or give memory by --data.cache_gb."
            ) from error
        self._kept[number] = path


@torch.no_grad()
def _encoded(model: SAM, pixels: np.ndarray) -> np.ndarray:
    image = framed(pixels, model.img_size).to(model.pixel_mean.device)
    return model.encode(model.preprocess(image)[None])[0].half().cpu().numpy()
