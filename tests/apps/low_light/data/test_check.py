from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from crossband.apps.low_light.data.synthetic import make_synthetic
from crossband.apps.main import main


def check(*words: object) -> int:
    return main(["low-light", "data", "check", *map(str, words)])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "pairs"
    make_synthetic(root, longest=100)
    return root


def test_sound_data(pairs: Path, capsys) -> None:
    assert check(pairs) == 0
    printed = capsys.readouterr().out
    assert "pairs" in printed and "all files can be read" in printed
    assert check(pairs / "high", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data"][0]["kind"] == "photographs" and found["data"][0]["files"] == 5
    assert found["problems"] == found["doubles"] == []


def test_broken_files_and_scenes_in_both_parts(pairs: Path, tmp_path: Path, capsys) -> None:
    test = tmp_path / "test"
    test.mkdir()
    shutil.copy(pairs / "high/rocket.png", test / "other-name.png")
    (test / "bad.png").write_bytes(b"")
    assert check(pairs, "--against", test) == 1
    printed = capsys.readouterr().out
    assert "bad.png is empty" in printed
    assert "the same scene in both" in printed and "other-name.png" in printed


def test_partners_of_another_size_are_named(pairs: Path, tmp_path: Path, capsys) -> None:
    root = tmp_path / "pairs"
    shutil.copytree(pairs, root)
    shutil.copy(root / "high/rocket.png", root / "low/astronaut.png")
    assert check(root) == 2
    assert "they are not one scene" in capsys.readouterr().err
