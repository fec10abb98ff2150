from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from crossband.apps import demo
from crossband.medical.data.synthetic import make_synthetic
from crossband.shared.reports.html import Report


def test_unseen_images_are_of_the_test_split(tmp_path: Path) -> None:
    make_synthetic(tmp_path, 30, size=64, layout="csv")
    rows = [line.split(",")[:2] for line in (tmp_path / "labels.csv").read_text().splitlines()]
    splits = {str(tmp_path / image): split for image, split in rows}
    found = demo._unseen(tmp_path)
    assert len(found) == 3
    assert {splits[path] for path in found} == {"test"}
    assert all(Path(path).is_file() for path in found)


def test_without_monai_the_medical_step_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(demo, "_run", lambda words: pytest.fail(f"ran {words}"))
    report = Report("demo", "")
    demo._read_radiographs(tmp_path / "medical", report, 1.0)
    text = report.write(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "pip install &#x27;crossband[medical]&#x27;" in text
    assert not (tmp_path / "medical").exists()


def test_an_area_is_shown_with_its_interval() -> None:
    assert demo._with_interval({"value": 0.84321, "low": 0.7, "high": 0.95}) == (
        "0.843 [0.700, 0.950]"
    )


@pytest.mark.slow
@pytest.mark.skipif(find_spec("monai") is None, reason="bundles need MONAI")
def test_medical_step_learns_the_view_and_leaves_a_bundle(tmp_path: Path) -> None:
    report = Report("demo", "")
    demo._read_radiographs(tmp_path / "medical", report, 1.0)
    (found,) = (tmp_path / "medical").glob("run-*/evaluation/metrics.json")
    scores = json.loads(found.read_text(encoding="utf-8"))
    assert scores["mean_auroc"]["value"] > 0.75  # 0.5 is chance
    text = report.write(tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("<img") == 4  # three heatmaps and the contact sheet
    assert text.count("$ crossband ") == 8
    assert list((tmp_path / "medical").glob("bundle-*/configs/metadata.json"))
