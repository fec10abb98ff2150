"""Scores of results, image by image, and their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crossband.apps.low_light.metrics import Lpips, match_mean, psnr, ssim
from crossband.apps.low_light.niqe import NaturalModel, niqe
from crossband.shared.errors import DataError

EXPLANATION = {
    "psnr": "PSNR in dB on uint8 RGB, the three channels together",
    "ssim": "SSIM 11 x 11 Gaussian, valid part, mean of the RGB channels",
    "lpips": "LPIPS on AlexNet, lower is better",
    "niqe_basicsr": "NIQE as BasicSR (luma, half size by averaging), lower is better",
    "niqe_matlab": "NIQE as the original (grey, MATLAB's bicubic), lower is better",
}
_NEEDS_TRUTH = ("psnr", "ssim", "lpips")


@dataclass
class Scorer:
    """Which scores to compute, and with what.

    Attributes:
        metrics: psnr, ssim, niqe, lpips.
        niqe_model: For niqe.
        niqe_variants: basicsr, matlab.
        lpips: For lpips.
        gt_mean: Give results the truth's mean brightness first.
    """

    metrics: Sequence[str]
    niqe_model: NaturalModel | None = None
    niqe_variants: Sequence[str] = ("basicsr", "matlab")
    lpips: Lpips | None = None
    gt_mean: bool = False

    @property
    def columns(self) -> list[str]:
        """Names of the scores, as in `EXPLANATION`."""
        names = []
        for metric in self.metrics:
            if metric == "niqe":
                names += [f"niqe_{variant}" for variant in self.niqe_variants]
            else:
                names.append(metric)
        return names

    def score(self, image: np.ndarray, truth: np.ndarray | None) -> dict[str, float | None]:
        """Score one result; None where a score cannot be had for it.

        Args:
            image: RGB uint8 (H, W, 3).
            truth: Same, or None.
        """
        found: dict[str, float | None] = {}
        shown: np.ndarray = image
        if self.gt_mean and truth is not None:
            shown = match_mean(image, truth)
        for name in self.columns:
            if name in _NEEDS_TRUTH and truth is None:
                found[name] = None
            elif name == "psnr":
                found[name] = psnr(shown, truth)
            elif name == "ssim":
                found[name] = ssim(shown, truth)
            elif name == "lpips":
                assert self.lpips is not None
                found[name] = self.lpips(shown.round().astype(np.uint8), truth)
            else:
                found[name] = self._niqe(shown.round().astype(np.uint8), name)
        return found

    def _niqe(self, image: np.ndarray, name: str) -> float | None:
        assert self.niqe_model is not None
        variant = name.removeprefix("niqe_")
        try:
            return niqe(image, self.niqe_model, "basicsr" if variant == "basicsr" else "matlab")
        except DataError:  # too small or flat: no NIQE exists
            return None


@dataclass
class Scores:
    """Scores of one method on all images, in their order."""

    method: str
    rows: list[dict[str, float | None]] = field(default_factory=list)
    seconds: float = 0.0
    megapixels: float = 0.0

    def mean(self, name: str) -> float | None:
        """Return the mean over the images that have the score."""
        values = [row[name] for row in self.rows if row[name] is not None]
        return float(np.mean(values)) if values else None

    def summary(self, columns: Sequence[str]) -> dict[str, Any]:
        """Return one row of the table."""
        row: dict[str, Any] = {"method": self.method}
        row |= {name: self.mean(name) for name in columns}
        row["MP/s"] = self.megapixels / self.seconds if self.seconds else None
        return row


def find_niqe_model(
    given: str | None, environment: str | None, roots: Sequence[str]
) -> Path | None:
    """Return the file of NIQE's natural model: given, from the environment, or near the data.

    Raises:
        DataError: a file was named that does not exist.
    """
    for name in filter(None, (given, environment)):
        if not Path(name).is_file():
            raise DataError(f"NIQE's parameters {name} do not exist: give niqe_pris_params.npz.")
        return Path(name)
    for root in map(Path, roots):
        for folder in [root, *root.resolve().parents[:2]]:
            candidate = folder / "niqe_pris_params.npz"
            if candidate.is_file():
                return candidate
    return None
