from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crossband.medical.baselines import statistics
from crossband.medical.baselines.statistics import FEATURES, features, fit, load
from crossband.shared.checkpoints import read_config, save_checkpoint
from crossband.shared.errors import CheckpointError, DataError


def named(image: np.ndarray) -> dict[str, float]:
    return dict(zip(FEATURES, features(image), strict=True))


def phantoms(count: int = 240, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray, list[str]]:
    """Grey images of two sizes; findings: bright, bright on the left, and chance."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, (count, 3)).astype(float)
    images = []
    for bright, left, _ in labels:
        side = int(random.choice([40, 56]))
        image = random.normal(100, 25, (side, side)) + 12 * bright + random.normal(0, 4)
        image[:, : side // 2] += 10 * left
        images.append(image.clip(0, 255).astype(np.uint8))
    return images, labels, [f"p{i // 2}" for i in range(count)]


def auroc(score: np.ndarray, label: np.ndarray) -> float:
    pairs = score[label == 1][:, None] - score[label == 0][None]
    return float((pairs > 0).mean() + 0.5 * (pairs == 0).mean())


def test_statistics_of_a_half_bright_image() -> None:
    image = np.zeros((64, 64), np.uint8)
    image[:, :32] = 255
    found = named(image)
    assert len(found) == len(FEATURES)  # no name twice
    assert found["mean"] == found["std"] == 0.5 and found["skewness"] == pytest.approx(0)
    assert found["entropy"] == pytest.approx(1 / 8)  # one bit of eight
    assert found["percentile 25"] == 0 and found["percentile 75"] == 1
    assert found["bin 0"] == found["bin 15"] == 0.5 and found["bin 7"] == 0
    assert found["thumbnail 3,0"] == 1 and found["thumbnail 3,7"] == 0
    assert found["left - right"] == 1 and found["top - bottom"] == 0
    assert found["|left - right|"] == 1 and found["|top - bottom|"] == 0
    assert found["centre - border"] == pytest.approx(0)
    assert found["gradient x"] == pytest.approx((1 / 63) ** 0.5) and found["gradient y"] == 0
    assert named(image.T)["top - bottom"] == 1


def test_the_histogram_agrees_with_numpy() -> None:
    image = np.random.default_rng(0).integers(0, 256, (31, 47), np.uint8)
    found, grey = named(image), image / 255
    assert found["mean"] == pytest.approx(grey.mean()) and found["std"] == pytest.approx(grey.std())
    for p in (1, 5, 25, 50, 75, 95, 99):
        expected = np.percentile(grey, p, method="inverted_cdf")
        assert found[f"percentile {p}"] == pytest.approx(expected)
    bins = np.histogram(image, 16, (0, 256))[0] / image.size
    assert [found[f"bin {i}"] for i in range(16)] == pytest.approx(bins)


def test_statistics_do_not_depend_on_size() -> None:
    small = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    large = small.repeat(3, 0).repeat(3, 1)
    np.testing.assert_allclose(features(large), features(small), atol=2e-3)


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.zeros((4, 4, 3), np.uint8)])
def test_other_images_are_refused(image: np.ndarray) -> None:
    with pytest.raises(DataError, match="uint8"):
        features(image)


def test_findings_are_learned_and_chance_is_not(tmp_path: Path) -> None:
    images, labels, groups = phantoms()
    labels[:3, 0] = np.nan
    model = fit(iter(images), labels, groups, exclusive=False)
    new, truth, _ = phantoms(seed=1)
    scores = model.predict_proba(new)
    assert scores.shape == (240, 3) and ((scores > 0) & (scores < 1)).all()
    bright, left, chance = (auroc(scores[:, k], truth[:, k]) for k in range(3))
    assert bright > 0.85 and left > 0.95 and 0.35 < chance < 0.65
    assert model.strength[2] == min(statistics.STRENGTHS)  # nothing to learn: as little as may be
    assert abs(scores[:, 2].mean() - labels[:, 2].mean()) < 0.05
    path = model.save(tmp_path / "m.safetensors", task="medical classification")
    assert read_config(path)["task"] == "medical classification"
    assert read_config(path)["model"]["name"] == "statistics"
    again = load(path)
    np.testing.assert_array_equal(again.predict_proba(new), scores)
    assert not again.exclusive


def test_the_fit_is_sklearns_on_known_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    monkeypatch.setattr(statistics, "STRENGTHS", (0.01,))
    images, labels, groups = phantoms(80)
    labels[10:30, 1] = np.nan
    model = fit(images, labels, groups, exclusive=False)
    x = StandardScaler().fit_transform(np.stack([features(image) for image in images]))
    known = np.isfinite(labels[:, 1])
    expected = LogisticRegression(C=0.01, tol=1e-8, max_iter=5000).fit(x[known], labels[known, 1])
    np.testing.assert_allclose(
        model.predict_proba(images)[:, 1], expected.predict_proba(x)[:, 1], atol=1e-5
    )


def test_patients_stay_together_when_c_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels, _ = phantoms(40)
    groups = [f"p{i % 7}" for i in range(38)] + [None, None]
    seen = []
    folds = statistics._folds

    def spy(x: np.ndarray, group: np.ndarray) -> list:
        seen.append((group, folds(x, group)))
        return seen[-1][1]

    monkeypatch.setattr(statistics, "_folds", spy)
    fit(images, labels, groups, exclusive=False)
    assert len(seen) == 3
    for group, parts in seen:
        assert len(np.unique(group)) == 9  # each image without a patient is on its own
        assert sorted(np.concatenate([test for _, test in parts])) == list(range(40))
        for train, test in parts:
            assert not set(group[train]) & set(group[test])


def test_findings_of_one_value_are_predicted_by_their_prevalence() -> None:
    images, labels, groups = phantoms(40)
    labels[:, 1], labels[:, 2] = 0, 1
    model = fit(images, labels, groups, exclusive=False)
    scores = model.predict_proba(images)
    np.testing.assert_allclose(scores[:, 1], 0, atol=2e-6)
    np.testing.assert_allclose(scores[:, 2], 1, atol=2e-6)
    assert np.isnan(model.strength[1:]).all() and np.isfinite(model.strength[0])
    assert auroc(scores[:, 0], labels[:, 0]) > 0.8


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_classes_sum_to_one(classes: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    number = random.integers(0, min(classes, 3), 90)  # a fourth class never occurs
    images = [
        random.normal(80 + 40 * k, 20, (32, 32)).clip(0, 255).astype(np.uint8) for k in number
    ]
    labels = np.eye(classes)[number]
    labels[0] = np.nan
    model = fit(images, labels, [str(i) for i in range(90)], exclusive=True)
    scores = model.predict_proba(images)
    assert scores.shape == (90, classes)
    np.testing.assert_allclose(scores.sum(1), 1)
    assert (scores.argmax(1) == number).mean() > 0.95
    if classes == 4:
        assert scores[:, 3].max() < 1e-4
    again = load(model.save(tmp_path / "m.safetensors"))
    assert again.exclusive
    np.testing.assert_array_equal(again.predict_proba(images), scores)


def test_one_class_alone() -> None:
    images, _, groups = phantoms(6)
    model = fit(images, np.eye(3)[[1] * 6], groups, exclusive=True)
    np.testing.assert_allclose(model.predict_proba(images), [[0, 1, 0]] * 6, atol=2e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y, g: (y[:-1], g), "one row and one group"),
        (lambda y, g: (y, g[:-1]), "one row and one group"),
        (lambda y, g: (np.where([False, True, False], np.nan, y), g), "Finding 2 of 3"),
        (lambda y, g: (y, ["p"] * len(g)), "of one patient"),
    ],
)
def test_labels_that_cannot_be_fitted(change, words: str) -> None:
    images, labels, groups = phantoms(20)
    labels, groups = change(labels, groups)
    with pytest.raises(DataError, match=words):
        fit(images, labels, groups, exclusive=False)


def test_classes_need_one_each() -> None:
    images, labels, groups = phantoms(20)
    with pytest.raises(DataError, match="exactly one 1"):
        fit(images, labels, groups, exclusive=True)
    with pytest.raises(DataError, match="no images"):
        fit([], labels, None, exclusive=False)


def test_files_of_other_models_are_refused(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "x.safetensors"
    save_checkpoint(path, {"w": torch.ones(1)}, {"model": {"name": "vit", "arguments": {}}})
    with pytest.raises(CheckpointError, match="'vit'"):
        load(path)


def test_importing_is_light() -> None:
    code = (
        "import sys, json, crossband.medical.baselines.statistics;"
        "print(json.dumps([m for m in ('torch', 'sklearn') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
