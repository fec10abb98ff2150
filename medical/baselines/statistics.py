"""A linear model on simple statistics of a grey image: what a network on X-rays should beat.

Where it comes near a network, the labels follow exposure, field of view or the scanner. The
statistics do not depend on the size of an image, and say nothing of its file.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from crossband.shared.errors import CheckpointError, DataError, MissingExtraError

NAME = "statistics"
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C, the inverse of the ridge penalty
_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_BINS = 16
_THUMB = 8
_SIDE = 64  # differences and gradients are taken at this side, whatever the image's
_FOLDS = 5
_EPS = 1e-6

FEATURES: tuple[str, ...] = (
    *("mean", "std", "skewness", "entropy"),
    *(f"percentile {p}" for p in _PERCENTILES),
    *(f"bin {i}" for i in range(_BINS)),
    *(f"thumbnail {r},{c}" for r in range(_THUMB) for c in range(_THUMB)),
    *("left - right", "top - bottom", "|left - right|", "|top - bottom|", "centre - border"),
    *("gradient x", "gradient y", "gradient y / x"),
)


def features(image: np.ndarray) -> np.ndarray:
    """Return the statistics of a grey image, float64 (F,), as `FEATURES` names them.

    Grey values are taken as 0 to 1. The first 27 numbers come from the histogram alone.

    Args:
        image: uint8 (H, W).

    Raises:
        DataError: another type or shape.
    """
    if image.dtype != np.uint8 or image.ndim != 2 or 0 in image.shape:
        raise DataError(
            f"Statistics are of grey images, uint8 (H, W), not {image.dtype} {image.shape}: "
            "convert the image first."
        )
    return np.concatenate([_of_histogram(image), _of_places(image)])


def _of_histogram(image: np.ndarray) -> np.ndarray:
    share = np.bincount(image.ravel(), minlength=256) / image.size
    value = np.arange(256) / 255
    mean = share @ value
    std = np.sqrt(share @ (value - mean) ** 2)
    skewness = share @ (value - mean) ** 3 / max(std, _EPS) ** 3
    present = share[share > 0]
    entropy = -(present @ np.log2(present)) / 8
    places = np.searchsorted(np.cumsum(share), np.array(_PERCENTILES) / 100 - 1e-12)
    return np.concatenate(
        [
            [mean, std, skewness, entropy],
            value[places.clip(max=255)],
            share.reshape(_BINS, -1).sum(1),
        ]
    )


def _of_places(image: np.ndarray) -> np.ndarray:
    small, thumb = (_shrink(image, side) for side in (_SIDE, _THUMB))
    sideways, upright = small - small[:, ::-1], small - small[::-1]
    half, quarter = _SIDE // 2, _SIDE // 4
    inner = small[quarter:-quarter, quarter:-quarter].mean()
    border = (small.mean() - inner / 4) / 0.75
    energy_x = np.square(np.diff(small, axis=1)).mean()
    energy_y = np.square(np.diff(small, axis=0)).mean()
    return np.concatenate(
        [
            thumb.ravel(),
            [sideways[:, :half].mean(), upright[:half].mean()],
            [np.abs(sideways).mean(), np.abs(upright).mean(), inner - border],
            [np.sqrt(energy_x), np.sqrt(energy_y)],
            [np.log((energy_y + _EPS) / (energy_x + _EPS))],
        ]
    )


def _shrink(image: np.ndarray, side: int) -> np.ndarray:
    """Return means over equal boxes, float64 (side, side) in [0, 1]."""
    from PIL import Image

    grey = Image.fromarray(image).resize((side, side), Image.Resampling.BOX)
    return np.asarray(grey, np.float64) / 255


@dataclass(frozen=True)
class StatisticsModel:
    """Logistic regression on standardised statistics.

    Attributes:
        mean: (F,) of the statistics in training.
        std: (F,), 1 where a statistic never varied.
        weight: (K, F) of the standardised statistics.
        bias: (K,) in logits.
        strength: (K,) chosen C; NaN where a finding had one value and only its prevalence is known.
        exclusive: Whether the K outputs are classes (softmax) rather than findings (sigmoid).
    """

    mean: np.ndarray
    std: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    strength: np.ndarray
    exclusive: bool

    def logits(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """Return float64 (N, K) of grey images, uint8 (H, W) each."""
        return self.of_features(_matrix(images))

    def of_features(self, rows: np.ndarray) -> np.ndarray:
        """Return float64 (N, K) of statistics (N, F)."""
        return (rows - self.mean) / self.std @ self.weight.T + self.bias

    def predict_proba(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """Return probabilities, float64 (N, K), of grey images, uint8 (H, W) each."""
        return _probability(self.logits(images), self.exclusive)

    def save(self, path: str | Path, **config: Any) -> Path:
        """Write a checkpoint (.safetensors).

        Args:
            path: The file.
            config: Entries of its configuration besides `model`: task, data, metrics, ...
        """
        import torch

        from crossband.shared.checkpoints import save_checkpoint

        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arguments = {"num_classes": len(self.bias), "exclusive": self.exclusive}
        return save_checkpoint(
            path,
            {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()},
            {"model": {"name": NAME, "arguments": arguments}, **config},
        )


_ARRAYS = ("mean", "std", "weight", "bias", "strength")


def load(path: str | Path) -> StatisticsModel:
    """Read a checkpoint that `StatisticsModel.save` wrote.

    Raises:
        CheckpointError: unreadable, or of another model or other statistics.
    """
    from crossband.shared.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(path)
    model = checkpoint.config.get("model", {})
    arrays = {k: v.numpy() for k, v in checkpoint.state_dict.items()}
    fits = model.get("name") == NAME and arrays.keys() == set(_ARRAYS)
    if not fits or arrays["mean"].shape != (len(FEATURES),):
        raise CheckpointError(
            f"{path} is of the model {model.get('name')!r}, or of other statistics than this "
            f"crossband takes: give a file of `train --model {NAME}`."
        )
    return StatisticsModel(**arrays, exclusive=bool(model["arguments"]["exclusive"]))


def fit(
    images: Iterable[np.ndarray],
    labels: ArrayLike,
    groups: Sequence[Hashable] | None,
    exclusive: bool,
) -> StatisticsModel:
    """Fit the model; C is the best of `STRENGTHS` by log loss in cross-validation over groups.

    Every finding gets its own C and its own rows, those whose label is known. A finding with one
    value in training is predicted by its prevalence, within a millionth.

    Args:
        images: Grey, uint8 (H, W) each; they need not be in memory at once.
        labels: (N, K) of 1 present, 0 absent, NaN not known; one 1 in each row if `exclusive`.
        groups: Patient of every image, None where it is not known; None: every image on its own.
        exclusive: Whether the K columns are classes.

    Raises:
        DataError: shapes that do not fit, a finding without any known label, or a single patient.
        MissingExtraError: scikit-learn is not installed.
    """
    x, y = _matrix(images), np.asarray(labels, np.float64)
    if y.ndim != 2 or len(y) != len(x) or (groups is not None and len(groups) != len(x)):
        raise DataError(
            f"{len(x)} images with labels {y.shape} and "
            f"{'no' if groups is None else len(groups)} groups: give one row and one group each."
        )
    group = _numbers(groups, len(x))
    known = np.isfinite(y)
    if exclusive:
        known = np.repeat(known.all(1, keepdims=True), y.shape[1], axis=1)
    if not known.any(0).all():
        number = int(np.argmin(known.any(0))) + 1
        raise DataError(
            f"Finding {number} of {y.shape[1]} has no known label in training: leave it out by "
            "--data.labels, or choose another --data.uncertain."
        )
    mean, std = x.mean(0), x.std(0)
    std = np.where(std > 1e-12, std, 1.0)
    x = (x - mean) / std
    if exclusive:
        rows = known[:, 0]
        if not (y[rows].sum(1) == 1).all() or not np.isin(y[rows], (0, 1)).all():
            raise DataError("Classes need exactly one 1 in each row of labels: check the table.")
        found = [_choose(x[rows], y[rows].argmax(1), group[rows], y.shape[1])]
    else:
        found = [_choose(x[r], y[r, k].astype(int), group[r], 1) for k, r in enumerate(known.T)]
    weight, bias = (np.concatenate([fitted[part] for fitted in found]) for part in (0, 1))
    strength = np.array([fitted[2] for fitted in found]).repeat(y.shape[1] if exclusive else 1)
    return StatisticsModel(mean, std, weight, bias, strength, exclusive)


def _choose(
    x: np.ndarray, y: np.ndarray, group: np.ndarray, outputs: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return weight, bias and C: that of the least log loss on patients left out.

    Args:
        x: (N, F) standardised.
        y: (N,) 0 or 1, or numbers of classes.
        group: (N,) numbers of patients.
        outputs: 1 for a finding, K for classes.

    Raises:
        DataError: one patient only.
    """
    if len(np.unique(y)) == 1:
        return *_fit(x, y, 1.0, outputs), np.nan
    if len(np.unique(group)) < 2:
        raise DataError(
            f"The {len(x)} images with a known label are of one patient: give images of several."
        )
    folds = _folds(x, group)
    losses = []
    for strength in STRENGTHS:
        loss = 0.0
        for train, test in folds:
            weight, bias = _fit(x[train], y[train], strength, outputs)
            loss += _log_loss(_probability(x[test] @ weight.T + bias, outputs > 1), y[test])
        losses.append(loss)
    best = STRENGTHS[int(np.argmin(losses))]
    return *_fit(x, y, best, outputs), best


