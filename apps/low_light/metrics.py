"""Full-reference scores as low-light papers report them; NIQE is in `niqe.py`."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import TYPE_CHECKING

import numpy as np

from crossband.shared.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

LOWER_IS_BETTER = {"psnr": False, "ssim": False, "niqe": True, "lpips": True}


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """Return 10 log10(255^2 / mse) in dB over all three channels together; infinite if equal.

    Args:
        image: RGB (H, W, 3) in [0, 255].
        truth: Same.
    """
    _same(image, truth)
    error = np.mean((image.astype(np.float64) - truth.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def ssim(image: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean of the channels' SSIM (Wang et al. 2004): Gaussian 11 x 11, valid part.

    Args:
        image: RGB uint8 (H, W, 3), at least 11 x 11.
        truth: Same.
    """
    from skimage.metrics import structural_similarity

    _same(image, truth)
    if min(image.shape[:2]) < 11:
        raise DataError(f"SSIM needs 11 x 11 pixels, the image is {image.shape[:2]}.")
    return float(
        structural_similarity(
            np.asarray(image, np.float64),
            np.asarray(truth, np.float64),
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        )
    )


def match_mean(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Give a result the truth's mean grey level ("GT-mean": it knows the answer's brightness).

    Args:
        image: RGB uint8 (H, W, 3).
        truth: Same.

    Returns:
        RGB float64 in [0, 255], not rounded, as KinD, LLFlow and CIDNet score it.
    """
    ratio = _mean_grey(truth) / max(_mean_grey(image), 1e-6)
    return np.clip(image * ratio, 0, 255)


class Lpips:
    """LPIPS on AlexNet (Zhang et al. 2018) by the package `lpips`, with weights that you give.

    The package brings the linear heads; the AlexNet features are torchvision's file
    (`alexnet-owt-*.pth`), which it would otherwise download.

    Raises:
        CheckpointError: a file without AlexNet's features.
        MissingExtraError: the package is not installed.
    """

    def __init__(self, weights: str | Path) -> None:
        """Load the weights."""
        import crossband.shared.compat  # noqa: F401, I001 - before torchvision, which lpips imports

        from crossband.shared.checkpoints import load_state, read_state_dict
        from crossband.shared.errors import MissingExtraError

        try:
            import lpips
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "lpips", "low-light") from error
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the package's way to ask for no download
            self.network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
        state, _ = read_state_dict(weights)
        features = {k.split(".", 1)[1]: v for k, v in state.items() if k.startswith("features.")}
        slices = {}
        for name in self.network.net.state_dict():
            slices[name] = features.get(name.split(".", 1)[1])
        found = {k: v for k, v in slices.items() if v is not None}
        load_state(self.network.net, found, weights)

    def __call__(self, image: np.ndarray, truth: np.ndarray) -> float:
        """Return the distance of two RGB uint8 images (H, W, 3)."""
        import torch

        _same(image, truth)
        pair = [
            torch.from_numpy(x.astype(np.float32).transpose(2, 0, 1))[None] / 127.5 - 1
            for x in (image, truth)
        ]
        with torch.no_grad():
            return float(self.network(*pair))


def _mean_grey(image: np.ndarray) -> float:
    import cv2

    return float(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean())


def _same(image: np.ndarray, truth: np.ndarray) -> None:
    if image.shape != truth.shape:
        raise DataError(
            f"The images to compare differ in size: {image.shape[:2]} and {truth.shape[:2]}."
        )
