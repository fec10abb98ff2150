"""What a data set of radiographs says, whatever its files look like."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

FRONTAL = ("PA", "AP", "AP SUPINE")
# What lists and headers write, without blanks, dashes and underscores.
_VIEWS = {
    **dict.fromkeys(("PA", "POSTEROANTERIOR", "POSTERIORANTERIOR"), "PA"),
    **dict.fromkeys(("AP", "ANTEROPOSTERIOR", "ANTERIORPOSTERIOR", "APERECT"), "AP"),
    **dict.fromkeys(("APSUPINE", "SUPINE"), "AP SUPINE"),
    **dict.fromkeys(("LATERAL", "LAT", "L", "LL", "RL", "LEFTLATERAL", "RIGHTLATERAL"), "LATERAL"),
}


@dataclass(frozen=True)
class Record:
    """One image.

    Attributes:
        path: The file.
        name: How the data set's lists call it; unique in a collection.
        patient: Identifier of the patient, or None where the set does not tell.
        labels: A number per finding: 1 present, 0 absent, NaN not known.
        split: `train`, `val`, `test`, or None where the set has none.
        view: `PA`, `AP`, `AP SUPINE`, `LATERAL`, in capitals, or None.
        sex: `F`, `M`, or None.
        age: Years, or None.
        mask: File of a segmentation mask, or None.
        more_masks: Further masks of the same image, to be laid over the first.
        sequences: Of a volume: the files of its other sequences, of the same grid.
    """

    path: Path
    name: str
    patient: str | None = None
    labels: tuple[float, ...] = ()
    split: str | None = None
    view: str | None = None
    sex: str | None = None
    age: float | None = None
    mask: Path | None = None
    more_masks: tuple[Path, ...] = ()
    sequences: tuple[Path, ...] = ()


@dataclass
class Collection:
    """A data set.

    Attributes:
        root: Its folder.
        layout: As `crossband.medical.config.Layout` names them; `images`: nothing but files.
        findings: Names of the labels, in the order of `Record.labels`.
        exclusive: Whether every image has exactly one of the findings (classes).
        records: The images.
        notes: What was left out, and why; a sentence each, without patient identifiers.
        drawn: Splits that the set does not give and that were drawn.
        classes: Names of the values of its masks, the background first, where the set tells.
    """

    root: Path
    layout: str
    findings: tuple[str, ...]
    exclusive: bool
    records: list[Record]
    notes: list[str] = field(default_factory=list)
    drawn: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def split(self, name: str) -> list[Record]:
        """Return the images of a split."""
        return [record for record in self.records if record.split == name]


def label_matrix(records: Sequence[Record]) -> np.ndarray:
    """Return the labels as float32 (N, K), NaN where not known."""
    return np.array([record.labels for record in records], np.float32)


def normal_view(text: str) -> str | None:
    """Return a view as `Record.view` has it; what is not known goes in capitals, blanks are None.

    Args:
        text: As a list or a DICOM header writes it: `AP Supine`, `LL`, `postero-anterior`.
    """
    capitals = " ".join(text.upper().split())
    if capitals in ("", "NAN", "UNKNOWN"):
        return None
    return _VIEWS.get(re.sub(r"[\s_-]", "", capitals), capitals)


def counted(number: int, word: str) -> str:
    """Return `1 image`, `2 images`."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