def _fit(
    x: np.ndarray, y: np.ndarray, strength: float, outputs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return weight (outputs, F) and bias (outputs,); prevalences where one value is all."""
    weight = np.zeros((outputs, x.shape[1]))
    present = np.unique(y)
    if outputs == 1:
        prevalence = y.mean().clip(_EPS, 1 - _EPS)
        bias = np.log(prevalence / (1 - prevalence))[None]
    else:  # a class that never occurred
        bias = np.full(outputs, np.log(_EPS))
        bias[present] = 0.0
    if len(present) == 1:
        return weight, bias
    model = _regression(strength, len(present)).fit(x, y)
    rows = [0] if outputs == 1 else present[-len(model.coef_) :]  # of two classes, the first is 0
    weight[rows], bias[rows] = model.coef_, model.intercept_
    return weight, bias


def _regression(strength: float, classes: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    solver = "newton-cholesky" if classes == 2 else "lbfgs"  # few statistics, many images
    return LogisticRegression(C=strength, solver=solver, max_iter=1000)


def _folds(x: np.ndarray, group: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    try:
        from sklearn.model_selection import GroupKFold
    except ModuleNotFoundError as error:
        raise MissingExtraError("scikit-learn", "medical") from error
    count = min(_FOLDS, len(np.unique(group)))
    return list(GroupKFold(count).split(x, groups=group))


def _log_loss(probability: np.ndarray, y: np.ndarray) -> float:
    """Return the summed log loss of (N, 1) with 0 or 1, or of (N, K) with numbers of classes."""
    if probability.shape[1] == 1:
        probability = np.concatenate([1 - probability, probability], axis=1)
    return -float(np.log(probability[np.arange(len(y)), y].clip(_EPS)).sum())


def _probability(logits: np.ndarray, exclusive: bool) -> np.ndarray:
    if exclusive:
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)
    return 0.5 * (1 + np.tanh(logits / 2))


def _numbers(groups: Sequence[Hashable] | None, count: int) -> np.ndarray:
    """Number the groups; every image without one is on its own."""
    names: dict[Hashable, int] = {}
    own = [None] * count if groups is None else groups
    keys = ((name,) if name is not None else index for index, name in enumerate(own))
    return np.array([names.setdefault(key, len(names)) for key in keys])


def _matrix(images: Iterable[np.ndarray]) -> np.ndarray:
    rows = [features(image) for image in images]
    if not rows:
        raise DataError("There are no images to take statistics of: check --data.root.")
    return np.stack(rows)
