"""Scores of forecasts, in two conventions that must not be mixed.

OpenSTL (Tan et al. 2023): plain means, video metrics summed over a frame. WeatherBench (Rasp et
al. 2020): weighted by the cosine of latitude. Arrays are NumPy, in physical units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# ---------------------------------------------------------------------------------------------
# OpenSTL, on whole arrays (B, T, C, H, W)


def openstl_errors(
    prediction: np.ndarray, truth: np.ndarray, *, spatial_norm: bool
) -> dict[str, float]:
    """Return `mse`, `mae`, `rmse` as OpenSTL computes them.

    Video and traffic (`spatial_norm=False`): mean over batch and time, sum over C, H, W. Weather
    (`spatial_norm=True`): plain means.
    """
    scale = 1.0 if spatial_norm else float(np.prod(prediction.shape[2:]))
    mse = float(np.mean((prediction - truth) ** 2, dtype=np.float64)) * scale
    mae = float(np.mean(np.abs(prediction - truth), dtype=np.float64)) * scale
    return {"mse": mse, "mae": mae, "rmse": float(np.sqrt(mse))}


def openstl_channel_errors(
    prediction: np.ndarray, truth: np.ndarray, names: list[str], *, spatial_norm: bool
) -> dict[str, float]:
    """Return the errors of each channel group and their means (`rmse` is the mean of RMSEs).

    Channels are split evenly over `names`, in order.
    """
    size = prediction.shape[2] // len(names)
    scores: dict[str, float] = {}
    groups = []
    for index, name in enumerate(names):
        part = np.s_[:, :, index * size : (index + 1) * size]
        group = openstl_errors(prediction[part], truth[part], spatial_norm=spatial_norm)
        scores |= {f"{key}_{name}": value for key, value in group.items()}
        groups.append(group)
    return scores | {key: float(np.mean([g[key] for g in groups])) for key in groups[0]}


def openstl_image_quality(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return `ssim`, `psnr`, `snr` of forecasts clipped to [0, 1], averaged over frames.

    SSIM as OpenSTL gets it from scikit-image for float frames: data range 2 (from -1 to 1), a
    uniform 7 x 7 window, sample covariance. A data range of 1 would give lower values.
    """
    from skimage.metrics import structural_similarity

    prediction = np.clip(prediction, 0.0, 1.0)
    frames = prediction.reshape(-1, *prediction.shape[2:])
    truths = truth.reshape(-1, *truth.shape[2:])
    error = np.mean((frames - truths) ** 2, axis=(1, 2, 3), dtype=np.float64)
    power = np.mean(truths**2, axis=(1, 2, 3), dtype=np.float64)
    ssim = [
        structural_similarity(a.swapaxes(0, 2), b.swapaxes(0, 2), channel_axis=-1, data_range=2.0)
        for a, b in zip(frames, truths, strict=True)
    ]
    return {
        "ssim": float(np.mean(ssim)),
        "psnr": float(np.mean(-10 * np.log10(error))),
        "snr": float(np.mean(10 * np.log10(power / error))),
    }


# ---------------------------------------------------------------------------------------------
# WeatherBench, on (time, lat, lon)


def latitude_weights(latitude: np.ndarray | None, rows: int) -> np.ndarray:
    """Return cos(latitude) divided by its mean, (H,); ones where there is no latitude."""
    if latitude is None:
        return np.ones(rows)
    weights = np.cos(np.deg2rad(np.asarray(latitude, np.float64)))
    return weights / weights.mean()


def weatherbench_scores(
    forecast: np.ndarray, truth: np.ndarray, latitude: np.ndarray
) -> dict[str, float]:
    """Return `rmse`, `mae`, `acc` of WeatherBench's `score.py`.

    The climatology of the anomaly correlation is the time mean of the truth given, and the
    anomalies lose their unweighted mean over everything.
    """
    scores = ForecastScores(1, ("field",), latitude, forecast.shape[1:])
    scores.update(
        forecast[:, None, None], truth[:, None, None], climatology=truth.mean(axis=0)[None, None]
    )
    table = scores.scores()
    return {name: float(table[name][0, 0]) for name in ("rmse", "mae", "acc")}


# ---------------------------------------------------------------------------------------------
# Forecasts per lead time and variable, with intervals


