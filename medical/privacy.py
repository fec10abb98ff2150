"""What images and patients are called in logs, reports and predictions.

Names of files and numbers of patients often tell who somebody is. Without `--keep-ids` an image is
called by the digest of its bytes, which whoever holds the file can compute and nobody else, and a
patient by a digest of the identifier.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np

from crossband.shared.errors import DataError

NOT_A_DEVICE = "Research use only: this is not a medical device and no diagnosis."


class Names:
    """Names that may be shown.

    Args:
        keep: Show file names and patient identifiers as they are.
    """

    def __init__(self, keep: bool) -> None:
        """Keep the choice."""
        self.keep = keep

    def image(self, path: str | Path, name: str | None = None) -> str:
        """Return what an image is called: its name, or `image-<12 digits of the sha256>`."""
        if self.keep:
            return name or str(path)
        try:
            return f"image-{hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]}"
        except OSError:
            return f"image-missing-{_digest(str(name or path))}"

    def patient(self, identifier: str) -> str:
        """Return what a patient is called."""
        return identifier if self.keep else f"patient-{_digest(identifier)}"

    def error(self, error: Exception, path: str | Path) -> str:
        """Return an error's sentence with what the image is called in place of its path."""
        text = str(error)
        if self.keep:
            return text
        shown = self.image(path)
        for word in (str(path), Path(path).name):
            text = text.replace(word, shown)
        return text


class Store(Protocol):
    """Reads images."""

    def read(self, path: Path) -> np.ndarray:
        """Return the pixels, uint8 (H, W)."""


class NamedStore:
    """Reads images; errors name them as they may be named.

    Args:
        store: What reads.
        names: What images are called.
    """

    def __init__(self, store: Store, names: Names) -> None:
        """Keep the parts."""
        self.store, self.names = store, names

    def read(self, path: Path) -> np.ndarray:
        """Return the pixels, uint8 (H, W).

        Raises:
            DataError: the file cannot be read.
        """
        try:
            return self.store.read(path)
        except DataError as error:
            raise DataError(self.names.error(error, path)) from None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
