from __future__ import annotations

import json

import pytest

from crossband.shared.cli.output import format_table, print_json


def test_table_aligns_numbers_right_and_texts_left() -> None:
    table = format_table(("name", "ms"), [("a", 1.23456), ("longer", None), ("b", 12345)])
    assert table.splitlines() == [
        "name       ms",
        "------  -----",
        "a       1.235",
        "longer      -",
        "b       12345",
    ]
    assert format_table(("a", "b"), []).splitlines() == ["a  b", "-  -"]


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [float("nan"), 1.0, (float("inf"),)], "b": "ü"})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.0, [None]], "b": "ü"}
