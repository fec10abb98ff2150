from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from crossband.shared.cli.config import VerifyConfig
from crossband.shared.cli.models import verify as verify_command
from crossband.shared.conformance import compare_output, read_fixture, verify, verify_file

Write = Callable[..., Path]
X = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
W = torch.tensor([[2.0, 0.0], [0.0, 0.5]])


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a golden file of the toy system, right unless changed."""

    def call(
        name: str = "a.safetensors",
        outputs: dict[str, Tensor] | None = None,
        weights: bool = True,
        header: dict[str, str] | None = None,
        tolerance: dict[str, Any] | None = None,
        **config: Any,
    ) -> Path:
        y = X @ W
        right = {"y": y, "grad.x": 2 * y @ W.T, "count": torch.tensor(2)}
        tensors = {f"output.{k}": v for k, v in {**right, **(outputs or {})}.items()}
        tensors["input.x"] = X
        if weights:
            tensors["weights.w"] = W
        mse = float(y.square().mean())
        texts = {
            "system": "toy",
            "case": "base",
            "config": json.dumps(config),
            "tolerance": json.dumps(
                {"rtol": 1e-4, "atol": 1e-4, "grad_rtol": 1e-3, **(tolerance or {})}
            ),
            "video": json.dumps({"mse": mse}),
            "note": '{"not": 1}',
            **(header or {}),
        }
        path = tmp_path / name
        save_file({k: v.clone() for k, v in tensors.items()}, path, metadata=texts)
        return path

    return call


@pytest.mark.usefixtures("toy_domain")
class TestVerify:
    def test_right_values_pass(self, write: Write) -> None:
        report = verify_file(write())
        assert report.passed, report
        assert [c.name for c in report.checks] == ["count", "grad.x", "video.mse", "y"]
        assert all(c.absolute == 0 for c in report.checks)

    def test_weights_of_another_file_or_of_several(self, write: Write, tmp_path: Path) -> None:
        write("base.safetensors")
        assert verify_file(write(weights=False, weights_from="base.safetensors")).passed
        save_file({"k": W}, tmp_path / "plain.safetensors")
        several = {"one": "plain.safetensors", "two": "base.safetensors"}
        fixture = read_fixture(write(weights=False, weights_from=several))
        assert set(fixture.weights) == {"one.k", "two.w"}

    def test_a_wrong_value_fails_with_its_errors(self, write: Write) -> None:
        report = verify_file(write(outputs={"y": X @ W + torch.tensor([[0.0, 0.5], [0.0, 0.0]])}))
        (bad,) = [c for c in report.checks if not c.passed]
        assert (bad.name, bad.absolute) == ("y", 0.5)
        assert bad.relative == pytest.approx(0.5 / 1.5)  # at the place of the error: |b| = 1.5

    def test_an_output_the_adapter_lacks_fails(self, write: Write) -> None:
        report = verify_file(write(outputs={"z": X}, header={"extra": '{"n": 1}'}))
        failed = {c.name: c.note for c in report.checks if not c.passed}
        assert failed == dict.fromkeys(("z", "extra.n"), "not returned by the adapter")

    def test_only_limits_what_is_compared(self, write: Write) -> None:
        path = write(outputs={"z": X}, tolerance={"only": ["output.?", "output.v*.mse"]})
        assert [c.name for c in verify_file(path).checks] == ["video.mse", "y", "z"]

    def test_json_result_out_of_tolerance_fails(self, write: Write) -> None:
        report = verify_file(write(header={"video": '{"mse": 99.0}'}))
        assert [c.name for c in report.checks if not c.passed] == ["video.mse"]

    def test_what_cannot_run_is_named_and_the_others_go_on(
        self, write: Write, tmp_path: Path
    ) -> None:
        torn = tmp_path / "torn.safetensors"
        torn.write_bytes(write("whole.safetensors").read_bytes()[:200])
        paths = [
            tmp_path / "absent.safetensors",
            torn,
            write("foreign.safetensors", header={"system": "toi"}),
            write("broken.safetensors", broken=True),
            write("bad_header.safetensors", header={"config": "{"}),
            write("good.safetensors"),
        ]
        reports = verify(paths)
        assert [r.passed for r in reports] == [False] * 5 + [True]
        problems = [r.problem for r in reports]
        assert "does not exist" in problems[0]
        assert "not a readable safetensors" in problems[1]
        assert "system 'toi'. Did you mean 'toy'?" in problems[2]
        assert "ValueError: two lines" in problems[3]
        assert "not a fixture" in problems[4]
        with pytest.raises(ValueError, match="two"):
            verify([paths[3]], debug=True)

    def test_command_prints_and_exits(
        self, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        good = str(write())
        assert verify_command(VerifyConfig(fixtures=[good])) == 0
        assert "PASS" in capsys.readouterr().out
        write("b.safetensors", outputs={"y": X})
        assert verify_command(VerifyConfig(fixtures=[str(tmp_path)], json=True)) == 1
        result = json.loads(capsys.readouterr().out)
        assert result["passed"] is False
        assert [f["passed"] for f in result["fixtures"]] == [True, False]
        assert verify_command(VerifyConfig(fixtures=[str(tmp_path / "nothing")])) == 1


RULE = {"rtol": 0.1, "atol": 0.5, "grad_rtol": 0.01}


@pytest.mark.parametrize(
    ("found", "expected", "name", "rule", "passed"),
    [
        ([10.0, 1.5], [10.0, 1.0], "y", {}, True),  # 0.5 <= 0.5 + 0.1
        ([11.6, 1.0], [10.0, 1.0], "y", {}, False),  # 1.6 > 0.5 + 1.0
        ([10.0, 1.05], [10.0, 1.0], "grad.y", {}, True),  # 0.05 <= 0.01 x 10
        ([10.0, 1.11], [10.0, 1.0], "grad.y", {}, False),
        ([10.0, 1.11], [10.0, 1.0], "case.grad.y", {}, False),  # gradient of one of several cases
        ([10.0, 1.11], [10.0, 1.0], "gradient", {}, True),  # not a gradient: the word is a part
        ([0.0, 1e-9], [0.0, 0.0], "grad.y", {}, False),
        ([0.0, 0.0], [0.0, 0.0], "grad.y", {}, True),
        ([1, 2], [1, 2], "n", {}, True),
        ([1, 3], [1, 2], "n", {}, False),  # integers are exact
        ([True, False], [True, True], "m", {}, False),
        ([1, 3], [1, 2], "n", {"output.n": {"atol": 1, "rtol": 0.0}}, True),
        ([1.0, 1.5], [1.0, 1.0], "y", {"output.y": {"atol": 0.1, "rtol": 0}}, False),
        ([1.0, 1.5], [1.0, 1.0], "y", {"y*": {"atol": 0.1, "rtol": 0}}, False),
        ([1.0, 1.5], [1.0, 1.0], "y", {"output.z": {"atol": 0.1, "rtol": 0}}, True),
        ([10.0, 1.5], [10.0, 1.0], "grad.y", {"output.grad.y": {"grad_rtol": 0.1}}, True),
        ([10.0, 1.5], [10.0, 1.0], "grad.y", {"output.grad.y": {"atol": 0.6}}, True),
        ([float("nan"), 1.0], [0.0, 1.0], "y", {}, False),
        ([float("nan"), 1.0], [0.0, 1.0], "grad.y", {}, False),
        ([float("nan"), 1.0], [float("nan"), 1.0], "y", {}, True),
        ([0.0, 1.0], [float("nan"), 1.0], "y", {}, False),
        ([float("inf"), 1.0], [float("inf"), 1.0], "y", {}, True),
        ([float("-inf"), 1.0], [float("inf"), 1.0], "y", {}, False),
        ([[1.0]], [1.0], "y", {}, False),  # another shape
        ([], [], "y", {}, True),
        ([1 + 1j], [1 + 1.2j], "y", {}, True),
    ],
)
def test_tolerance_rules(
    found: list, expected: list, name: str, rule: dict[str, Any], passed: bool
) -> None:
    limits = {**RULE, "per_output": rule}
    check = compare_output(name, torch.tensor(found), torch.tensor(expected), limits)
    assert check.passed is passed, check


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=6),
    st.floats(-10, 10, width=32),
)
def test_value_rule_is_the_definition(values: list[float], shift: float) -> None:
    expected = torch.tensor(values, dtype=torch.float64)
    found = expected + shift
    rule = {"rtol": 0.01, "atol": 1.0}
    allowed = [abs(a - b) <= 1.0 + 0.01 * abs(b) for a, b in zip(found, expected, strict=True)]
    check = compare_output("y", found, expected, rule)
    assert check.passed is all(map(bool, allowed))
    assert check.absolute == pytest.approx(float((found - expected).abs().max()))


def test_published_fixtures_can_all_be_read(shared_dir: Path) -> None:
    for path in sorted((shared_dir / "fixtures").rglob("*.safetensors")):
        fixture = read_fixture(path)
        assert fixture.outputs, path
