from __future__ import annotations

from pathlib import Path

import pytest

from crossband.shared.conformance import verify_file


@pytest.mark.parametrize("name", ["metrics_and_data"])
def test_golden_numbers(shared_dir: Path, name: str) -> None:
    report = verify_file(shared_dir / "fixtures" / "spatiotemporal" / f"{name}.safetensors")
    assert report.problem == ""
    assert [check.name for check in report.checks if not check.passed] == []
    assert len(report.checks) > 20
