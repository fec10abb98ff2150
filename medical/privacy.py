"""What images and patients are called in logs, reports and predictions.

Names of files and numbers of patients often tell who somebody is. Without `--keep-ids` an image is
called by the digest of its bytes, which whoever holds the file can compute and nobody else.
Patients and missing files are numbered as they come: a digest of a short identifier is soon found
by trying all of them.
"""

from __future__ import annotations

import hashlib
import re
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
        self._numbers: dict[str, dict[str, int]] = {}

    def image(self, path: str | Path, name: str | None = None) -> str:
        """Return what an image is called: its name, or `image-<12 digits of the sha256>`.

        The folder of a DICOM series is called by the digests of its files.
        """
        if self.keep:
            return name or str(path)
        try:
            if Path(path).is_dir():
                files = sorted(_digest(p) for p in Path(path).iterdir() if p.is_file())
                return f"series-{hashlib.sha256(''.join(files).encode()).hexdigest()[:12]}"
            return f"image-{_digest(Path(path))[:12]}"
        except OSError:
            return self._numbered("image-missing", str(name or path))

    def patient(self, identifier: str) -> str:
        """Return what a patient is called: the identifier, or `patient-<number>`."""
        return identifier if self.keep else self._numbered("patient", identifier)

    def _numbered(self, kind: str, name: str) -> str:
        numbers = self._numbers.setdefault(kind, {})
        return f"{kind}-{numbers.setdefault(name, len(numbers) + 1)}"

    def error(self, error: Exception, *paths: str | Path | None) -> str:
        """Return an error's sentence with what files are called in place of their paths."""
        text = str(error)
        if self.keep:
            return text
        for path in paths:
            if path is not None:
                shown = self.image(path)
                text = text.replace(str(path), shown)
                # As a whole word: files of an archive are called 1, or I.
                text = re.sub(rf"(?<!\w){re.escape(Path(path).name)}(?!\w)", shown, text)
        return text


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
