from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crossband.medical.lvm_med import conformance
from crossband.shared.conformance import compare, read_fixture, verify_file

FILES = {
    "lvmmed_gm_loss": conformance.draft_loss,
    "lvmmed_imle_paper_variant": conformance.paper_loss,
    "lvmmed_local_parts": conformance.local_parts,
}


@pytest.fixture
def fixtures(shared_dir: Path) -> Path:
    folder = shared_dir / "fixtures/medical"
    if not folder.is_dir():
        pytest.skip("no golden files of the medical systems")
    return folder


@pytest.mark.parametrize("name", [*FILES, "lvmmed_sam_encoder_tiny"])
def test_golden_numbers(fixtures: Path, name: str) -> None:
    report = verify_file(fixtures / f"{name}.safetensors", debug=True)
    assert report.passed, [check for check in report.checks if not check.passed]


@pytest.mark.parametrize("name", FILES)
def test_other_inputs_fail(fixtures: Path, name: str) -> None:
    fixture = read_fixture(fixtures / f"{name}.safetensors")
    generator = torch.Generator().manual_seed(0)
    inputs = {
        key: value + torch.randn(value.shape, generator=generator)
        if value.is_floating_point()
        else value
        for key, value in fixture.inputs.items()
    }
    checks = compare(fixture, FILES[name](fixture.config, fixture.weights, inputs))
    assert sum(not check.passed for check in checks) >= 4
