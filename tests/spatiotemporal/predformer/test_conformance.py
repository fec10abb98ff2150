from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crossband.shared.conformance import read_fixture, verify_file
from crossband.spatiotemporal.predformer.conformance import run
from crossband.spatiotemporal.predformer.model import VARIANTS, PredFormer
from crossband.spatiotemporal.predformer.official import to_official_config

CASES = ("full", "fac_st", "binary_ts", "binary_st", "triplet_sts", "quadruplet_tsst")


@pytest.mark.parametrize("case", CASES)
def test_golden_numbers(shared_dir: Path, case: str) -> None:
    path = shared_dir / f"fixtures/spatiotemporal/predformer_{case}.safetensors"
    report = verify_file(path, debug=True)
    assert len(report.checks) >= 7
    assert report.passed, [check for check in report.checks if not check.passed]


def test_golden_numbers_tell_the_order_of_fac_st(shared_dir: Path) -> None:
    fixture = read_fixture(shared_dir / "fixtures/spatiotemporal/predformer_fac_st.safetensors")
    corrected = run({**fixture.config, "legacy_order": False}, fixture.weights, fixture.inputs)
    assert (corrected["y"] - fixture.outputs["y"]).abs().max() > 0.1
    torch.testing.assert_close(
        corrected["tokens_plus_pos"], fixture.outputs["tokens_plus_pos"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("heads", [1, 2])
def test_returns_every_output_of_every_variant(variant: str, heads: int) -> None:
    arguments = {"history": 2, "in_channels": 2, "height": 4, "width": 8, "dim": 16, "depth": 2}
    arguments |= {"heads": heads, "dim_head": 16, "mlp_ratio": 1, "block_depth": 1}
    torch.manual_seed(0)
    model = PredFormer(variant=variant, legacy_order=True, **arguments)
    config = {**to_official_config({**arguments, "patch_size": 4}), "variant": variant}
    inputs = {"x": torch.randn(2, 2, 2, 4, 8), "target": torch.randn(2, 2, 2, 4, 8)}
    found = run(config, model.state_dict(), inputs)
    torch.testing.assert_close(found["y"], model.eval()(inputs["x"]))
    torch.testing.assert_close(found["mse"], (found["y"] - inputs["target"]).square().mean()[None])
    assert {name for name in found if name.startswith("grad.")} == {
        f"grad.{name}" for name, _ in model.named_parameters()
    }
    assert ("block0" in found) == (variant not in ("full", "fac_st", "fac_ts"))
    assert found["pos_embedding"].shape == (1, 2, 2, 16)