class ForecastScores:
    """Scores per lead and variable from additive sums per window.

    Args:
        leads: Number of lead times.
        variables: Names.
        latitude: (H,) degrees, or None for no weighting.
        grid: (H, W).
    """

    def __init__(
        self,
        leads: int,
        variables: tuple[str, ...],
        latitude: np.ndarray | None,
        grid: tuple[int, int],
    ) -> None:
        """Start empty."""
        self.variables = variables
        self.leads = leads
        self._weights = np.broadcast_to(latitude_weights(latitude, grid[0])[:, None], grid)
        self._batches: list[dict[str, np.ndarray]] = []

    def update(
        self,
        prediction: np.ndarray,
        truth: np.ndarray,
        mask: np.ndarray | None = None,
        climatology: np.ndarray | None = None,
    ) -> None:
        """Add windows.

        Args:
            prediction: (B, T', C, H, W).
            truth: Same shape.
            mask: Same shape, true where counted; default: where the truth is finite.
            climatology: Broadcastable to the same shape; without it there is no `acc`.
        """
        counted = np.isfinite(truth) if mask is None else mask & np.isfinite(truth)
        plain = np.ones(self._weights.size)
        weighted = self._weights.ravel()

        def total(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
            return values.reshape(*values.shape[:3], -1) @ weights  # (B, T', C)

        error = np.where(counted, prediction.astype(np.float64) - truth, 0.0)
        sums = {"w": total(counted, weighted), "n": total(counted, plain)}
        for name, values in (("e2", error**2), ("e", np.abs(error))):
            sums |= {f"w{name}": total(values, weighted), name: total(values, plain)}
        if climatology is not None:
            f = np.where(counted, prediction.astype(np.float64) - climatology, 0.0)
            a = np.where(counted, truth.astype(np.float64) - climatology, 0.0)
            for name, values in (("f", f), ("a", a)):
                sums |= {f"w{name}": total(values, weighted), name: total(values, plain)}
            sums |= {"wfa": total(f * a, weighted), "wff": total(f * f, weighted)}
            sums["waa"] = total(a * a, weighted)
        self._batches.append(sums)

    @property
    def sums(self) -> dict[str, np.ndarray]:
        """Sums by name, each (windows, T', C)."""
        names = self._batches[0]
        return {name: np.concatenate([batch[name] for batch in self._batches]) for name in names}

    def scores(self, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return the scores.

        Args:
            weights: (R, windows), how often each window counts in each of R resamples; default:
                each window once.

        Returns:
            `rmse`, `mae` (latitude-weighted, WeatherBench), `mse_plain`, `mae_plain`,
            `rmse_plain` (OpenSTL), and `acc` where a climatology was given; each (T', C), or
            (R, T', C) with `weights`. NaN where nothing was observed.
        """
        sums = self.sums
        if weights is None:
            total = {name: value.sum(axis=0) for name, value in sums.items()}
        else:
            total = {name: np.tensordot(weights, value, axes=1) for name, value in sums.items()}
        with np.errstate(invalid="ignore", divide="ignore"):
            scores = {
                "rmse": np.sqrt(total["we2"] / total["w"]),
                "mae": total["we"] / total["w"],
                "mse_plain": total["e2"] / total["n"],
                "mae_plain": total["e"] / total["n"],
                "rmse_plain": np.sqrt(total["e2"] / total["n"]),
            }
            if "wfa" in total:
                fm, am = total["f"] / total["n"], total["a"] / total["n"]
                fa = total["wfa"] - fm * total["wa"] - am * total["wf"] + fm * am * total["w"]
                ff = total["wff"] - 2 * fm * total["wf"] + fm**2 * total["w"]
                aa = total["waa"] - 2 * am * total["wa"] + am**2 * total["w"]
                scores["acc"] = fa / np.sqrt(ff * aa)
        return scores


FEWEST_BLOCKS = 3


def block_resamples(windows: int, block: int, resamples: int, seed: int) -> np.ndarray:
    """Draw circular blocks of neighbouring windows until there are as many as before.

    Returns:
        (resamples, windows): how often each window was drawn. With fewer windows than make
        `FEWEST_BLOCKS` blocks there are none, (0, windows): every draw would be about the same,
        and intervals would look certain where nothing is known.
    """
    if windows < FEWEST_BLOCKS * block:
        return np.zeros((0, windows))
    generator = np.random.default_rng(seed)
    blocks = -(-windows // block)
    starts = generator.integers(0, windows, (resamples, blocks))
    drawn = ((starts[..., None] + np.arange(block)) % windows).reshape(resamples, -1)[:, :windows]
    weights = np.zeros((resamples, windows))
    for row, indices in zip(weights, drawn, strict=True):
        np.add.at(row, indices, 1.0)
    return weights


@dataclass(frozen=True)
class Interval:
    """A value per lead and variable with its 95 % interval, each (T', C)."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def interval(scores: ForecastScores, name: str, weights: np.ndarray) -> Interval:
    """Return a score with the 2.5 and 97.5 percentiles over resamples; NaN without any."""
    return _interval(scores.scores()[name], scores.scores(weights)[name])


def difference(a: ForecastScores, b: ForecastScores, name: str, weights: np.ndarray) -> Interval:
    """Return score(a) - score(b) with its interval, both on the same resampled windows."""
    drawn = a.scores(weights)[name] - b.scores(weights)[name]
    return _interval(a.scores()[name] - b.scores()[name], drawn)


def _interval(value: np.ndarray, drawn: np.ndarray) -> Interval:
    if not len(drawn):
        return Interval(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
    low, high = np.nanpercentile(drawn, (2.5, 97.5), axis=0)
    return Interval(value, low, high)
