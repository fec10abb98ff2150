from __future__ import annotations

import time

import numpy as np
import pytest

from crossband.spatiotemporal.metrics import (
    ForecastScores,
    block_resamples,
    difference,
    interval,
    latitude_weights,
    openstl_errors,
    openstl_image_quality,
)

LATITUDE = np.linspace(60, 50, 5)
VARIABLES = ("a", "b")


def scores_of(
    prediction: np.ndarray, truth: np.ndarray, batch: int = 7, **options: np.ndarray
) -> ForecastScores:
    found = ForecastScores(truth.shape[1], VARIABLES, LATITUDE, truth.shape[3:])
    for start in range(0, len(truth), batch):
        part = slice(start, start + batch)
        extra = {k: v[part] if k == "mask" else v for k, v in options.items()}
        found.update(prediction[part], truth[part], **extra)
    return found


@pytest.fixture
def truth() -> np.ndarray:
    return np.random.default_rng(0).normal(280, 3, (20, 3, 2, 5, 4))


def test_weights_have_mean_one_and_follow_the_cosine() -> None:
    weights = latitude_weights(LATITUDE, 5)
    assert weights.mean() == pytest.approx(1)
    assert weights[0] / weights[-1] == pytest.approx(0.5 / np.cos(np.deg2rad(50)))
    np.testing.assert_array_equal(latitude_weights(None, 5), np.ones(5))


def test_a_constant_offset_is_the_error(truth: np.ndarray) -> None:
    table = scores_of(truth - 2.5, truth).scores()
    for name in ("rmse", "mae", "rmse_plain", "mae_plain"):
        np.testing.assert_allclose(table[name], 2.5)
    np.testing.assert_allclose(table["mse_plain"], 6.25)
    assert "acc" not in table


def test_weighted_rmse_is_over_everything_at_once(truth: np.ndarray) -> None:
    prediction = truth + np.random.default_rng(1).normal(size=truth.shape)
    weights = (np.cos(np.deg2rad(LATITUDE)) / np.cos(np.deg2rad(LATITUDE)).mean())[:, None]
    expected = np.sqrt((weights * (prediction - truth) ** 2).mean(axis=(0, 3, 4)))
    np.testing.assert_allclose(scores_of(prediction, truth).scores()["rmse"], expected)


def test_batches_do_not_matter(truth: np.ndarray) -> None:
    prediction = truth + np.random.default_rng(1).normal(size=truth.shape)
    climatology = truth.mean(axis=0)
    a = scores_of(prediction, truth, 20, climatology=climatology).scores()
    b = scores_of(prediction, truth, 3, climatology=climatology).scores()
    for name, value in a.items():
        np.testing.assert_allclose(value, b[name], err_msg=name)


def test_anomaly_correlation(truth: np.ndarray) -> None:
    climatology = truth.mean(axis=0)
    anomaly = truth - climatology

    def acc(prediction: np.ndarray) -> np.ndarray:
        return scores_of(prediction, truth, climatology=climatology).scores()["acc"]

    np.testing.assert_allclose(acc(truth), 1)
    np.testing.assert_allclose(acc(climatology + 3 * anomaly + 5), 1)  # neither scale nor offset
    np.testing.assert_allclose(acc(climatology - anomaly), -1)
    other = np.random.default_rng(1).normal(size=truth.shape)
    assert np.abs(acc(climatology + other)).max() < 0.2


def test_what_is_masked_or_missing_does_not_count(truth: np.ndarray) -> None:
    prediction = truth + 1.0
    mask = np.random.default_rng(1).random(truth.shape) < 0.5
    prediction[~mask] = 1e6
    table = scores_of(prediction, truth, mask=mask, climatology=truth.mean(axis=0)).scores()
    np.testing.assert_allclose(table["rmse"], 1)
    np.testing.assert_allclose(table["mae_plain"], 1)
    assert (table["acc"] > 0.9).all()
    missing = np.where(mask, truth, np.nan)
    np.testing.assert_allclose(scores_of(prediction, missing).scores()["rmse"], 1)


def test_nothing_observed_is_nan_not_a_number(truth: np.ndarray) -> None:
    truth[:, :, 1] = np.nan
    table = scores_of(np.zeros_like(truth), truth).scores()
    assert np.isnan(table["rmse"][:, 1]).all()
    assert np.isfinite(table["rmse"][:, 0]).all()


def test_resamples_are_circular_blocks() -> None:
    weights = block_resamples(13, 4, 500, seed=1)
    assert weights.shape == (500, 13)
    np.testing.assert_array_equal(weights.sum(axis=1), 13)
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.2)  # ends count as the middle
    np.testing.assert_array_equal(weights, block_resamples(13, 4, 500, seed=1))
    assert (weights != block_resamples(13, 4, 500, seed=2)).any()
    assert block_resamples(5, 99, 3, seed=1).shape == (0, 5)  # no blocks to draw


