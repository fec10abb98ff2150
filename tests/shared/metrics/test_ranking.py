from __future__ import annotations

import math

import numpy as np
import pytest

from crossband.shared.metrics.ranking import (
    at_threshold,
    auroc,
    auroc_interval,
    average_precision,
    bootstrap,
    mean_auroc,
    operating_points,
    paired_difference,
)


def _ranked(items: int, seed: int, step: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return overlapping scores, on a grid of `step` so that many are equal, and labels."""
    random = np.random.default_rng(seed)
    label = (random.random(items) < 0.3).astype(float)
    score = label + random.normal(0, 1.2, items)
    return (np.round(score / step) * step if step else score), label


def _with_unknowns(
    score: np.ndarray, label: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mix in items of unknown label, whose scores say nothing."""
    random = np.random.default_rng(seed)
    place = random.permutation(2 * len(score))
    scores = np.concatenate([score, random.normal(0, 50, len(score))])
    labels = np.concatenate([label, np.full(len(score), np.nan)])
    return scores[place], labels[place]


@pytest.mark.parametrize("step", [0.0, 0.25, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_areas_are_scikit_learns_ties_and_unknown_labels_included(seed: int, step: float) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    score, label = _ranked(150, seed, step)
    mixed = _with_unknowns(score, label, seed)
    assert auroc(*mixed) == pytest.approx(metrics.roc_auc_score(label, score), abs=1e-12)
    wanted = metrics.average_precision_score(label, score)
    assert average_precision(*mixed) == pytest.approx(wanted, abs=1e-12)


def test_areas_by_hand() -> None:
    assert auroc([1, 2, 3, 4], [0, 1, 0, 1]) == 0.75
    assert auroc([5, 5, 5], [0, 1, 1]) == 0.5  # all tied
    assert auroc([-3.0, -1e-9, 0.0, 7.0], [1, 1, 0, 0]) == 0.0
    assert average_precision([4, 3, 2, 1], [1, 0, 1, 0]) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([5, 5, 5], [0, 1, 1]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("label", [[1, 1, math.nan], [0, math.nan, 0], [math.nan] * 3, [0, 0, 0]])
def test_of_one_value_there_is_no_area(label: list[float]) -> None:
    score = [0.1, 0.5, 0.9]
    assert math.isnan(auroc(score, label)) and math.isnan(average_precision(score, label))
    assert all(math.isnan(number) for number in auroc_interval(score, label))
    points = operating_points(score, label)
    assert {math.isnan(v) for point in points.values() for v in point.values()} == {True}


def test_a_score_that_is_no_number_is_not_ranked() -> None:
    score = [0.1, math.nan, 0.3, 0.9]
    assert math.isnan(auroc(score, [0, 1, 0, 1]))
    assert auroc(score, [0, math.nan, 0, 1]) == 1.0  # its label is not known: left out


def test_mean_over_the_findings_that_have_both_values() -> None:
    score = np.array([[1, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4]], float)
    label = np.array([[0, 0, np.nan], [1, 0, np.nan], [0, 0, 1], [1, 0, 0]], float)
    assert mean_auroc(score, label) == pytest.approx((0.75 + 0.0) / 2)
    assert math.isnan(mean_auroc(score, np.zeros((4, 3))))


def test_area_does_not_change_with_a_monotonic_map_and_turns_with_the_sign() -> None:
    score, label = _ranked(200, 5, 0.5)
    assert auroc(np.exp(score), label) == auroc(score, label)
    assert auroc(-score, label) == pytest.approx(1 - auroc(score, label))


def test_delongs_variance_is_that_of_all_pairs() -> None:
    score, label = _ranked(60, 3, 0.5)
    positive, negative = score[label == 1], score[label == 0]
    kernel = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    variance = kernel.mean(1).var(ddof=1) / len(positive)
    variance += kernel.mean(0).var(ddof=1) / len(negative)
    found = auroc_interval(*_with_unknowns(score, label, 0))
    assert found.value == pytest.approx(kernel.mean())
    reach = 1.959963984540054 * math.sqrt(variance)
    assert found.low == pytest.approx(kernel.mean() - reach)
    assert found.high == pytest.approx(min(1.0, kernel.mean() + reach))


def test_delong_covers_the_truth_as_often_as_it_says() -> None:
    truth = 0.7602499389065233  # Phi(1 / sqrt 2) of two normal distributions one apart
    random, inside = np.random.default_rng(0), 0
    label = np.repeat([0, 1], [60, 40])
    for _ in range(400):
        found = auroc_interval(random.normal(label, 1.0), label)
        inside += found.low <= truth <= found.high
    assert 0.92 <= inside / 400 <= 0.98  # 0.95 within three standard errors


def test_a_bootstrap_of_single_items_is_near_delong_and_is_repeatable() -> None:
    score, label = _ranked(400, 7)
    delong = auroc_interval(score, label)
    drawn = bootstrap(auroc, (score, label), seed=3)
    assert drawn == bootstrap(auroc, (score, label), seed=3)
    assert drawn != bootstrap(auroc, (score, label), seed=4)
    assert drawn.low == pytest.approx(delong.low, abs=0.01)
    assert drawn.high == pytest.approx(delong.high, abs=0.01)


def test_images_of_one_patient_are_drawn_together() -> None:
    score, label = _ranked(120, 11)
    patients = [f"p{i}" for i in range(120)]
    single = auroc_interval(score, label, patients)
    repeated = np.repeat(score, 5), np.repeat(label, 5)
    honest = auroc_interval(*repeated, np.repeat(patients, 5).tolist())
    naive = auroc_interval(*repeated)
    assert honest.value == naive.value == pytest.approx(single.value)
    width = single.high - single.low
    assert honest.high - honest.low == pytest.approx(width, rel=0.1)  # copies tell nothing new
    assert naive.high - naive.low == pytest.approx(width / math.sqrt(5), rel=0.1)


def test_bootstrap_of_a_mean_has_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 500)
    found = bootstrap(np.mean, (values,), count=2000)
    assert found.value == pytest.approx(values.mean())
    reach = 1.96 * values.std() / math.sqrt(500)
    assert found.high - found.value == pytest.approx(reach, rel=0.1)
    assert found.value - found.low == pytest.approx(reach, rel=0.1)
    narrow = bootstrap(np.mean, (values,), count=2000, level=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.6745 / 1.96 * reach, rel=0.1)


def test_ranks_and_scores_give_the_same_resamples() -> None:
    score, label = _ranked(90, 2, 0.5)
    plain = bootstrap(lambda s, t: auroc(s, t), (score, label), count=50)
    assert bootstrap(auroc, (score, label), count=50) == plain
    both = np.stack([score, -score], 1), np.stack([label, label], 1)
    plain = bootstrap(lambda s, t: mean_auroc(s, t), both, count=50)
    assert bootstrap(mean_auroc, both, count=50) == plain


def test_one_patient_gives_no_interval_and_unknown_patients_are_different_ones() -> None:
    score, label = _ranked(40, 1)
    found = auroc_interval(score, label, ["same"] * 40)
    assert found.value == auroc(score, label) and math.isnan(found.low) and math.isnan(found.high)
    assert auroc_interval(score, label, [None] * 40) == auroc_interval(score, label)
    with pytest.raises(ValueError, match="39 groups for 40 items"):
        auroc_interval(score, label, ["a"] * 39)


def test_paired_differences_are_narrower_than_separate_intervals() -> None:
    random = np.random.default_rng(0)
    score, label = _ranked(300, 9)
    better, worse = score + 0.2 * label, score + random.normal(0, 0.1, 300)
    found = paired_difference(auroc, better, worse, label, seed=1)
    assert found.value == pytest.approx(auroc(better, label) - auroc(worse, label))
    assert 0 < found.low < found.value < found.high
    single = auroc_interval(better, label)
    assert found.high - found.low < 0.3 * (single.high - single.low)
    opposite = paired_difference(auroc, worse, better, label, seed=1)
    assert opposite.low == pytest.approx(-found.high)
    same = paired_difference(average_precision, better, better, label)
    assert same == (0.0, 0.0, 0.0)


def test_operating_points_by_hand() -> None:
    # 20 absent at 0.00 ... 0.19, with one outlier at 0.9; 4 present at 0.5, 0.6, 0.7, 0.05.
    absent = [i / 100 for i in range(19)] + [0.9]
    score = np.array([*absent, 0.5, 0.6, 0.7, 0.05, 0.4])
    label = np.array([0] * 20 + [1] * 4 + [math.nan])
    points = operating_points(score, label)
    assert points["youden"] == {
        "threshold": 0.5, "sensitivity": 0.75, "specificity": 0.95, "ppv": 0.75, "npv": 19 / 20
    }  # fmt: skip
    # 19 of 20 below: the least threshold at which that holds.
    assert points["specificity_95"]["threshold"] == 0.5
    assert points["sensitivity_95"] == at_threshold(score, label, 0.05)
    assert points["sensitivity_95"]["specificity"] == 5 / 20


@pytest.mark.parametrize("seed", range(5))
def test_operating_points_are_the_best_of_all_thresholds(seed: int) -> None:
    score, label = _ranked(80, seed, 0.25)
    every = [at_threshold(score, label, t) for t in [*np.unique(score), np.inf]]
    points = operating_points(score, label)
    best = max(p["sensitivity"] + p["specificity"] for p in every)
    chosen = points["youden"]
    assert chosen["sensitivity"] + chosen["specificity"] == pytest.approx(best)
    best = max(p["sensitivity"] for p in every if p["specificity"] >= 0.95)
    assert points["specificity_95"]["sensitivity"] == best
    best = max(p["specificity"] for p in every if p["sensitivity"] >= 0.95)
    assert points["sensitivity_95"]["specificity"] == best


def test_a_threshold_that_calls_nothing_positive_is_finite() -> None:
    score, label = [1.0, 1.0, 0.0], [0, 0, 1]  # only the wrong ones are sure
    point = operating_points(score, label)["specificity_95"]
    assert 1.0 < point["threshold"] < 1.0001
    assert (point["sensitivity"], point["specificity"]) == (0.0, 1.0)
    assert math.isnan(point["ppv"]) and point["npv"] == pytest.approx(2 / 3)
