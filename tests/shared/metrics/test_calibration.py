from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from crossband.shared.metrics.calibration import (
    brier,
    expected_calibration_error,
    fit_temperature,
    reliability,
)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def test_reliability_by_hand() -> None:
    probability = np.array([[0.0, 0.2, 0.25], [0.75, 1.0, 0.9]])
    label = np.array([[0, 1, np.nan], [1, 1, 0]])
    rows = reliability(probability, label, bins=4)
    assert [row.count for row in rows] == [2, 0, 0, 3]
    assert [(row.low, row.high) for row in rows][1:3] == [(0.25, 0.5), (0.5, 0.75)]
    assert rows[0][2:4] == (pytest.approx(0.1), 0.5)
    assert rows[3][2:4] == (pytest.approx(2.65 / 3), pytest.approx(2 / 3))
    assert math.isnan(rows[1].probability) and math.isnan(rows[1].positive)
    wanted = 2 / 5 * 0.4 + 3 / 5 * (2.65 - 2) / 3
    assert expected_calibration_error(probability, label, bins=4) == pytest.approx(wanted)


def test_calibration_error_is_torchmetrics() -> None:
    import crossband.shared.compat  # noqa: F401 - before torchmetrics

    from torchmetrics.functional.classification import binary_calibration_error

    torch.manual_seed(0)
    probability = torch.rand(500, dtype=torch.float64)
    label = (torch.rand(500) < probability**2).long()
    theirs = binary_calibration_error(probability, label, n_bins=15, norm="l1")
    assert expected_calibration_error(probability, label) == pytest.approx(float(theirs), abs=1e-6)


def test_a_certain_prophet_has_no_error_and_nothing_has_none_to_give() -> None:
    label = np.array([0.0, 1.0, 1.0])
    assert expected_calibration_error(label, label) == 0.0 == brier(label, label)
    assert brier(1 - label, label) == 1.0 == expected_calibration_error(1 - label, label)
    assert brier([0.5, 0.2], [1, math.nan]) == 0.25
    assert math.isnan(brier([0.5], [math.nan]))
    assert math.isnan(expected_calibration_error([0.5], [math.nan]))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_temperature_of_findings_is_found(temperature: float) -> None:
    random = np.random.default_rng(0)
    z = random.normal(-0.5, 1.5, (6000, 3))
    label = (random.random(z.shape) < _sigmoid(z)).astype(float)
    label[random.random(z.shape) < 0.3] = np.nan
    found = fit_temperature(z * temperature, label, exclusive=False)
    assert found == pytest.approx(temperature, rel=0.06)
    at_best = expected_calibration_error(_sigmoid(z * temperature / found), label)
    assert at_best < 0.02


def test_temperature_of_classes_is_found_and_has_the_least_cross_entropy() -> None:
    random = np.random.default_rng(1)
    z = random.normal(0, 2, (5000, 4))
    chance = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    label = (random.random((5000, 1)) < chance.cumsum(1)).argmax(1).astype(float)
    label[:100] = -1
    label[100:200] = np.nan
    found = fit_temperature(2.5 * z + 7, label, exclusive=True)
    assert found == pytest.approx(2.5, rel=0.05)

    logits, target = torch.tensor(2.5 * z[200:]), torch.tensor(label[200:]).long()

    def loss(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / temperature, target))

    assert loss(found) < min(loss(found * 1.01), loss(found / 1.01))


@pytest.mark.parametrize(
    "logits, labels, exclusive, wanted",
    [
        ([[2.0], [-1.0]], [[1], [0]], False, 0.05),  # separated: the surer the better
        ([[2.0], [-1.0]], [[0], [1]], False, 20.0),  # the opposite: the less sure the better
        ([[0.0], [0.0]], [[1], [0]], False, 1.0),
        ([[3.0]], [[math.nan]], False, 1.0),
        ([[3.0, 1.0], [0.0, 5.0]], [0, 1], True, 0.05),
        ([[3.0, 1.0], [0.0, 5.0]], [1, 0], True, 20.0),
        ([[4.0, 4.0]], [0], True, 1.0),
        ([[4.0, 1.0]], [-1], True, 1.0),
    ],
)
def test_temperature_of_degenerate_input_is_defined(
    logits: list, labels: list, exclusive: bool, wanted: float
) -> None:
    assert fit_temperature(logits, labels, exclusive) == wanted