def errors_as_scores(errors: np.ndarray) -> ForecastScores:
    """Scores of forecasts of one cell that are wrong by `errors` (windows,)."""
    found = ForecastScores(1, ("a",), None, (1, 1))
    shaped = errors.reshape(-1, 1, 1, 1, 1)
    found.update(shaped, np.zeros_like(shaped))
    return found


def test_interval_of_a_mean_of_independent_errors_has_the_known_width() -> None:
    errors = np.abs(np.random.default_rng(0).normal(10, 1, 2000))  # mae is their mean
    found = interval(errors_as_scores(errors), "mae", block_resamples(2000, 1, 2000, seed=0))
    assert found.value[0, 0] == pytest.approx(errors.mean())
    width = found.high[0, 0] - found.low[0, 0]
    assert width == pytest.approx(2 * 1.96 / np.sqrt(2000), rel=0.1)
    assert found.low[0, 0] < found.value[0, 0] < found.high[0, 0]


def test_blocks_widen_the_interval_of_correlated_errors() -> None:
    # Groups of 20 equal errors hold as much as one error per group: the width grows by sqrt(20).
    errors = 10 + np.repeat(np.random.default_rng(0).normal(size=100), 20)
    scores = errors_as_scores(errors)
    single, block = (
        interval(scores, "mae", block_resamples(2000, length, 1000, seed=0)) for length in (1, 100)
    )
    ratio = (block.high - block.low) / (single.high - single.low)
    assert ratio[0, 0] == pytest.approx(np.sqrt(20), rel=0.25)


def test_difference_is_paired() -> None:
    rng = np.random.default_rng(0)
    hard = np.abs(rng.normal(10, 3, 500))  # windows differ much, the models little
    better, worse = errors_as_scores(hard), errors_as_scores(hard + rng.normal(0.1, 0.2, 500))
    weights = block_resamples(500, 5, 1000, seed=0)
    gap = difference(better, worse, "mae", weights)
    assert gap.value[0, 0] == pytest.approx(-0.1, abs=0.03)
    assert gap.high[0, 0] < 0  # though the intervals of the two overlap almost wholly
    own, other = interval(better, "mae", weights), interval(worse, "mae", weights)
    assert own.high[0, 0] > other.value[0, 0] > own.low[0, 0]
    same = difference(better, better, "mae", weights)
    assert (same.low, same.value, same.high) == (0, 0, 0)


def test_twenty_thousand_windows_take_seconds() -> None:
    errors = np.random.default_rng(0).normal(10, 1, (20000, 12, 1, 1, 1))
    found = ForecastScores(12, ("a",), None, (1, 1))
    found.update(errors, np.zeros_like(errors))
    begin = time.perf_counter()
    interval(found, "rmse", block_resamples(20000, 24, 1000, seed=0))
    assert time.perf_counter() - begin < 20


def test_video_errors_are_sums_over_a_frame(truth: np.ndarray) -> None:
    found = openstl_errors(truth + 0.5, truth, spatial_norm=False)
    cells = np.prod(truth.shape[2:])
    assert found["mse"] == pytest.approx(0.25 * cells)
    assert found["mae"] == pytest.approx(0.5 * cells)
    assert found["rmse"] == pytest.approx(np.sqrt(0.25 * cells))
    assert openstl_errors(truth + 0.5, truth, spatial_norm=True)["rmse"] == pytest.approx(0.5)


def test_image_quality_clips_forecasts() -> None:
    truth = np.random.default_rng(0).random((2, 3, 1, 8, 8))
    same = openstl_image_quality(truth + 0.1, truth)
    assert 20 <= same["psnr"] < 21  # an offset of 0.1 is 20 dB, more where it was clipped
    wild = openstl_image_quality(np.where(truth > 0.5, 50.0, truth), truth)
    clipped = openstl_image_quality(np.where(truth > 0.5, 1.0, truth), truth)
    assert wild == clipped
    assert openstl_image_quality(truth + 1e-9, truth)["ssim"] == pytest.approx(1)


def test_with_fewer_than_three_blocks_there_is_no_interval():
    scores = ForecastScores(1, ("t",), None, (2, 2))
    scores.update(np.ones((20, 1, 1, 2, 2)), np.zeros((20, 1, 1, 2, 2)))
    weights = block_resamples(20, 7, 100, seed=0)
    assert weights.shape == (0, 20)
    found = interval(scores, "rmse", weights)
    assert found.value == 1 and np.isnan(found.low).all() and np.isnan(found.high).all()
    assert np.isfinite(interval(scores, "rmse", block_resamples(20, 6, 100, seed=0)).low).all()
